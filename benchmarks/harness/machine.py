"""The name of the processor that a benchmark runs on."""

from __future__ import annotations

import platform


def processor() -> str:
    """Return the name of the processor from the system; if there is none, the architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            return next(line.partition(": ")[2].strip() for line in stream if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
