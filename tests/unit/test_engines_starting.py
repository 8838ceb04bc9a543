"""torchmar.engines.start_lock keeps other starts and signals out while a server is started."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from torchmar.engines.start_lock import locked, signals_deferred


def test_ctrl_c_waits_for_the_end_of_a_critical_section() -> None:
    # In a process of its own: libraries that other tests load have threads and handlers that Ctrl-C ends.
    code = """
import signal
from torchmar.engines.start_lock import signals_deferred
done = False
try:
    with signals_deferred():
        signal.raise_signal(signal.SIGINT)
        done = True
except KeyboardInterrupt:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    print("interrupted", done)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "interrupted True\n"


def test_a_process_that_is_started_undisturbed_hears_signals() -> None:
    with signals_deferred():
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM


def test_a_thread_may_start_a_server_too() -> None:
    went = []

    def start() -> None:
        with signals_deferred():
            went.append(True)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert went


def test_one_start_at_a_time_is_in_a_folder(tmp_path: Path) -> None:
    script = "import sys, pathlib; from torchmar.engines.start_lock import locked\n"
    script += "with locked(pathlib.Path(sys.argv[1])): print('in')"
    with locked(tmp_path):
        other = subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(1.5)
    assert other.communicate(timeout=30)[0] == "in\n"
