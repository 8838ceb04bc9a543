"""CPU time of tests and of their fixtures, with all processes that they start.

``python -m tests.support.cpu_seconds PYTEST ARGUMENTS`` runs pytest in one process, and prints the sums for folders,
modules, and the tests and fixtures with the most time. Elapsed time would show little: most tests wait for processes,
and other programs use the cores. Only on Linux.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

_PR_SET_CHILD_SUBREAPER = 36
_TICKS = os.sysconf("SC_CLK_TCK")  # in a second
_SHOWN = 30


def cpu_seconds(root: int) -> float:
    """Return the CPU time of a process and of its descendants, both living ones and those that were waited for."""
    ticks, pids = 0, [root]
    while pids:
        folder = Path(f"/proc/{pids.pop()}")
        with contextlib.suppress(OSError):  # it has ended
            fields = (folder / "stat").read_bytes().rpartition(b")")[2].split()
            ticks += sum(map(int, fields[11:15]))
            for task in (folder / "task").iterdir():
                pids += map(int, (task / "children").read_text().split())
    return ticks / _TICKS


class Meter:
    """A plugin that attributes CPU time to a test, to a fixture of a module or the session, or to the collection.

    Args:
        root: the process whose descendants are measured.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._seconds: collections.Counter[tuple[str, str]] = collections.Counter()  # by module and by name
        self._running, self._last = [("", "collection")], 0.0

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: pytest.FixtureRequest) -> Generator[None, Any, Any]:
        """Measure fixtures that several tests share."""
        if fixturedef.scope == "function":
            return (yield)
        module = "" if fixturedef.scope == "session" else request.node.nodeid
        with self._measured(module, f"fixture {fixturedef.argname}"):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Measure a test, with its own fixtures and the end of fixtures that no later test needs."""
        with self._measured(item.location[0], item.name):
            return (yield)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the sums."""
        self._add()
        modules: collections.Counter[str] = collections.Counter()
        folders: collections.Counter[str] = collections.Counter()
        for (module, _), seconds in self._seconds.items():
            modules[module or "session"] += seconds
            folders[str(Path(module).parent) if module else "session"] += seconds
        parts = collections.Counter({" ".join(key).strip(): value for key, value in self._seconds.items()})
        terminalreporter.section(f"{self._last:.1f} s of CPU time")
        for sums in (folders, modules, parts):
            for name, seconds in sums.most_common(_SHOWN):
                terminalreporter.write_line(f"{seconds:8.2f}  {name}")
            terminalreporter.write_line("")

    @contextlib.contextmanager
    def _measured(self, module: str, name: str) -> Iterator[None]:
        self._add()
        self._running.append((module, name))
        try:
            yield
        finally:
            self._add()
            self._running.pop()

    def _add(self) -> None:
        # Between its end and its parent's wait, a process may be missed for a moment.
        now = max(self._last, cpu_seconds(self._root))
        self._seconds[self._running[-1]] += now - self._last  # type: ignore[assignment]
        self._last = now


def main(arguments: list[str]) -> int:
    """Run pytest in a child process, and wait for every process whose parent has ended."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    root = os.getpid()
    pytest_process = os.fork()
    if not pytest_process:
        os._exit(int(pytest.main(["-n", "0", "-p", "no:cacheprovider", *arguments], plugins=[Meter(root)])))
    while True:
        pid, status = os.wait()
        if pid == pytest_process:
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
