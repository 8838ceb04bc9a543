"""The log of another server on this machine, read from its run folder into the console's log."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from torchmar.engines import logs
from torchmar.engines.logs import Entry, Follower
from torchmar.server.telemetry import tracebacks
from torchmar.server.telemetry.recent_logs import RecentLogs

_FIRST = 300  # number of earlier entries that are shown
_LEVELS = {"WARN": "WARNING", "FATAL": "CRITICAL", "DEBUG": "INFO", "TRACE": "INFO", "": "INFO"}


class LogReader:
    """Reads new entries of a run folder. Blocking.

    Args:
        folder: the run folder.
        recent: receives the entries.
    """

    def __init__(self, folder: Path, recent: RecentLogs) -> None:
        self._recent = recent
        self._follower = Follower(folder)
        first = logs.recent(folder, _FIRST)
        self._shown = set(first)  # entries written between the two calls are in both
        self._add(first)

    def read(self) -> None:
        """Add the entries since the previous call."""
        self._add([entry for entry in self._follower.read() if entry not in self._shown])
        self._shown.clear()

    def _add(self, entries: list[Entry]) -> None:
        for entry in entries:
            level = "ERROR" if tracebacks.TRACEBACK in entry.text else _LEVELS.get(entry.level, entry.level)
            created = datetime.fromisoformat(entry.time).timestamp()
            self._recent.add(created, level, entry.text, entry.model, entry.version, entry.worker)
