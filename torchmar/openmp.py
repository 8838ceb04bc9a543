"""Environment variables for a short active wait of OpenMP threads, which OpenMP reads when torch is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

SHORT_WAIT: Mapping[str, str] = MappingProxyType(
    {
        # libgomp, in torch's wheels for Linux: a count of 25 to 50 ns each. Its default is 300,000 before a thread
        # sleeps, which is several milliseconds.
        "GOMP_SPINCOUNT": "1000",
        # libomp of LLVM and Intel, in milliseconds; its default is 200.
        "KMP_BLOCKTIME": "1",
    }
)
_WAITING = (*SHORT_WAIT, "OMP_WAIT_POLICY")


def short_wait(environment: Mapping[str, str]) -> Mapping[str, str]:
    """Return variables for a short active wait; empty if the environment has settings for waits.

    OpenMP threads that have finished their part of an operator wait actively for the others. If another thread has lost
    its core to another program, or shares a core with a waiting thread, the wait lasts until the system switches
    threads: it takes milliseconds instead of microseconds for each operator. A short active wait keeps most of the gain
    on a machine without other load.
    """
    return {} if any(name in environment for name in _WAITING) else SHORT_WAIT
