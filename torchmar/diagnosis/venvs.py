"""The check of the environments for archives of a model store: whether they exist, or can be built."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from torchmar.archive import Archive
from torchmar.archive import store as stores
from torchmar.diagnosis.finding import Finding, error, ok, warning
from torchmar.engines import DEFAULT, EngineName
from torchmar.errors import TorchmarError
from torchmar.properties import Properties
from torchmar.worker.venvs import folder as folders
from torchmar.worker.venvs import specification, uv

_TOPIC = "venv"


def check(store: Path, effective: Properties, engine: EngineName = DEFAULT) -> Iterator[Finding]:
    """Yield a finding for each archive with a runtime.

    Args:
        store: the folder with the archives.
        effective: the server's configuration.
        engine: the server that loads them.
    """
    may_build = effective.flag("install_py_dep_per_model")
    configured, folder = effective.get("torchmar_venv_folder"), effective.file.parent if effective.file else Path()
    place = (folder / configured).absolute() if configured else folders.root()
    archives: list[Path] = []
    with contextlib.suppress(TorchmarError):  # another check reports it
        archives = stores.find(store)
    for path in archives:
        with contextlib.suppress(TorchmarError), Archive(path) as archive:
            if archive.runtime:
                yield _judge(archive, place, may_build=may_build, engine=engine)


def _judge(archive: Archive, place: Path, *, may_build: bool, engine: EngineName) -> Finding:
    name, runtime = archive.path.name, archive.runtime
    assert runtime
    if engine == "torchserve":
        cause = f"{name} asks for an environment of its own, which TorchServe does not make"
        return warning(_TOPIC, cause, "torchmar serve --engine builtin makes it")
    try:
        with tempfile.TemporaryDirectory(prefix="torchmar-venv-") as scratch:
            specification.extract(archive, runtime, Path(scratch), wheels=False)
            spec = specification.read(runtime, Path(scratch))
        if folders.is_complete(place / spec.key):
            return ok(_TOPIC, f"{name}: its environment is there ({spec.show()})")
        uv.program()
    except TorchmarError as problem:
        return error(_TOPIC, f"{name}: {problem.message}", problem.hint)
    if not may_build:
        remedy = f"torchmar venv build {archive.path}, or set install_py_dep_per_model=true"
        return error(_TOPIC, f"{name}: its environment is not there, and the server must not build it", remedy)
    return ok(_TOPIC, f"{name}: its environment is built when it is registered ({spec.show()})")
