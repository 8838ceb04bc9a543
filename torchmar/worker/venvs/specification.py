"""The specification of an environment, and the key that is shared by all archives with the same specification."""

from __future__ import annotations

import hashlib
import json
import os
import site
import sys
from dataclasses import dataclass
from pathlib import Path

from torchmar.archive import Archive
from torchmar.checks import runtime as checks
from torchmar.errors import ArchiveError, WorkerError
from torchmar.recipe import Runtime
from torchmar.worker.venvs import interpreters
from torchmar.worker.venvs.interpreters import Interpreter

_FORMAT = 1  # version of the key and of the way in which environments are built


@dataclass(frozen=True, kw_only=True)
class VenvSpec:
    """The environment that an archive requires.

    Attributes:
        interpreter: its Python.
        lock: path of the lock file.
        wheels: folder with its wheels; None: they are installed from the index that uv is configured for.
        server_packages: folders with packages of this process, which are imported after the environment's own.
        key: identifier of the environment: digest of the lock file, the interpreter, the platform and these folders.
    """

    interpreter: Interpreter
    lock: Path
    wheels: Path | None
    server_packages: tuple[str, ...]
    key: str

    def show(self) -> str:
        """Return a text for people."""
        return f"Python {self.interpreter.version}, {self.lock.name}"


def read(runtime: Runtime, folder: Path) -> VenvSpec:
    """Return the environment that an archive requires.

    Args:
        runtime: runtime of the archive.
        folder: folder with at least the archive's lock file and wheels.

    Raises:
        ArchiveError: the lock file cannot be read, or contains an entry that is not a locked package.
        WorkerError: this machine does not have the interpreter.
    """
    lock = folder / runtime.requirements
    try:
        data = lock.read_bytes()
    except OSError as error:
        raise ArchiveError(f"{runtime.requirements} cannot be read: {error.strerror}") from None
    # The key represents all packages only if the file names each with its hash, and refers to no other file.
    if problems := checks.lock_problems(data, runtime.requirements):
        place, cause, remedy = problems[0]
        raise ArchiveError(f"{place}: {cause}", hint=remedy)
    if runtime.server_packages and not interpreters.is_own(runtime.python):
        own_version = ".".join(map(str, sys.version_info[:2]))
        raise WorkerError(
            f"Python {runtime.python} cannot use the server's packages, which are those of Python {own_version}",
            hint=f'give the runtime python: "{own_version}", or lock all packages, without server_packages',
        )
    interpreter = interpreters.find(runtime.python)
    packages = server_packages() if runtime.server_packages else ()
    facts = [_FORMAT, hashlib.sha256(data).hexdigest(), interpreter.tag, interpreter.platform, packages]
    return VenvSpec(
        interpreter=interpreter,
        lock=lock,
        wheels=folder / runtime.wheels if runtime.wheels else None,
        server_packages=packages,
        key=hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32],
    )


def extract(archive: Archive, runtime: Runtime, folder: Path, *, wheels: bool = True) -> None:
    """Write the lock file and, with ``wheels``, the wheels of an archive to a folder, without the other members."""
    prefix = f"{runtime.wheels}/" if runtime.wheels and wheels else None
    for member in archive.members:
        if member.name == runtime.requirements or (prefix and member.name.startswith(prefix)):
            file = folder / member.name
            file.parent.mkdir(parents=True, exist_ok=True)
            with archive.stream(member.name) as content, file.open("xb") as copy:
                while chunk := content.read(1 << 20):
                    copy.write(chunk)


def server_packages() -> tuple[str, ...]:
    """Return the folders from which this process imports installed packages, in order."""
    folders = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    folders += [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    folders += site.getsitepackages()
    return tuple(dict.fromkeys(os.path.abspath(entry) for entry in folders if Path(entry).is_dir()))  # noqa: PTH100
