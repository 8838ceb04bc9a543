"""torchmar.server.telemetry.recent_logs keeps the latest entries; a traceback is one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from torchmar.server.telemetry import logs
from torchmar.server.telemetry.recent_logs import RecentLogs


@pytest.fixture
def recent(tmp_path: Path) -> Iterator[RecentLogs]:
    before = [(logger, logger.handlers, logger.propagate) for logger in (logs.SERVER, logs.WORKERS)]
    logs.open_in(tmp_path)
    kept = RecentLogs()
    kept.open()
    yield kept
    kept.close()
    for logger, handlers, propagate in before:
        logger.handlers, logger.propagate = handlers, propagate


TRACEBACK = """\
Traceback (most recent call last):
  File "handler.py", line 3, in initialize
    raise KeyError("no")
KeyError: 'no'"""


def output(lines: str, worker: str = "9000", model: str = "m") -> None:
    for line in lines.splitlines():
        logs.log_worker_output(worker, model, "1.0", line)


def test_tracebacks_of_two_workers_are_two_entries_though_their_lines_alternate(recent: RecentLogs) -> None:
    for line in TRACEBACK.splitlines():
        output(line, "9000")
        output(line, "9001")
    output("Backend worker process died.", "9000")
    entries = recent.entries()
    assert [(entry.worker, entry.text, entry.level) for entry in entries] == [
        ("9000", TRACEBACK, "ERROR"),
        ("9001", TRACEBACK, "ERROR"),
        ("9000", "Backend worker process died.", "INFO"),
    ]


def test_entries_are_selected_and_only_what_changed_is_returned(recent: RecentLogs) -> None:
    logs.SERVER.warning("m is slow", extra={"model": "m", "version": "1.0", "request_id": "r-1"})
    output("one", "9000", "m")
    output("two", "9001", "other")
    assert [entry.text for entry in recent.entries("m")] == ["m is slow", "one"]
    assert [entry.text for entry in recent.entries(worker="9001")] == ["two"]
    assert [entry.text for entry in recent.entries(limit=1)] == ["two"]
    assert recent.entries("m")[0].request_id == "r-1"
    before = recent.changes
    assert recent.entries(after=before) == []
    output(TRACEBACK.splitlines()[0])
    middle = recent.changes
    output(TRACEBACK.splitlines()[1])
    assert [entry.text for entry in recent.entries(after=middle)] == ["\n".join(TRACEBACK.splitlines()[:2])]


def test_an_exception_of_the_server_has_its_traceback(recent: RecentLogs) -> None:
    try:
        raise ValueError("on purpose")
    except ValueError:
        logs.SERVER.exception("GET /x failed")
    (entry,) = recent.entries()
    assert entry.text.startswith("GET /x failed\nTraceback") and entry.text.endswith("ValueError: on purpose")
    assert (entry.level, entry.model) == ("ERROR", "")


def test_memory_is_bounded(recent: RecentLogs) -> None:
    for number in range(3000):
        logs.SERVER.info("%s", number)
    entries = recent.entries()
    assert len(entries) == 2000 and entries[-1].text == "2999"
    for _ in range(100):
        logs.SERVER.info("%s", "x" * 100_000)
    assert sum(len(entry.text) for entry in recent.entries()) <= 2 << 20
    output("Traceback (most recent call last):")
    for _ in range(100):
        output("  " + "y" * 2000)
    assert max(len(entry.text) for entry in recent.entries()) <= 1 << 16
    assert logging.getLogger("torchmar.workers").level == logging.INFO
