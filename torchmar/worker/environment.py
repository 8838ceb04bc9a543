"""Environment variables for worker processes, which torch and ONNX Runtime read when they are loaded."""

from __future__ import annotations

from collections.abc import Mapping

_SPINS = "1000"  # of 25 to 50 ns each
_OPENMP = {
    # libgomp, in torch's wheels for Linux: its default is 300,000 before a thread sleeps, which is several
    # milliseconds.
    "GOMP_SPINCOUNT": _SPINS,
    # libomp of LLVM and Intel, in milliseconds; its default is 200.
    "KMP_BLOCKTIME": "1",
}
_WAITING = (*_OPENMP, "OMP_WAIT_POLICY")
# Without this variable, ONNX Runtime since 1.29 sends statistics about models and the machine to Microsoft.
_PRIVACY = {"ORT_DISABLE_TELEMETRY": "1"}


def worker_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for a worker process or a fork server, in which torch is loaded.

    OpenMP threads that have finished their part of an operator wait actively for the others. If one of these has lost
    its core to another program, or shares a core with a waiting thread, the wait lasts until the system switches: it
    costs milliseconds for each operator in place of microseconds. A short active wait keeps most of the gain on a quiet
    machine.

    Args:
        environment: variables to start with; existing settings for OpenMP's waits and ONNX Runtime's statistics are
            kept.
    """
    waiting = {} if any(name in environment for name in _WAITING) else _OPENMP
    return {"PYTHONUNBUFFERED": "1", **_PRIVACY, **waiting, **environment}
