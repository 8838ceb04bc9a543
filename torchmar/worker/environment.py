"""Environment variables for worker processes, which torch and ONNX Runtime read when they are loaded."""

from __future__ import annotations

from collections.abc import Mapping

from torchmar import openmp

# Without this variable, ONNX Runtime since 1.29 sends statistics about models and the machine to Microsoft.
_PRIVACY = {"ORT_DISABLE_TELEMETRY": "1"}


def worker_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for a worker process or a fork server, in which torch is loaded.

    Args:
        environment: variables to start with; existing settings for OpenMP's waits and ONNX Runtime's statistics are
            kept.
    """
    return {"PYTHONUNBUFFERED": "1", **_PRIVACY, **openmp.short_wait(environment), **environment}
