"""The logs of a server as entries; a traceback is one entry."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from torchmar.server.telemetry import tracebacks

WORKERS = "workers.log"
SERVER = "server.log"

_STAMP = re.compile(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d,\d{3}) (?:\[(\w+) *\] )?(.*)$")
# The worker is a number, or the id of a Ray replica.
_WORKER = re.compile(r"^W-(\w+)-([^ ]+)_([^_ ]+?)(?:-std(?:out|err) -)? (.*)$")
_IDLE = 0.3  # seconds without a line after which a traceback is complete
_TAIL_BYTES = 8 << 20


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An entry of a log.

    Attributes:
        time: time in ISO 8601, in the machine's time zone.
        level: level of an entry from the server; empty for the output of a worker.
        model: name of the worker's model; empty for an entry from the server.
        version: version of the worker's model; empty for an entry from the server.
        worker: number of the worker, or the id of a replica; empty for an entry from the server.
        text: the message; several lines for a traceback.
    """

    time: str
    level: str = ""
    model: str = ""
    version: str = ""
    worker: str = ""
    text: str

    def of(self, model: str, version: str = "", worker: str = "") -> bool:
        """Return whether the entry belongs to a model, a version and a worker; an empty name matches all."""
        names = ((model, self.model), (version, self.version), (worker, self.worker))
        return all(selected in ("", name) for selected, name in names)


class Assembler:
    """Assembles lines of a log into entries, also if lines of several workers alternate."""

    def __init__(self) -> None:
        self._open: dict[str, Entry] = {}  # entries by worker; empty for the server's entries
        self._moments: dict[str, str] = {}  # time stamps of the last lines
        self._last = ""

    def add(self, line: str) -> Iterator[Entry]:
        """Add a line; yield the entries that it completes."""
        entry = _entry(line)
        if entry is None:
            # A stack trace of Java follows the line to which it belongs.
            if above := self._open.get(self._last):
                self._open[self._last] = replace(above, text=f"{above.text}\n{line}")
            return
        self._last = entry.worker
        before, moment = self._open.get(entry.worker), self._moments.get(entry.worker, "")
        self._moments[entry.worker] = entry.time
        if before and before.level == entry.level == "" and _continues(before.text, entry.text, moment, entry.time):
            self._open[entry.worker] = replace(before, text=f"{before.text}\n{entry.text}")
            return
        if before:
            yield before
        self._open[entry.worker] = entry

    def flush(self) -> Iterator[Entry]:
        """Yield the entries that are still open."""
        yield from sorted(self._open.values(), key=lambda entry: entry.time)
        self._open.clear()


def parse(lines: Iterable[str]) -> Iterator[Entry]:
    """Yield the entries of a log."""
    assembler = Assembler()
    for line in lines:
        yield from assembler.add(line)
    yield from assembler.flush()


def files(folder: Path, name: str) -> list[Path]:
    """Return the files of a log in a run folder, including rolled ones, from the oldest to the newest."""
    logs = folder / "logs"
    stem = Path(name).stem
    # log4j numbers from the oldest (server.1.log), Python's logging from the newest (server.log.1).
    java = {int(file.suffixes[-2][1:]): file for file in logs.glob(f"{stem}.*.log") if file.suffixes[-2][1:].isdigit()}
    python = {-int(file.suffix[1:]): file for file in logs.glob(f"{name}.*") if file.suffix[1:].isdigit()}
    rolled = [by_number[number] for by_number in (java, python) for number in sorted(by_number)]
    return [*rolled, *(file for file in [logs / name] if file.is_file())]


def tail(folder: Path, name: str) -> str:
    """Return the end of a log of the run folder ``folder``, at most 8 MiB."""
    content = b""
    for file in reversed(files(folder, name)):
        if len(content) < _TAIL_BYTES:
            content = file.read_bytes() + content
    return content[-_TAIL_BYTES:].decode("utf-8", "replace")


