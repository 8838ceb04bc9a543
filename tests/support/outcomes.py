"""Outcomes of comparisons as text."""

from __future__ import annotations

from torchmar.parity import Outcome


def mismatches(outcome: Outcome) -> list[str]:
    """Return the undocumented mismatches of an outcome, one line each."""
    return [
        f"{mismatch.case}: {mismatch.aspect}: {mismatch.first!r}, not {mismatch.second!r}"
        for mismatch in outcome.different
    ]
