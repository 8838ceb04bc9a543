"""The record of a server that runs: enough for another process to find and end it."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import psutil

from torchmar.connection import KEY_FILE, RUN_FOLDER
from torchmar.engines import EngineName
from torchmar.errors import EngineError

RECORD = "server.json"
MAIN_CLASS = "org.pytorch.serve.ModelServer"
MODULE = "torchmar.server"
START_SECONDS = 60.0  # until a server has to answer
_STOP_SECONDS = 40.0  # the built-in server gives requests that are there half a minute
_OURS = (RECORD, KEY_FILE, "config.properties")


@dataclass(frozen=True)
class Running:
    """A server's process, which leads a group with its workers, and the folders that go with it."""

    pid: int
    started: float  # with the pid it names one process for good; pids come again
    folder: str
    temporary: str
    engine: EngineName = "torchserve"

    @classmethod
    def of(cls, pid: int, folder: Path, temporary: Path, engine: EngineName = "torchserve") -> Running:
        """Return the record of a process that has just been started."""
        return cls(pid, psutil.Process(pid).create_time(), str(folder), str(temporary), engine)

    @classmethod
    def find(cls, folder: Path) -> Running | None:
        """Return the server that runs with ``folder``; None when there is none, or none any more."""
        found = cls._recorded(folder)
        return found if found and found.alive else None

    @classmethod
    def killed(cls, folder: Path) -> Running | None:
        """Return the server that ran with ``folder`` and ended without being stopped; None when there is none."""
        found = cls._recorded(folder)
        return found if found and not found.alive else None

    @classmethod
    def everywhere(cls) -> list[Running]:
        """Return every server on this machine that torchmar runs and that this user may look at, by folder.

        The table of processes is asked, so that no list of servers can be out of date.
        """
        folders = {folder for process in servers() if (folder := folder_of(process))}
        return [running for folder in sorted(folders) if (running := cls.find(folder))]

    @classmethod
    def _recorded(cls, folder: Path) -> Running | None:
        try:
            return cls(**json.loads((folder / RECORD).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def save(self) -> None:
        """Write the record into the server's folder."""
        Path(self.folder, RECORD).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.started) < 1 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def stop(self) -> None:
        """End the server and every process of its group; remove its token and temporary files.

        Raises:
            EngineError: it is another user's.
        """
        if self.alive:
            try:
                os.kill(self.pid, signal.SIGTERM)
            except PermissionError:
                raise EngineError(f"the server of {self.folder} (process {self.pid}) is another user's") from None
            except ProcessLookupError:
                pass
        try:
            deadline = time.monotonic() + _STOP_SECONDS
            while self.alive and time.monotonic() < deadline:
                time.sleep(0.05)
        finally:  # a second Ctrl-C does not wait
            # The workers that it did not end itself; a group outlives its leader.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            self.clear()

    def clear(self) -> None:
        """Remove the token, the record and the temporary files of a server that has ended."""
        for name in _OURS:
            with contextlib.suppress(OSError):
                Path(self.folder, name).unlink(missing_ok=True)
        shutil.rmtree(self.temporary, ignore_errors=True)


def servers() -> Iterator[psutil.Process]:
    """Yield the process of every server that this user may look at, of either engine and whoever started it."""
    for process in psutil.process_iter(["cmdline"]):
        if _engine(process.info["cmdline"] or ()):
            yield process


@dataclass(frozen=True)
class Other:
    """A server that torchmar has no record of.

    Attributes:
        pid: its process.
        what: it is: ``a TorchServe whose run folder /a/b is gone``.
        gone: whether its run folder is.
    """

    pid: int
    what: str
    gone: bool


def others() -> Iterator[Other]:
    """Yield every server that torchmar has no record of."""
    for process in servers():
        if found := other(process):
            yield found


def other(process: psutil.Process) -> Other | None:
    """Return what the process of a server is that is nobody's; None for a server of torchmar, and for what is none."""
    words = _words(process)
    engine, place = _engine(words), _place(words)
    if engine is None or (place and (place / RECORD).is_file()):
        return None
    what = "a TorchServe" if engine == "torchserve" else "a built-in server"
    if place and place.is_absolute() and not place.exists():
        return Other(process.pid, f"{what} whose run folder {place} is gone", gone=True)
    return Other(process.pid, f"{what} that torchmar did not start here", gone=False)


def folder_of(process: psutil.Process) -> Path | None:
    """Return the run folder of a server that torchmar started: the place of its configuration; None for others."""
    words = _words(process)
    place = _place(words)
    return place if _engine(words) and place and (place / RECORD).is_file() else None


def option(folder: Path) -> str:
    """Return how a command is told of a run folder: ``" --run-folder b"``; empty for the default one."""
    place, here = folder.resolve(), Path.cwd()
    if place == RUN_FOLDER.resolve():
        return ""
    return f" --run-folder {shlex.quote(str(place.relative_to(here) if place.is_relative_to(here) else place))}"


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _place(words: Sequence[str]) -> Path | None:
    return next((Path(value).parent for flag, value in pairwise(words) if flag == "-f"), None)


def _engine(words: Sequence[str]) -> EngineName | None:
    if MAIN_CLASS in words:
        return "torchserve"
    return "builtin" if ("-m", MODULE) in pairwise(words) else None