def recent(folder: Path, count: int, model: str = "", version: str = "", worker: str = "") -> list[Entry]:
    """Return the last ``count`` entries of a server's logs, sorted by time.

    Args:
        folder: the run folder.
        count: number of entries; a traceback is one entry.
        model: model of the entries; empty: all models and the server.
        version: version of the model; empty: all versions.
        worker: id of the worker; empty: all workers.
    """
    entries: list[Entry] = []
    for name in (SERVER, WORKERS):
        selected: list[Entry] = []
        # Read from the newest file until there are enough entries.
        for file in reversed(files(folder, name)):
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
            selected[:0] = [entry for entry in parse(lines) if entry.of(model, version, worker)]
            if len(selected) >= count:
                break
        entries += selected
    return sorted(entries, key=lambda entry: entry.time)[max(0, len(entries) - count) :]


def models(folder: Path) -> list[tuple[str, str]]:
    """Return name and version of the models that have entries at the end of a server's log."""
    entries = parse(tail(folder, WORKERS).splitlines())
    return sorted({(entry.model, entry.version) for entry in entries if entry.model})


class Follower:
    """A reader of new log entries of a server, also after the files are rolled or the server restarts.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        self._tails = [_Tail(folder / "logs" / name) for name in (SERVER, WORKERS)]

    def read(self) -> list[Entry]:
        """Return the entries since the previous call, without waiting."""
        entries = [entry for tail in self._tails for entry in tail.read()]
        return sorted(entries, key=lambda entry: entry.time)


class _Tail:
    def __init__(self, file: Path) -> None:
        self._file = file
        self._assembler = Assembler()
        self._rest = b""
        self._last_read = time.monotonic()
        self._stream = self._open_file()
        if self._stream:
            self._stream.seek(0, 2)

    def read(self) -> Iterator[Entry]:
        lines = list(self._lines())
        for line in lines:
            yield from self._assembler.add(line)
        if lines:
            self._last_read = time.monotonic()
        elif time.monotonic() - self._last_read > _IDLE:
            yield from self._assembler.flush()

    def _lines(self) -> Iterator[str]:
        if self._stream:
            yield from self._complete(self._stream)
        if self._replaced():
            if self._stream:
                yield from self._complete(self._stream)  # lines that were written just before the file was replaced
                self._stream.close()
            self._rest = b""
            self._stream = self._open_file()
            if self._stream:
                yield from self._complete(self._stream)

    def _complete(self, stream: BinaryIO) -> Iterator[str]:
        *lines, self._rest = (self._rest + stream.read()).split(b"\n")
        yield from (line.decode("utf-8", "replace") for line in lines)

    def _replaced(self) -> bool:
        try:
            now = self._file.stat()
        except FileNotFoundError:
            return False
        if self._stream is None:
            return True
        status = os.fstat(self._stream.fileno())
        return (status.st_ino, status.st_dev) != (now.st_ino, now.st_dev)

    def _open_file(self) -> BinaryIO | None:
        try:
            return self._file.open("rb")
        except FileNotFoundError:
            return None


def _entry(line: str) -> Entry | None:
    """Return the entry that starts with a line; None if the line continues the previous entry."""
    if line.startswith("{"):
        return _entry_of_json(line)
    stamp = _STAMP.match(line)
    if stamp is None:
        return None
    moment, level, rest = stamp[1].replace(",", "."), stamp[2] or "", stamp[3]
    if worker := _WORKER.match(rest):
        return Entry(time=moment, level=level, model=worker[2], version=worker[3], worker=worker[1], text=worker[4])
    return Entry(time=moment, level=level, text=rest)


def _entry_of_json(line: str) -> Entry | None:
    """Return the entry in a line that the built-in server writes with ``torchmar_log_format=json``."""
    try:
        document = json.loads(line)
        # Without the offset of the time zone.
        moment, worker = str(document["time"])[: len("2026-11-21T06:30:00.000")], str(document.get("worker", ""))
        level = "" if worker else str(document["level"])
        return Entry(
            time=moment,
            level=level,
            model=str(document.get("model", "")),
            version=str(document.get("version", "")),
            worker=worker,
            text=str(document["message"]),
        )
    except (ValueError, KeyError, AttributeError):
        return None


def _continues(before: str, line: str, moment: str, now: str) -> bool:
    between = datetime.fromisoformat(now) - datetime.fromisoformat(moment)
    return tracebacks.continues(before, line, between.total_seconds())
