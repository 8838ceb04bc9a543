"""The short name of a step, for tables and charts."""

from __future__ import annotations

from torchmar.load.numbers import number
from torchmar.load.results import Step


def step_label(step: Step) -> str:
    """Return the name of a step: ``200/s``, ``200/s constant``, ``8 connections`` or ``replay``."""
    if step.kind == "closed":
        return f"{step.connections} connection{'s' * (step.connections != 1)}"
    rate = f"{number(step.rate)}/s" if step.rate is not None else ""
    if step.kind == "replay":
        return f"replay {rate}".rstrip()
    return f"{rate} constant" if step.arrivals == "constant" else rate
