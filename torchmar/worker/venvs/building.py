"""Building the environment of an archive with uv, once for all archives that require the same."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from torchmar.errors import WorkerError
from torchmar.worker.environment import worker_environment
from torchmar.worker.process.fork_server import IMPORTS
from torchmar.worker.venvs import folder as folders
from torchmar.worker.venvs import uv
from torchmar.worker.venvs.folder import Venv
from torchmar.worker.venvs.specification import VenvSpec

_SERVER_PACKAGES = "torchmar-server-packages.pth"
_IMPORT_SECONDS = 300
# OpenVINO is suppressed as in workers: see torchmar.worker.process.optional_imports.
_IMPORT = """
import importlib, sys
sys.modules["openvino"] = None
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError as error:
        if name != "numpy":
            sys.exit(f"{type(error).__name__}: {error}")
"""


def build(specification: VenvSpec, place: Path, log: Callable[[str], None] = lambda line: None) -> Venv:
    """Return the environment of a specification; build it if it is not complete.

    If several processes need the same one, the first builds it and the others wait.

    Args:
        specification: specification of the environment.
        place: folder of environments.
        log: called with each line of output.

    Returns:
        The environment, which the caller has to close.

    Raises:
        WorkerError: the environment cannot be built; all of its files are removed.
    """
    folder = place / specification.key
    while True:
        if venv := folders.use(folder):
            return venv
        with folders.building(folder) as lock:
            if folders.is_complete(folder):  # another process has built it in the meantime
                continue
            try:
                shutil.rmtree(folder, ignore_errors=True)  # files of an interrupted build
                _install(specification, folder, log, lock)
            except BaseException as error:
                shutil.rmtree(folder, ignore_errors=True)
                if isinstance(error, OSError):
                    raise WorkerError(f"{folder} cannot be written: {error.strerror}") from None
                raise


def _install(specification: VenvSpec, folder: Path, log: Callable[[str], None], lock: int) -> None:
    interpreter, requirements = specification.interpreter, specification.lock
    python = str(folder / "bin" / "python")
    sync = ["pip", "sync", requirements.name, "--python", python, "--require-hashes", "--only-binary", ":all:"]
    if specification.wheels:
        sync += ["--offline", "--no-index", "--find-links", str(specification.wheels)]
    log(f"building {folder} for {specification.show()}")
    try:
        uv.run(
            ["venv", "--no-project", *uv.PYTHON_DOWNLOADS, "--python", interpreter.path, str(folder)],
            log,
            files=[lock],  # if this process is killed, the lock is held until uv has ended, too
        )
        uv.run(sync, log, folder=requirements.parent, files=[lock])
    except uv.UvError as error:
        raise WorkerError(f"the environment of {requirements.name} cannot be built: {error}") from None
    if specification.server_packages:
        show_server_packages(folder, specification.server_packages)
    _check_imports(folder, specification, lock)
    folders.complete(folder, {"python": interpreter.version, "packages": _packages(folder)})


def show_server_packages(folder: Path, packages: tuple[str, ...]) -> None:
    """Let the environment's interpreter import the server's packages, after its own, as TorchServe's useVenv does.

    Args:
        folder: folder of the environment.
        packages: folders with packages, in order.
    """
    (site,) = folder.glob("lib/python*/site-packages")
    lines = [f"import site; site.addsitedir({package!r})\n" for package in packages]
    # The last file by name, because other files of this kind add packages of the environment.
    (site / f"zz-{_SERVER_PACKAGES}").write_text("".join(lines), encoding="utf-8")


def _check_imports(folder: Path, specification: VenvSpec, lock: int) -> None:
    """Import the packages that workers need, which also compiles them.

    Raises:
        WorkerError: a package cannot be imported.
    """
    venv = Venv(folder)
    try:
        process = subprocess.run(
            [str(venv.python), "-c", _IMPORT, *IMPORTS],
            cwd="/",
            env=venv.variables(worker_environment(os.environ)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_IMPORT_SECONDS,
            pass_fds=[lock],
        )
    except subprocess.TimeoutExpired:
        raise WorkerError(f"the environment of {specification.lock.name} takes too long to import torch") from None
    if process.returncode:
        last = (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        hint = "torchmar lock adds what workers need; server_packages: true shows them the server's"
        if specification.server_packages:
            hint = "its packages and the server's do not fit together: lock torch and all others, too"
        raise WorkerError(f"workers cannot start in the environment of {specification.lock.name}: {last}", hint=hint)


def _packages(folder: Path) -> list[str]:
    names = []
    for entry in folder.glob("lib/python*/site-packages/*.dist-info"):
        name, _, version = entry.name.removesuffix(".dist-info").rpartition("-")
        with contextlib.suppress(ValueError):
            names.append(f"{name.replace('_', '-').lower()}=={version}")
    return sorted(names)
