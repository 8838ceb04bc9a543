"""Log lines of a replica, collected for the fronts, which write the logs of all nodes."""

from __future__ import annotations

import logging
from collections import deque
from typing import NamedTuple

from torchmar.server.telemetry import logs

_CAPACITY = 2000  # lines between two announcements; further lines replace the oldest


class LogLine(NamedTuple):
    """A line of a log.

    Attributes:
        worker: whether the line is a worker's output; otherwise the replica's own server has logged it.
        level: level, as in the logging module.
        text: the line, without a line break at its end.
    """

    worker: bool
    level: int
    text: str


class LogLines(logging.Handler):
    """A handler that collects log lines of this process until they are taken."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: deque[LogLine] = deque(maxlen=_CAPACITY)
        self._dropped = 0

    @classmethod
    def collect(cls) -> LogLines:
        """Start to collect the log lines of this process."""
        lines = cls()
        for logger in (logs.SERVER, logs.WORKERS):
            logger.handlers = [lines]
            logger.setLevel(logging.INFO)
            logger.propagate = False
        return lines

    def emit(self, record: logging.LogRecord) -> None:
        """Record a line; of the replica's own server only warnings, which also matter to its front."""
        worker = record.name == logs.WORKERS.name
        if not worker and record.levelno < logging.WARNING:
            return
        if len(self._lines) == _CAPACITY:
            self._dropped += 1
        self._lines.append(LogLine(worker, record.levelno, text_of(record)))

    def take(self) -> list[LogLine]:
        """Return the lines since the previous call; the first one tells how many are missing, if any are."""
        lines, dropped = list(self._lines), self._dropped
        self._lines.clear()
        self._dropped = 0
        if dropped:
            lines.insert(0, LogLine(False, logging.WARNING, f"{dropped} lines of its log are missing"))
        return lines


def text_of(record: logging.LogRecord) -> str:
    """Return the message of a log record, with its traceback if there is one."""
    text = record.getMessage()
    return f"{text}\n{logging.Formatter().formatException(record.exc_info)}" if record.exc_info else text


def write(line: LogLine, replica: str, node: str, name: str, version: str) -> None:
    """Write a log line of a replica into the logs of this server."""
    if line.worker:
        logs.log_worker_output(replica, name, version, line.text)
    else:
        extra = {"model": name, "version": version, "worker": replica}
        logs.SERVER.log(line.level, "replica %s on node %s: %s", replica, node, line.text, extra=extra)
