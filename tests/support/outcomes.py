"""Outcomes of comparisons as text."""

from __future__ import annotations

from torchmar.parity import Outcome


def mismatches(outcome: Outcome) -> list[str]:
    """Return the undocumented mismatches of an outcome, one line each."""
    return [f"{one.case}: {one.aspect}: {one.first!r}, not {one.second!r}" for one in outcome.different]
