"""The split of inputs: some calibrate int8 variants, and all others are held out to judge every variant.

A quarter of the distinct inputs calibrates: those with the smallest SHA-256, so that the split is always the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CALIBRATION_PART = 4
"""One of this number of inputs calibrates."""
MOST_CALIBRATION = 128
"""Largest number of calibration inputs: more hardly change the ranges of activations, and take longer."""


@dataclass(frozen=True)
class Split:
    """The indices of the inputs of both groups, in ascending order; of equal inputs, only the first."""

    calibration: tuple[int, ...]
    held_out: tuple[int, ...]


def split(digests: Sequence[str]) -> Split:
    """Split inputs by their content, so that neither their order nor their names matter.

    Args:
        digests: SHA-256 of each input, in hexadecimal. Of equal inputs, only the first is in a group.
    """
    places: dict[str, int] = {}
    for place, digest in enumerate(digests):
        places.setdefault(digest, place)
    count = _calibration(len(places))
    ordered = [places[digest] for digest in sorted(places)]
    return Split(tuple(sorted(ordered[:count])), tuple(sorted(ordered[count:])))


def total_for(held_out: int) -> int:
    """Return the number of distinct inputs from which ``held_out`` are held out."""
    total = held_out
    while total - _calibration(total) < held_out:
        total += 1
    return total


def _calibration(distinct: int) -> int:
    return min(MOST_CALIBRATION, distinct // CALIBRATION_PART)
