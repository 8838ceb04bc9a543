"""The record of a running server, with which other processes find and stop it."""

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

from torchmar import properties
from torchmar.connection import KEY_FILE, RUN_FOLDER
from torchmar.engines import EngineName
from torchmar.errors import EngineError, TorchmarError
from torchmar.process_handle import ProcessHandle, identify

RECORD = "server.json"
MARK = "TORCHMAR_SERVER_MARK"  # environment variable that a server's processes inherit
MAIN_CLASS = "org.pytorch.serve.ModelServer"
MODULE = "torchmar.server"
CLUSTER_MODULE = "torchmar.cluster"
START_SECONDS = 60.0  # time limit for a server's first answer
_STOP_SECONDS = 40.0  # because the built-in server waits half a minute for open requests
_SETTLE_SECONDS = 5.0  # time limit for the descendants of a server to end after it
_FILES = (RECORD, KEY_FILE, "config.properties")


@dataclass(frozen=True, kw_only=True)
class ServerRecord:
    """A server's process and folders.

    Attributes:
        pid: process id.
        started: time of its start, in seconds since 1970.
        folder: run folder.
        temporary: the server's temporary folder.
        engine: kind of server.
        identity: value that distinguishes it from later processes with the same pid; see `torchmar.process_handle`.
        mark: value of `MARK` in the environment of the server and its descendants.
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
        """Return the record of a process that was just started with `MARK` in its environment."""
        started = psutil.Process(pid).create_time()
        return cls(
            pid=pid,
            started=started,
            folder=str(folder),
            temporary=str(temporary),
            engine=engine,
            identity=identify(pid),
            mark=mark,
        )

    @classmethod
    def find(cls, folder: Path) -> ServerRecord | None:
        """Return the running server of a run folder; None if there is none."""
        record = cls._read(folder)
        return record if record and record.alive else None

    @classmethod
    def killed(cls, folder: Path) -> ServerRecord | None:
        """Return the server of a run folder that ended without being stopped; None if there is none."""
        record = cls._read(folder)
        return record if record and not record.alive else None

    @classmethod
    def everywhere(cls) -> list[ServerRecord]:
        """Return all running servers on this machine that torchmar manages and this user can see, sorted by folder.

        They are found in the process table, because a separate list could be outdated.
        """
        folders = {folder for process in servers() if (folder := folder_of(process))}
        return [record for folder in sorted(folders) if (record := cls.find(folder))]

    @classmethod
    def _read(cls, folder: Path) -> ServerRecord | None:
        try:
            return cls(**json.loads((folder / RECORD).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def save(self) -> None:
        """Write the record into the server's folder."""
        Path(self.folder, RECORD).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @property
    def alive(self) -> bool:
        """Whether the process is running."""
        return bool(self.identity) and identify(self.pid) == self.identity

    def stop(self) -> None:
        """End the server and all its processes; remove its token and temporary files.

        If the server has ended by itself, its remaining processes are found by their `MARK`, because another process
        may have its pid or its process group by now.

        Raises:
            EngineError: the server belongs to another user.
        """
        with contextlib.ExitStack() as stack:
            server = self._open(stack)
            descendants = _descendants(server, stack) if server else []
            try:
                if server and server.signal(signal.SIGTERM):
                    _wait([server], _STOP_SECONDS + self._shutdown_delay())
            except PermissionError:
                raise EngineError(f"the server of {self.folder} (process {self.pid}) is another user's") from None
            finally:  # after a second Ctrl-C, without waiting
                with contextlib.suppress(PermissionError):
                    if server:
                        server.signal(signal.SIGKILL)
                    # The descendants of the built-in server, including processes of handlers, end after it.
                    _wait(descendants, _SETTLE_SECONDS)
                    for process in (*descendants, *self._marked(stack)):
                        process.signal(signal.SIGKILL)
                    self.clear()

    def _shutdown_delay(self) -> int:
        """Return the seconds in which the server still accepts requests after SIGTERM."""
        with contextlib.suppress(TorchmarError, ValueError):
            return int(properties.read(Path(self.folder, "config.properties")).get("torchmar_shutdown_delay") or 0)
        return 0

    def _open(self, stack: contextlib.ExitStack) -> ProcessHandle | None:
        with contextlib.suppress(ProcessLookupError):
            process = stack.enter_context(ProcessHandle(self.pid))
            if process.identity == self.identity:
                return process
        return None

    def _marked(self, stack: contextlib.ExitStack) -> Iterator[ProcessHandle]:
        """Yield all processes with the server's mark, except this process."""
        for pid in psutil.pids() if self.mark else ():
            with contextlib.suppress(ProcessLookupError):
                process = stack.enter_context(ProcessHandle(pid))
                if pid != os.getpid() and process.environment(MARK) == self.mark:
                    yield process

    def clear(self) -> None:
        """Remove the token, the record and the temporary files of a server that has ended."""
        for name in _FILES:
            with contextlib.suppress(OSError):
                Path(self.folder, name).unlink(missing_ok=True)
        shutil.rmtree(self.temporary, ignore_errors=True)


