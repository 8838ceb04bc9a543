"""torchmar.worker.process.malloc keeps freed memory for the next batch, and returns it while there is none."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

from torchmar.worker.environment import worker_environment

# Page faults of a block of 64 MB, which was freed before, by default and with memory kept; and what trim returns.
CODE = """
import json, resource
from torchmar.worker.process.malloc import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(64_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

default = [faults() for _ in range(3)]
trim = keep_freed_memory()
kept = [faults() for _ in range(3)]
before = resident()
trim()
print(json.dumps([default[-1], kept[-1], before - resident()]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")
@pytest.mark.parametrize("environment", [{}, {"MALLOC_ARENA_MAX": "2"}])
def test_freed_memory_is_kept_until_trimmed_unless_the_environment_has_settings(environment: dict[str, str]) -> None:
    inherited = {name: value for name, value in worker_environment(os.environ).items() if "MALLOC" not in name.upper()}
    run = [sys.executable, "-c", CODE]
    process = subprocess.run(run, env={**inherited, **environment}, capture_output=True, text=True, check=True)
    default, kept, returned = json.loads(process.stdout)
    assert default > 1000
    if environment:
        assert kept > 1000
    else:
        assert kept < 100
        assert returned > 60_000_000
