"""The server's log files, in TorchServe's layout or in JSON."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

from torchmar.server.http import Access
from torchmar.worker.process import request_log, trace_context

SERVER = logging.getLogger("torchmar.server")
WORKERS = logging.getLogger("torchmar.workers")
Layout = Literal["text", "json"]

_LAYOUTS = {
    SERVER: "[%(levelname)-5s] main %(name)s - %(message)s",
    WORKERS: "W-%(worker)s-%(model)s_%(version)s-stdout - %(message)s",
}
_FILES = {SERVER: "server.log", WORKERS: "workers.log"}
_JSON_FIELDS = ("model", "version", "worker", "request_id")
_SIZE = 20 << 20  # size limit of each file in bytes
_BACKUPS = 3
_CAPACITY = 100_000  # entries that wait to be written: those of many seconds, in about ten megabytes
_WRITE_INTERVAL_S = 0.2  # to wake the thread for each line would cost the event loop time
_LINES_PER_WRITE = 1000
_WARNING_INTERVAL_S = 60.0
_STDERR = 2
_CLOSE_TIMEOUT_S = 2.0

T = TypeVar("T")


def open_in(folder: Path, layout: Layout = "text", *, stderr: bool = False) -> Callable[[], None]:
    """Write messages of the server to ``server.log``, and output of workers to ``workers.log``.

    Args:
        folder: folder for these files; made if it does not exist.
        layout: TorchServe's lines, or an object of JSON on each: ``time``, ``level``, ``logger``, ``message``, and
            ``model``, ``version``, ``worker``, ``request_id`` and ``trace_id`` where they are known (``request_ids``
            and ``trace_ids`` of a batch).
        stderr: whether to write both to the standard error as well.

    Returns:
        A function to call at the end; it writes the last lines.
    """
    folder.mkdir(parents=True, exist_ok=True)
    printer = BackgroundWriter("stderr", _print) if stderr else None
    for logger, name in _FILES.items():
        file = RotatingFileHandler(folder / name, maxBytes=_SIZE, backupCount=_BACKUPS, encoding="utf-8", delay=False)
        logger.handlers = [file, _StderrHandler(printer)] if printer else [file]
        for handler in logger.handlers:
            handler.setFormatter(_Json() if layout == "json" else _Text(_LAYOUTS[logger]))
        logger.setLevel(logging.INFO)
        logger.propagate = False
    return printer.close if printer else lambda: None


def log_worker_output(worker: str, name: str, version: str, line: str) -> None:
    """Log a line of a worker: ``W-9000-NAME_VERSION-stdout``."""
    WORKERS.info("%s", line, extra={"worker": worker, "model": name, "version": version})


def log_version(level: int, name: str, version: str, text: str) -> None:
    """Log a sentence about a version of a model in the server's log, after the name of the version."""
    SERVER.log(level, "%s %s: %s", name, version, text, extra={"model": name, "version": version})


class BackgroundWriter(Generic[T]):
    """A thread that writes, so that the event loop never blocks; entries beyond its capacity are dropped and counted.

    Args:
        name: name of the destination, for the warning about dropped entries.
        write: called in the thread with entries, in order; if it raises an error, they count as dropped.
        capacity: largest number of waiting entries.
        at_once: largest number of entries in a call of ``write``.
        warn: whether dropped entries are logged, once a minute.
    """

    def __init__(
        self,
        name: str,
        write: Callable[[Sequence[T]], None],
        capacity: int = _CAPACITY,
        *,
        at_once: int = _LINES_PER_WRITE,
        warn: bool = True,
    ) -> None:
        self._name, self._write, self._capacity, self._at_once, self._warn = name, write, capacity, at_once, warn
        self._waiting: deque[T] = deque()
        # Two counters, so that each is changed by only one thread.
        self._rejected = self._failed = self._reported = 0
        self._reported_at = -_WARNING_INTERVAL_S
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """The number of dropped entries."""
        return self._rejected + self._failed

    @property
    def rejected(self) -> int:
        """The number of entries that were dropped because too many were waiting."""
        return self._rejected

    @property
    def waiting(self) -> int:
        """The number of waiting entries."""
        return len(self._waiting)

    def put(self, entry: T) -> None:
        """Queue an entry; it is written within a fraction of a second."""
        if len(self._waiting) < self._capacity:
            self._waiting.append(entry)
        else:
            self._rejected += 1

    def close(self, timeout_s: float = _CLOSE_TIMEOUT_S) -> None:
        """Write the waiting entries; give up after ``timeout_s``."""
        self._closed.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._closed.wait(_WRITE_INTERVAL_S):
            self._drain()
            if self._warn:
                self._report_dropped()
        self._drain()

    def _drain(self) -> None:
        while self._waiting:
            entries = [self._waiting.popleft() for _ in range(min(self._at_once, len(self._waiting)))]
            try:
                self._write(entries)
            except Exception:  # any error, even of a single entry, must not end the thread
                self._failed += len(entries)

    def _report_dropped(self) -> None:
        now, dropped = time.monotonic(), self.dropped
        if dropped > self._reported and now - self._reported_at >= _WARNING_INTERVAL_S:
            SERVER.warning("%s cannot keep up: %d lines are missing", self._name, dropped - self._reported)
            self._reported, self._reported_at = dropped, now


