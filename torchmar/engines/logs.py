"""The logs of a server as entries, each traceback whole."""

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

WORKERS = "workers.log"
SERVER = "server.log"

_STAMP = re.compile(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d,\d{3}) (?:\[(\w+) *\] )?(.*)$")
_WORKER = re.compile(r"^W-(\d+)-([^ ]+)_([^_ ]+?)(?:-std(?:out|err) -)? (.*)$")
TRACEBACK = "Traceback (most recent call last)"
DIED = "Backend worker process died"
_CHAINS = ("During handling of the above exception", "The above exception was the direct cause")
_IDLE = 0.3  # seconds after which what is there of a traceback is all there is
_AT_ONCE = 0.02  # seconds between two lines of one message
_ENOUGH = 8 << 20  # bytes


@dataclass(frozen=True)
class Entry:
    """Something that was said; ``time`` as ISO 8601 in the machine's zone, ``text`` of several lines for a traceback.

    ``model``, ``version`` and ``worker`` are empty for what the server says of itself; ``level`` is for
    what a worker prints.
    """

    time: str
    level: str
    model: str
    version: str
    worker: str
    text: str

    def of(self, model: str, version: str = "", worker: str = "") -> bool:
        """Tell whether a model, one version of it or one worker speaks; an empty name is any."""
        wanted = ((model, self.model), (version, self.version), (worker, self.worker))
        return all(asked in ("", has) for asked, has in wanted)


class Assembler:
    """Puts lines of a log together into entries; the lines of workers that speak at once are told apart."""

    def __init__(self) -> None:
        self._open: dict[str, Entry] = {}  # by worker; the server has none
        self._moments: dict[str, str] = {}  # of the last line of each
        self._last = ""

    def add(self, line: str) -> Iterator[Entry]:
        """Take the next line; yield the entries that are complete by it."""
        entry = _entry(line)
        if entry is None:
            # Java's stack traces stand below the line that they belong to.
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
        """Yield what is left, as if no more lines came."""
        yield from sorted(self._open.values(), key=lambda entry: entry.time)
        self._open.clear()


def parse(lines: Iterable[str]) -> Iterator[Entry]:
    """Yield the entries of a log."""
    assembler = Assembler()
    for line in lines:
        yield from assembler.add(line)
    yield from assembler.flush()


def files(folder: Path, name: str) -> list[Path]:
    """Return a log of the run folder ``folder`` with what was rolled off it, from the oldest to the newest."""
    logs = folder / "logs"
    stem = Path(name).stem
    # log4j counts from the oldest (server.1.log), Python's logging from the newest (server.log.1).
    java = {int(file.suffixes[-2][1:]): file for file in logs.glob(f"{stem}.*.log") if file.suffixes[-2][1:].isdigit()}
    python = {-int(file.suffix[1:]): file for file in logs.glob(f"{name}.*") if file.suffix[1:].isdigit()}
    rolled = [found[number] for found in (java, python) for number in sorted(found)]
    return [*rolled, *(file for file in [logs / name] if file.is_file())]


def tail(folder: Path, name: str) -> str:
    """Return the end of a log of the run folder ``folder``, 8 MiB at the most."""
    read = b""
    for file in reversed(files(folder, name)):
        if len(read) < _ENOUGH:
            read = file.read_bytes() + read
    return read[-_ENOUGH:].decode("utf-8", "replace")


def recent(folder: Path, count: int, model: str = "", version: str = "", worker: str = "") -> list[Entry]:
    """Return the last ``count`` entries of a server's logs, in the order of time; files are read from the newest on.

    Args:
        folder: the run folder.
        count: how many; a traceback is one.
        model: only of this model; empty is any, and what the server says of itself.
        version: only of this version.
        worker: only of this worker.
    """
    found: list[Entry] = []
    for name in (SERVER, WORKERS):
        of_this: list[Entry] = []
        for file in reversed(files(folder, name)):
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
            of_this[:0] = [entry for entry in parse(lines) if entry.of(model, version, worker)]
            if len(of_this) >= count:
                break
        found += of_this
    return sorted(found, key=lambda entry: entry.time)[max(0, len(found) - count) :]


