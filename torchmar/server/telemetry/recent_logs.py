"""The latest entries of the server's logs, in bounded memory; a traceback is one entry."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from torchmar.server.telemetry import logs, tracebacks

_CAPACITY = 2000
_MOST_CHARACTERS = 2 << 20  # limit for all texts together
_LONGEST = 1 << 16  # characters of one text


@dataclass(slots=True)
class LogEntry:
    """An entry of the log.

    Attributes:
        number: number of the entry; rises by one with each entry.
        time: time in seconds since 1970.
        level: ``INFO``, ``WARNING`` or ``ERROR``; for the output of a worker, ``ERROR`` for a traceback.
        text: text; it has several lines for a traceback.
        model: name of the model; empty for an entry of the server.
        version: version of the model; empty for an entry of the server.
        worker: id of the worker; empty for an entry of the server.
        request_id: id of the request in question; empty: none, or unknown.
        change: value of `RecentLogs.changes` when this entry last changed.
    """

    number: int
    time: float
    level: str
    text: str
    model: str
    version: str
    worker: str
    request_id: str
    change: int


class RecentLogs(logging.Handler):
    """A handler that keeps the latest entries of the server's loggers.

    Attributes:
        changes: number of times that an entry was added or extended.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.changes = 0
        self._entries: deque[LogEntry] = deque()
        self._characters = 0
        self._number = 0
        self._open: dict[str, tuple[LogEntry, float]] = {}  # tracebacks by worker, with the time of their last line

    def open(self) -> None:
        """Start to keep entries."""
        for logger in (logs.SERVER, logs.WORKERS):
            logger.addHandler(self)

    def close(self) -> None:
        """Keep no further entries."""
        for logger in (logs.SERVER, logs.WORKERS):
            logger.removeHandler(self)
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record; called by any thread, which holds the handler's lock."""
        text = record.getMessage()
        if record.exc_info:
            text = f"{text}\n{logging.Formatter().formatException(record.exc_info)}"
        is_output = record.name == logs.WORKERS.name
        worker = str(getattr(record, "worker", ""))
        self.changes += 1
        if is_output and self._continue(worker, text, record.created):
            return
        traceback = is_output and text.startswith(tracebacks.TRACEBACK)
        names = [str(getattr(record, name, "")) for name in ("model", "version", "worker", "request_id")]
        entry = self._append(record.created, "ERROR" if traceback else record.levelname, text, *names)
        if traceback:
            self._open[worker] = entry, record.created

    def add(self, created: float, level: str, text: str, model: str, version: str, worker: str) -> None:
        """Keep a complete entry; see `LogEntry`."""
        with self.lock:  # type: ignore[union-attr]
            self.changes += 1
            self._append(created, level, text, model, version, worker)

    def _append(
        self, created: float, level: str, text: str, model: str, version: str, worker: str, request_id: str = ""
    ) -> LogEntry:
        self._number += 1
        entry = LogEntry(
            number=self._number,
            time=created,
            level=level,
            text=text[:_LONGEST],
            model=model,
            version=version,
            worker=worker,
            request_id=request_id,
            change=self.changes,
        )
        self._entries.append(entry)
        self._characters += len(entry.text)
        while len(self._entries) > _CAPACITY or (self._characters > _MOST_CHARACTERS and len(self._entries) > 1):
            dropped = self._entries.popleft()
            self._characters -= len(dropped.text)
            if (open_entry := self._open.get(dropped.worker)) and open_entry[0] is dropped:
                del self._open[dropped.worker]
        return entry

    def _continue(self, worker: str, line: str, now: float) -> bool:
        """Add a line to the open traceback of a worker; return False if it belongs to none."""
        if (open_entry := self._open.get(worker)) is None:
            return False
        entry, last = open_entry
        if not tracebacks.continues(entry.text, line, now - last):
            del self._open[worker]
            return False
        if len(entry.text) + len(line) < _LONGEST:
            entry.text = f"{entry.text}\n{line}"
            self._characters += len(line) + 1
        entry.change = self.changes
        self._open[worker] = entry, now
        return True

    def entries(
        self, model: str = "", version: str = "", worker: str = "", *, after: int = 0, limit: int = _CAPACITY
    ) -> list[LogEntry]:
        """Return the latest entries, in their order.

        Args:
            model: model of the entries; empty: all entries, including the server's.
            version: version of the model; empty: all versions.
            worker: id of the worker; empty: all workers.
            after: value of `changes` after which the entries changed.
            limit: largest number of entries.
        """
        if after >= self.changes:
            return []
        with self.lock:  # type: ignore[union-attr]
            selected = list(self._selected(model, version, worker, after))
        return selected[max(0, len(selected) - limit) :]

    def _selected(self, model: str, version: str, worker: str, after: int) -> Iterator[LogEntry]:
        for entry in self._entries:
            if (
                entry.change > after
                and model in ("", entry.model)
                and version in ("", entry.version)
                and worker in ("", entry.worker)
            ):
                yield entry
