"""Environment variables of worker processes that torch and ONNX Runtime read when they are loaded."""

from __future__ import annotations

from collections.abc import Mapping

_SPINS = "1000"  # of 25 to 50 ns each
_OPENMP = {
    # libgomp, which torch's wheels for Linux have: its default is 300,000 before a thread sleeps, several milliseconds.
    "GOMP_SPINCOUNT": _SPINS,
    # LLVM's and Intel's libomp, in milliseconds; its default is 200.
    "KMP_BLOCKTIME": "1",
}
_WAITING = (*_OPENMP, "OMP_WAIT_POLICY")
# ONNX Runtime sends statistics about models and the machine to Microsoft since 1.29, where this is not set.
_PRIVACY = {"ORT_DISABLE_TELEMETRY": "1"}


def worker_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a worker process or a fork server, as it must be when torch is loaded.

    Threads of OpenMP that have finished their part of an operator wait actively for the others. If one of these
    has lost its core to another program, or shares a core with a thread that waits, the wait lasts until the system
    takes the core away: milliseconds for each operator, in place of microseconds of work. A short active wait keeps
    most of what it gains on a quiet machine.

    Args:
        environment: the variables to start with; if one sets how OpenMP waits, or what ONNX Runtime sends, it is kept.
    """
    waiting = {} if any(name in environment for name in _WAITING) else _OPENMP
    return {"PYTHONUNBUFFERED": "1", **_PRIVACY, **waiting, **environment}