def speakers(folder: Path) -> list[tuple[str, str]]:
    """Return the models, each with its version, whose workers say something in the end of a server's log."""
    entries = parse(tail(folder, WORKERS).splitlines())
    return sorted({(entry.model, entry.version) for entry in entries if entry.model})


class Follower:
    """Reads on in the logs of a server, through their rolling and the server's own restarts.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        self._tails = [_Tail(folder / "logs" / name) for name in (SERVER, WORKERS)]

    def read(self) -> list[Entry]:
        """Return what was said since the last time; does not wait."""
        entries = [entry for tail in self._tails for entry in tail.read()]
        return sorted(entries, key=lambda entry: entry.time)


class _Tail:
    def __init__(self, file: Path) -> None:
        self._file = file
        self._assembler = Assembler()
        self._rest = b""
        self._heard = time.monotonic()
        self._stream = self._opened()
        if self._stream:
            self._stream.seek(0, 2)

    def read(self) -> Iterator[Entry]:
        lines = list(self._lines())
        for line in lines:
            yield from self._assembler.add(line)
        if lines:
            self._heard = time.monotonic()
        elif time.monotonic() - self._heard > _IDLE:
            yield from self._assembler.flush()

    def _lines(self) -> Iterator[str]:
        if self._stream:
            yield from self._complete(self._stream)
        if self._replaced():
            if self._stream:
                yield from self._complete(self._stream)  # what came between the two looks
                self._stream.close()
            self._rest = b""
            self._stream = self._opened()
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
        mine = os.fstat(self._stream.fileno())
        return (mine.st_ino, mine.st_dev) != (now.st_ino, now.st_dev)

    def _opened(self) -> BinaryIO | None:
        try:
            return self._file.open("rb")
        except FileNotFoundError:
            return None


def _entry(line: str) -> Entry | None:
    """Return the entry that begins with a line; None if it goes on with the one before."""
    if line.startswith("{"):
        return _entry_of_json(line)
    stamp = _STAMP.match(line)
    if stamp is None:
        return None
    moment, level, rest = stamp[1].replace(",", "."), stamp[2] or "", stamp[3]
    if worker := _WORKER.match(rest):
        return Entry(moment, level, worker[2], worker[3], worker[1], worker[4])
    return Entry(moment, level, "", "", "", rest)


def _entry_of_json(line: str) -> Entry | None:
    """Return what the built-in server writes with ``torchmar_log_format=json``."""
    try:
        document = json.loads(line)
        # Times have the offset of the machine's zone behind them.
        moment, worker = str(document["time"])[: len("2026-11-21T06:30:00.000")], str(document.get("worker", ""))
        level = "" if worker else str(document["level"])
        return Entry(
            moment,
            level,
            str(document.get("model", "")),
            str(document.get("version", "")),
            worker,
            str(document["message"]),
        )
    except (ValueError, KeyError, AttributeError):
        return None


def _continues(before: str, line: str, moment: str, now: str) -> bool:
    """Tell whether ``line`` goes on with the traceback that ``before`` is, if it is one."""
    if not before.startswith(TRACEBACK):
        return False
    last = before.rsplit("\n", 1)[-1]
    if line.startswith(TRACEBACK):
        return last == ""  # a chained one, below the empty line that announces it
    if not line or line.startswith((" ", "\t", *_CHAINS)) or last.startswith((" ", "\t")):
        return True
    # A message of several lines, as CUDA's are: nothing but the time tells them from what comes next.
    between = datetime.fromisoformat(now) - datetime.fromisoformat(moment)
    return between.total_seconds() < _AT_ONCE and not line.startswith(DIED)