def new_mark() -> str:
    """Return a unique value of `MARK`."""
    return secrets.token_hex(8)


def _descendants(server: ProcessHandle, stack: contextlib.ExitStack) -> list[ProcessHandle]:
    """Return the descendants of a server."""
    handles = []
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(server.pid).children(recursive=True):
            with contextlib.suppress(ProcessLookupError):
                process = stack.enter_context(ProcessHandle(child.pid))
                if child.is_running():  # then the handle belongs to this child, not to a later process with its pid
                    handles.append(process)
    return handles if server.runs else []


def _wait(processes: Sequence[ProcessHandle], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(process.runs for process in processes) and time.monotonic() < deadline:
        time.sleep(0.05)


def servers() -> Iterator[psutil.Process]:
    """Yield the processes of all servers of both engines that this user can see, regardless of who started them."""
    for process in psutil.process_iter(["cmdline"]):
        if _engine(process.info["cmdline"] or ()):
            yield process


@dataclass(frozen=True)
class UnmanagedServer:
    """A server without a record of torchmar.

    Attributes:
        pid: process id.
        what: description, such as ``a TorchServe whose run folder /a/b is gone``.
        gone: whether its run folder no longer exists.
    """

    pid: int
    what: str
    gone: bool


def unmanaged_servers() -> Iterator[UnmanagedServer]:
    """Yield every server without a record of torchmar."""
    for process in servers():
        if server := unmanaged(process):
            yield server


def unmanaged(process: psutil.Process) -> UnmanagedServer | None:
    """Describe a server process without a record of torchmar; None if it has one, or is no server."""
    words = _words(process)
    engine, folder = _engine(words), _folder(words)
    if engine is None or (folder and (folder / RECORD).is_file()):
        return None
    description = "a TorchServe" if engine == "torchserve" else "a built-in server"
    if folder and folder.is_absolute() and not folder.exists():
        return UnmanagedServer(process.pid, f"{description} whose run folder {folder} is gone", gone=True)
    return UnmanagedServer(process.pid, f"{description} that torchmar did not start here", gone=False)


def folder_of(process: psutil.Process) -> Path | None:
    """Return the run folder of a server with a record of torchmar; None for any other process."""
    words = _words(process)
    folder = _folder(words)
    return folder if _engine(words) and folder and (folder / RECORD).is_file() else None


def configured(process: psutil.Process) -> tuple[EngineName, Path] | None:
    """Return a server's engine and its configuration file; None for any other process."""
    words = _words(process)
    engine, file = _engine(words), _config(words)
    if engine is None or file is None:
        return None
    try:
        return engine, process.cwd() / file
    except psutil.Error:
        return engine, file


def option(folder: Path) -> str:
    """Return the option for a run folder: ``" --run-folder b"``; empty for the default folder."""
    path, cwd = folder.resolve(), Path.cwd()
    if path == RUN_FOLDER.resolve():
        return ""
    return f" --run-folder {shlex.quote(str(path.relative_to(cwd) if path.is_relative_to(cwd) else path))}"


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _config(words: Sequence[str]) -> Path | None:
    return next((Path(value) for flag, value in pairwise(words) if flag == "-f"), None)


def _folder(words: Sequence[str]) -> Path | None:
    file = _config(words)
    return file and file.parent


def _engine(words: Sequence[str]) -> EngineName | None:
    if MAIN_CLASS in words:
        return "torchserve"
    pairs = list(pairwise(words))
    return "ray" if ("-m", CLUSTER_MODULE) in pairs else "builtin" if ("-m", MODULE) in pairs else None
