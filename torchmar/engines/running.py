"""The record of a server that runs: enough for another process to find and end it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from torchmar.connection import KEY_FILE

RECORD = "server.json"
_STOP_SECONDS = 15.0
_OURS = (RECORD, KEY_FILE, "config.properties")


@dataclass(frozen=True)
class Running:
    """A server's process, which leads a group with its workers, and the folders that go with it."""

    pid: int
    started: float  # with the pid it names one process for good; pids come again
    folder: str
    temporary: str

    @classmethod
    def of(cls, pid: int, folder: Path, temporary: Path) -> Running:
        """Return the record of a process that has just been started."""
        return cls(pid, psutil.Process(pid).create_time(), str(folder), str(temporary))

    @classmethod
    def find(cls, folder: Path) -> Running | None:
        """Return the server that runs with ``folder``; None when there is none, or none any more."""
        try:
            found = cls(**json.loads((folder / RECORD).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return found if found.alive else None

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
        """End the server and every process of its group; remove its token and temporary files."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
            deadline = time.monotonic() + _STOP_SECONDS
            while self.alive and time.monotonic() < deadline:
                time.sleep(0.05)
        # The workers that it did not end itself; a group outlives its leader.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        for name in _OURS:
            Path(self.folder, name).unlink(missing_ok=True)
        shutil.rmtree(self.temporary, ignore_errors=True)
