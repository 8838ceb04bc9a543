"""The CPU time of processes counts for the side that they belong to."""

from __future__ import annotations

import subprocess
import sys

from torchmar.load.machine_use import Reading

SECONDS = 0.3
COMPUTE = f"import time\nwhile time.process_time() < {SECONDS}: pass\nprint('done', flush=True)\ninput()"


def test_what_child_processes_compute_is_no_other_programs_use() -> None:
    """A compiler that a measured process starts is no disturbance, whether it has ended or still runs."""
    with subprocess.Popen([sys.executable, "-c", COMPUTE], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin
        assert child.stdout
        before = Reading(None, local=False, children=True)
        alone = Reading(None, local=False)
        child.stdout.readline()
        without = alone.use_until(Reading(None, local=False))
        living = before.use_until(Reading(None, local=False, children=True))
        child.stdin.close()
        child.wait()
        ended = before.use_until(Reading(None, local=False, children=True))
    # A clock tick is 10 ms; some of the time is spent before the first reading.
    for use in (living, ended):
        assert use.client_cores * use.seconds > SECONDS / 2
    assert without.client_cores * without.seconds < SECONDS / 2
