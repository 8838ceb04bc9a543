"""torchmar.server.daemon_threads runs calls in threads that the end of the process does not wait for."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from torchmar.server.daemon_threads import DaemonThreads


def test_results_and_errors_are_those_of_the_calls() -> None:
    with DaemonThreads(2, "test") as threads:
        assert list(threads.map(divmod, (7, 8, 9), (4, 4, 4))) == [(1, 3), (2, 0), (2, 1)]
        with pytest.raises(ZeroDivisionError):
            threads.submit(divmod, 1, 0).result()


def test_calls_beyond_the_limit_wait_and_can_be_cancelled() -> None:
    threads, begun, release = DaemonThreads(1, "test"), threading.Event(), threading.Event()

    def block() -> bool:
        begun.set()
        return release.wait()

    first = threads.submit(block)
    begun.wait()
    second = threads.submit(begun.clear)
    threads.shutdown(wait=False, cancel_futures=True)
    assert (first.running(), second.cancelled()) == (True, True)
    release.set()
    threads.shutdown()
    assert first.result()
    assert begun.is_set()


def test_a_process_ends_while_a_call_waits_for_ever() -> None:
    program = (
        "import threading; from torchmar.server.daemon_threads import DaemonThreads; begun = threading.Event();"
        "DaemonThreads(1, 'test').submit(lambda: (begun.set(), threading.Event().wait())); begun.wait(); print('end')"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == "end\n"
