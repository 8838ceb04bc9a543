"""The folder of environments: complete ones, those in use, and the removal of others.

An environment is built at its final path, because its programs contain it, and is complete once its mark exists. Each
has a lock file beside it: users hold it shared, a builder or remover exclusively. The kernel releases the locks of
processes that have ended, in whatever way.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchmar import file_lock
from torchmar.errors import WorkerError

VARIABLE = "TORCHMAR_VENV_FOLDER"
_MARK = "torchmar.json"
_LOCK = ".lock"
# Variables that would bring other packages, or another interpreter, into a process of an environment.
_UNSET = ("PYTHONPATH", "PYTHONHOME", "CONDA_PREFIX")


@dataclass(frozen=True)
class Venv:
    """A complete environment, which is in use until it is closed.

    Attributes:
        folder: folder of the environment.
    """

    folder: Path
    _lock: int = field(default=-1, repr=False, compare=False)

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    def variables(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Return the environment variables for a process in the environment."""
        inherited = {name: value for name, value in environment.items() if name not in _UNSET}
        path = os.pathsep.join([str(self.folder / "bin"), inherited.get("PATH", os.defpath)])
        return {**inherited, "VIRTUAL_ENV": str(self.folder), "PATH": path}

    def close(self) -> None:
        """Stop using the environment, so that it can be removed unless other processes use it."""
        with contextlib.suppress(OSError):
            if self._lock >= 0:
                os.close(self._lock)


@dataclass(frozen=True)
class Entry:
    """An environment in the folder.

    Attributes:
        folder: folder of the environment.
        python: version of its Python; empty if it is not complete.
        packages: its packages, as NAME==VERSION.
        size: bytes on the disk, including files shared with uv's cache.
        used: time of its last use, in seconds since 1970.
        in_use: whether a process uses or builds it now.
    """

    folder: Path
    python: str
    packages: tuple[str, ...]
    size: int
    used: float
    in_use: bool


def root() -> Path:
    """Return the folder of environments: that of the variable ``TORCHMAR_VENV_FOLDER``, or one in the user's cache."""
    if configured := os.environ.get(VARIABLE):
        return Path(configured).expanduser().absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache.absolute() / "torchmar" / "venvs"


def use(folder: Path) -> Venv | None:
    """Return an environment if it is complete, otherwise None. Blocks while another process builds it."""
    lock = folder.with_name(folder.name + _LOCK)
    if not folder.is_dir():
        return None
    descriptor = _acquire(lock, fcntl.LOCK_SH)
    if is_complete(folder):
        with contextlib.suppress(OSError):  # the environment of another user may be read-only
            os.utime(folder / _MARK)
        return Venv(folder, descriptor)
    os.close(descriptor)
    return None


@contextlib.contextmanager
def building(folder: Path) -> Iterator[int]:
    """Hold an environment for a build; yield the lock's descriptor, which processes of the build inherit.

    Raises:
        WorkerError: the folder is not writable.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder.parent, error) from None
    lock = folder.with_name(folder.name + _LOCK)
    descriptor = _acquire(lock, fcntl.LOCK_EX)
    try:
        yield descriptor
    finally:
        if not folder.exists():
            lock.unlink(missing_ok=True)
        os.close(descriptor)


def complete(folder: Path, facts: Mapping[str, Any]) -> None:
    """Mark an environment as complete."""
    part = folder / f"{_MARK}.part"
    part.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    part.replace(folder / _MARK)


def is_complete(folder: Path) -> bool:
    """Return whether an environment can be used."""
    # The interpreter is a link, whose target may have been removed from the system.
    return (folder / _MARK).is_file() and (folder / "bin" / "python").exists()


def entries(place: Path) -> list[Entry]:
    """Return the environments in a folder, the most recently used one first."""
    environments = []
    for folder in sorted(place.glob("*")) if place.is_dir() else ():
        if not folder.is_dir() or not folder.with_name(folder.name + _LOCK).exists():
            continue  # not an environment of torchmar
        mark = _read_mark(folder)
        python = str(mark.get("python", "")) if is_complete(folder) else ""
        with contextlib.suppress(OSError):
            last_use = ((folder / _MARK) if python else folder).stat().st_mtime
            packages = tuple(map(str, mark.get("packages", ())))
            environments.append(Entry(folder, python, packages, _size(folder), last_use, _is_held(folder)))
    return sorted(environments, key=lambda entry: -entry.used)


def clean(place: Path, unused_seconds: float = 0.0) -> list[Entry]:
    """Remove the environments that no process uses; return them.

    Args:
        place: the folder of environments.
        unused_seconds: time since the last use; environments with a later use are kept.
    """
    removed = []
    for entry in entries(place):
        if entry.in_use or time.time() - entry.used < unused_seconds:
            continue
        lock = entry.folder.with_name(entry.folder.name + _LOCK)
        try:
            descriptor = os.open(lock, os.O_RDWR)
        except FileNotFoundError:  # another command is removing it
            continue
        except OSError as error:
            raise _unwritable(place, error) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(entry.folder)
            lock.unlink()
            removed.append(entry)
        except BlockingIOError:  # another process has started to use it
            continue
        except OSError as error:
            raise _unwritable(entry.folder, error) from None
        finally:
            os.close(descriptor)
    return removed


def _acquire(lock: Path, kind: int) -> int:
    """Return the descriptor of a lock file, after it was locked."""
    try:
        return file_lock.acquire(lock, kind)
    except OSError as error:
        raise _unwritable(lock.parent, error) from None


def _is_held(folder: Path) -> bool:
    try:
        descriptor = os.open(folder.with_name(folder.name + _LOCK), os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _read_mark(folder: Path) -> dict[str, Any]:
    try:
        document = json.loads((folder / _MARK).read_bytes())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.lstat().st_blocks * 512
    return total


def _unwritable(folder: Path, error: OSError) -> WorkerError:
    return WorkerError(
        f"{folder}, the folder of environments, cannot be written: {error.strerror}",
        hint=f"set {VARIABLE}, or torchmar_venv_folder of a server, to another folder",
    )