class AccessLog:
    """``access.log``: one line for each request, in TorchServe's layout followed by the request's ids, or in JSON.

    The ids are that of the request and, if there is one, that of its trace.

    Only the path of a URL is logged: the query may contain secrets.

    Args:
        folder: folder for the file; made if it does not exist.
        layout: text or json.
    """

    def __init__(self, folder: Path, layout: Layout = "text") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = RotatingFileHandler(
            folder / "access.log", maxBytes=_SIZE, backupCount=_BACKUPS, encoding="utf-8", delay=False
        )
        self._line = _json_line if layout == "json" else _text_line
        self._writer = BackgroundWriter[Access]("access.log", self._write)
        self.put = self._writer.put

    def close(self) -> None:
        """Write the waiting lines."""
        self._writer.close()

    def _write(self, entries: Sequence[Access]) -> None:
        # Only the handler's rollover is used; a log record for each line would take longer than the line.
        if (stream := self._file.stream) is not None:
            stream.write("".join(map(self._line, entries)))
            stream.flush()
        if stream is None or stream.tell() > _SIZE:
            self._file.doRollover()


class _StderrHandler(logging.Handler):
    """Writes lines in the background, because a pipe without a reader must not block the server."""

    def __init__(self, printer: BackgroundWriter[str]) -> None:
        super().__init__()
        self._printer = printer

    def emit(self, record: logging.LogRecord) -> None:
        self._printer.put(self.format(record))


def _print(lines: Sequence[str]) -> None:
    # Not sys.stderr: a thread blocked in it would prevent the process from ending.
    data = "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")
    while data:
        data = data[os.write(_STDERR, data) :]


class _Text(logging.Formatter):
    """TorchServe's log4j2 pattern."""

    def __init__(self, layout: str) -> None:
        super().__init__(f"%(asctime)s {layout}")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Return the time with milliseconds."""
        return _log4j_time(record.created)


class _Json(logging.Formatter):
    """One object on each line, whose message includes the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as JSON."""
        entry: dict[str, Any] = {
            "time": _iso_time(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.name == WORKERS.name:
            entry["message"], request_ids, trace_ids = request_log.split(entry["message"])
            if len(request_ids) == 1:
                entry |= {"request_id": request_ids[0], "trace_id": trace_ids[0]}
            elif request_ids:
                entry |= {"request_ids": request_ids, "trace_ids": trace_ids}
        if record.exc_info:
            entry["message"] += f"\n{self.formatException(record.exc_info)}"
        entry |= {key: value for key in _JSON_FIELDS if (value := getattr(record, key, None)) is not None}
        return json.dumps(entry, ensure_ascii=False)


def _text_line(access: Access) -> str:
    request = f'"{access.method} {_path(access.target)} HTTP/1.1" {access.status} {access.seconds * 1000:.3f}'
    trace_id = _trace_id(access)
    ids = f"{access.request_id or '-'} {trace_id}" if trace_id else access.request_id or "-"
    return f"{_log4j_time(access.time)} - /{access.client} {request} {ids}\n"


def _json_line(access: Access) -> str:
    entry = {
        "time": _iso_time(access.time),
        "client": access.client,
        "method": access.method,
        "path": _path(access.target),
        "status": access.status,
        "milliseconds": round(access.seconds * 1000, 3),
        **({"request_id": access.request_id} if access.request_id else {}),
        **({"trace_id": trace_id} if (trace_id := _trace_id(access)) else {}),
    }
    return json.dumps(entry, ensure_ascii=False) + "\n"


def _trace_id(access: Access) -> str:
    """Return the id of a request's trace; empty if there is none."""
    parent = trace_context.parse(access.traceparent) if access.traceparent else None
    return parent.trace_id if parent else ""


def _path(target: bytes) -> str:
    """Return the path as the client sent it; characters that would break a line or a quotation are percent-encoded."""
    return quote(target.partition(b"?")[0], safe="/:%@!$&'()*+,;=~[]")


def _log4j_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).isoformat(timespec="milliseconds").replace(".", ",")


def _iso_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="milliseconds")
