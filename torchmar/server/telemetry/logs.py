"""The server's log files, in TorchServe's layout or as JSON."""

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

SERVER = logging.getLogger("torchmar.server")
WORKERS = logging.getLogger("torchmar.workers")
Layout = Literal["text", "json"]

_LAYOUTS = {
    SERVER: "[%(levelname)-5s] main %(name)s - %(message)s",
    WORKERS: "W-%(worker)s-%(model)s_%(version)s-stdout - %(message)s",
}
_FILES = {SERVER: "server.log", WORKERS: "workers.log"}
_KNOWN = ("model", "version", "worker", "request_id")
_SIZE = 20 << 20  # bytes, of each file
_KEPT = 3
# What waits for a thread that writes: many seconds' worth, and some ten megabytes.
_MOST = 100_000
_EVERY = 0.2  # seconds between two looks at what waits: to wake a thread for each line would cost the loop
_AT_ONCE = 1000  # lines
_TOLD_EVERY = 60.0  # seconds between two warnings
_STDERR = 2
_LAST_SECONDS = 2.0  # for what is left when the server ends

T = TypeVar("T")


def open_in(folder: Path, layout: Layout = "text", *, stderr: bool = False) -> Callable[[], None]:
    """Write what the server warns of to ``server.log``, and what workers print to ``workers.log``.

    Args:
        folder: where these are; made if need be.
        layout: TorchServe's lines, or an object of JSON on each: ``time``, ``level``, ``logger``, ``message``, and
            ``model``, ``version``, ``worker`` and ``request_id`` where they are known.
        stderr: whether both go to the standard error, too.

    Returns:
        What is to be called at the end, so that the last lines go out, too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    printing = Background("stderr", _print) if stderr else None
    for logger, name in _FILES.items():
        file = RotatingFileHandler(folder / name, maxBytes=_SIZE, backupCount=_KEPT, encoding="utf-8", delay=False)
        logger.handlers = [file, _Printed(printing)] if printing else [file]
        for handler in logger.handlers:
            handler.setFormatter(_Json() if layout == "json" else _Text(_LAYOUTS[logger]))
        logger.setLevel(logging.INFO)
        logger.propagate = False
    return printing.close if printing else lambda: None


def log_worker_output(worker: str, name: str, version: str, line: str) -> None:
    """Log a line of a worker: ``W-9000-NAME_VERSION-stdout``."""
    WORKERS.info("%s", line, extra={"worker": worker, "model": name, "version": version})


class Background(Generic[T]):
    """A thread that writes, so that the event loop never blocks; entries beyond its capacity are dropped and counted.

    Args:
        name: of where it writes to, for the warning that something was dropped.
        write: called in the thread with what was put, in its order; OSError is as if all of that was dropped.
        most: how much may wait.
    """

    def __init__(self, name: str, write: Callable[[Sequence[T]], None], most: int = _MOST) -> None:
        self._name, self._write, self._most = name, write, most
        self._waiting: deque[T] = deque()
        # Two counters, since each has one thread that changes it.
        self._refused = self._failed = self._told = 0
        self._told_at = -_TOLD_EVERY
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """How much was."""
        return self._refused + self._failed

    def put(self, one: T) -> None:
        """Have something written, soon."""
        if len(self._waiting) < self._most:
            self._waiting.append(one)
        else:
            self._refused += 1

    def close(self) -> None:
        """Write what is left, for two seconds at the most."""
        self._ended.set()
        self._thread.join(_LAST_SECONDS)

    def _run(self) -> None:
        while not self._ended.wait(_EVERY):
            self._drain()
            self._tell()
        self._drain()

    def _drain(self) -> None:
        while self._waiting:
            some = [self._waiting.popleft() for _ in range(min(_AT_ONCE, len(self._waiting)))]
            try:
                self._write(some)
            except OSError:
                self._failed += len(some)

    def _tell(self) -> None:
        now, dropped = time.monotonic(), self.dropped
        if dropped > self._told and now - self._told_at >= _TOLD_EVERY:
            SERVER.warning("%s cannot keep up: %d lines are missing", self._name, dropped - self._told)
            self._told, self._told_at = dropped, now


class AccessLog:
    """``access.log``: a line for each request, in TorchServe's layout with the request's id behind it, or as JSON.

    Only the path of a URL is logged: the query may hold secrets.

    Args:
        folder: where it is; made if need be.
        layout: text or json.
    """

    def __init__(self, folder: Path, layout: Layout = "text") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = RotatingFileHandler(
            folder / "access.log", maxBytes=_SIZE, backupCount=_KEPT, encoding="utf-8", delay=False
        )
        self._line = _json_line if layout == "json" else _text_line
        self._background = Background[Access]("access.log", self._write)
        self.put = self._background.put

    def close(self) -> None:
        """Write what is left."""
        self._background.close()

    def _write(self, some: Sequence[Access]) -> None:
        # Of the handler there is its rolling over; a record for each line would take longer than the line.
        if (stream := self._file.stream) is not None:
            stream.write("".join(map(self._line, some)))
            stream.flush()
        if stream is None or stream.tell() > _SIZE:
            self._file.doRollover()


class _Printed(logging.Handler):
    """Print lines; a pipe without a reader must not stop the server."""

    def __init__(self, printing: Background[str]) -> None:
        super().__init__()
        self._printing = printing

    def emit(self, record: logging.LogRecord) -> None:
        self._printing.put(self.format(record))


def _print(lines: Sequence[str]) -> None:
    # Not sys.stderr: a thread that waits in there would keep the process from ending.
    data = "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")
    while data:
        data = data[os.write(_STDERR, data) :]


class _Text(logging.Formatter):
    """TorchServe's log4j2 pattern."""

    def __init__(self, layout: str) -> None:
        super().__init__(f"%(asctime)s {layout}")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Return the time with milliseconds."""
        return _stamp(record.created)


class _Json(logging.Formatter):
    """An object on each line; a traceback is a part of the message."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as JSON."""
        entry: dict[str, Any] = {
            "time": _moment(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["message"] += f"\n{self.formatException(record.exc_info)}"
        entry |= {key: value for key in _KNOWN if (value := getattr(record, key, None)) is not None}
        return json.dumps(entry, ensure_ascii=False)


def _text_line(one: Access) -> str:
    about = f'"{one.method} {_path(one.target)} HTTP/1.1" {one.status} {one.seconds * 1000:.3f}'
    return f"{_stamp(one.time)} - /{one.client} {about} {one.request_id or '-'}\n"


def _json_line(one: Access) -> str:
    entry = {
        "time": _moment(one.time),
        "client": one.client,
        "method": one.method,
        "path": _path(one.target),
        "status": one.status,
        "milliseconds": round(one.seconds * 1000, 3),
        **({"request_id": one.request_id} if one.request_id else {}),
    }
    return json.dumps(entry, ensure_ascii=False) + "\n"


def _path(target: bytes) -> str:
    """Return the path as it was sent; what would break a line, or a quotation, in percent."""
    return quote(target.partition(b"?")[0], safe="/:%@!$&'()*+,;=~[]")


def _stamp(moment: float) -> str:
    return datetime.fromtimestamp(moment).isoformat(timespec="milliseconds").replace(".", ",")


def _moment(moment: float) -> str:
    return datetime.fromtimestamp(moment).astimezone().isoformat(timespec="milliseconds")
