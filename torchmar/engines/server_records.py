"""The record of a running server: enough for another process to find and end it."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
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
from torchmar.process_handle import ProcessHandle, identify

RECORD = "server.json"
MARK = "TORCHMAR_SERVER_MARK"  # a variable that a server and all that it starts have in their environment
MAIN_CLASS = "org.pytorch.serve.ModelServer"
MODULE = "torchmar.server"
START_SECONDS = 60.0  # until a server has to answer
_STOP_SECONDS = 40.0  # the built-in server gives requests that are there half a minute
_SETTLE_SECONDS = 5.0  # that processes below a server have to end after it
_OURS = (RECORD, KEY_FILE, "config.properties")


@dataclass(frozen=True)
class ServerRecord:
    """A server's process, and the folders that go with it.

    Attributes:
        started: when, in seconds since 1970.
        identity: what no other process has that gets the pid later; see `torchmar.process_handle`.
        mark: the value of `MARK` in the server's environment, and of what it starts.
    """

    pid: int
    started: float
    folder: str
    temporary: str
    engine: EngineName = "torchserve"
    identity: str = ""
    mark: str = ""

    @classmethod
    def of(
        cls, pid: int, folder: Path, temporary: Path, engine: EngineName = "torchserve", *, mark: str = ""
    ) -> ServerRecord:
        """Return the record of a process that has just been started, with `new_mark` in its environment."""
        started = psutil.Process(pid).create_time()
        return cls(pid, started, str(folder), str(temporary), engine, identify(pid), mark)

    @classmethod
    def find(cls, folder: Path) -> ServerRecord | None:
        """Return the server that runs with ``folder``; None when there is none, or none any more."""
        found = cls._recorded(folder)
        return found if found and found.alive else None

    @classmethod
    def killed(cls, folder: Path) -> ServerRecord | None:
        """Return the server that ran with ``folder`` and ended without being stopped; None when there is none."""
        found = cls._recorded(folder)
        return found if found and not found.alive else None

    @classmethod
    def everywhere(cls) -> list[ServerRecord]:
        """Return every server on this machine that torchmar runs and that this user may look at, by folder.

        The table of processes is asked, so that no list of servers can be out of date.
        """
        folders = {folder for process in servers() if (folder := folder_of(process))}
        return [running for folder in sorted(folders) if (running := cls.find(folder))]

    @classmethod
    def _recorded(cls, folder: Path) -> ServerRecord | None:
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
        return bool(self.identity) and identify(self.pid) == self.identity

    def stop(self) -> None:
        """End the server and every process that it has started; remove its token and temporary files.

        A server that has ended by itself may have left processes, which are known by their `MARK`: its pid, and the
        number of its group, may be another's by now.

        Raises:
            EngineError: it is another user's.
        """
        with contextlib.ExitStack() as stack:
            server = self._open(stack)
            below = _below(server, stack) if server else []
            try:
                if server and server.signal(signal.SIGTERM):
                    _wait([server], _STOP_SECONDS)
            except PermissionError:
                raise EngineError(f"the server of {self.folder} (process {self.pid}) is another user's") from None
            finally:  # a second Ctrl-C does not wait
                with contextlib.suppress(PermissionError):
                    if server:
                        server.signal(signal.SIGKILL)
                    # What is below the built-in server ends after it, with all that handlers have started.
                    _wait(below, _SETTLE_SECONDS)
                    for process in (*below, *self._marked(stack)):
                        process.signal(signal.SIGKILL)
                    self.clear()

    def _open(self, stack: contextlib.ExitStack) -> ProcessHandle | None:
        with contextlib.suppress(ProcessLookupError):
            process = stack.enter_context(ProcessHandle(self.pid))
            if process.identity == self.identity:
                return process
        return None

    def _marked(self, stack: contextlib.ExitStack) -> Iterator[ProcessHandle]:
        """Yield every process that the server has started, or that one of these has; but for this one."""
        for pid in psutil.pids() if self.mark else ():
            with contextlib.suppress(ProcessLookupError):
                process = stack.enter_context(ProcessHandle(pid))
                if pid != os.getpid() and process.environment(MARK) == self.mark:
                    yield process

    def clear(self) -> None:
        """Remove the token, the record and the temporary files of a server that has ended."""
        for name in _OURS:
            with contextlib.suppress(OSError):
                Path(self.folder, name).unlink(missing_ok=True)
        shutil.rmtree(self.temporary, ignore_errors=True)


def new_mark() -> str:
    """Return a value of `MARK` that no other server has."""
    return secrets.token_hex(8)


def _below(server: ProcessHandle, stack: contextlib.ExitStack) -> list[ProcessHandle]:
    """Return what runs below a server."""
    found = []
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(server.pid).children(recursive=True):
            with contextlib.suppress(ProcessLookupError):
                process = stack.enter_context(ProcessHandle(child.pid))
                if child.is_running():  # and so it is what was opened
                    found.append(process)
    return found if server.runs else []


def _wait(processes: Sequence[ProcessHandle], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(process.runs for process in processes) and time.monotonic() < deadline:
        time.sleep(0.05)


def servers() -> Iterator[psutil.Process]:
    """Yield the process of every server that this user may look at, of either engine and whoever started it."""
    for process in psutil.process_iter(["cmdline"]):
        if _engine(process.info["cmdline"] or ()):
            yield process


@dataclass(frozen=True)
class UnmanagedServer:
    """A server that torchmar has no record of.

    Attributes:
        pid: its process.
        what: it is: ``a TorchServe whose run folder /a/b is gone``.
        gone: whether its run folder is.
    """

    pid: int
    what: str
    gone: bool


def unmanaged_servers() -> Iterator[UnmanagedServer]:
    """Yield every server that torchmar has no record of."""
    for process in servers():
        if found := other(process):
            yield found


def other(process: psutil.Process) -> UnmanagedServer | None:
    """Describe a server process that torchmar has no record of; None if it manages it or it is no server."""
    words = _words(process)
    engine, place = _engine(words), _place(words)
    if engine is None or (place and (place / RECORD).is_file()):
        return None
    what = "a TorchServe" if engine == "torchserve" else "a built-in server"
    if place and place.is_absolute() and not place.exists():
        return UnmanagedServer(process.pid, f"{what} whose run folder {place} is gone", gone=True)
    return UnmanagedServer(process.pid, f"{what} that torchmar did not start here", gone=False)


def folder_of(process: psutil.Process) -> Path | None:
    """Return the run folder of a server that torchmar started: the place of its configuration; None for others."""
    words = _words(process)
    place = _place(words)
    return place if _engine(words) and place and (place / RECORD).is_file() else None


def option(folder: Path) -> str:
    """Return the option that names a run folder: ``" --run-folder b"``; empty for the default one."""
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
