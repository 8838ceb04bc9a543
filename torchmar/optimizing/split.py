"""The split of inputs: some calibrate int8 variants, all others are held out to judge every variant.

A quarter of the distinct inputs calibrates, those whose SHA-256 comes first, so that the split is the same each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CALIBRATION_PART = 4
"""One input of so many calibrates."""
MOST_CALIBRATION = 128
"""Inputs that calibrate at the most: more change the ranges of activations hardly, and take longer."""


@dataclass(frozen=True)
class Split:
    """The places of the inputs on both sides, in ascending order; equal inputs count once."""

    calibration: tuple[int, ...]
    held_out: tuple[int, ...]


def split(digests: Sequence[str]) -> Split:
    """Split inputs by their content, so that neither their order nor their names matter.

    Args:
        digests: the SHA-256 of each input, in hexadecimal. Of equal ones only the first is on a side.
    """
    places: dict[str, int] = {}
    for place, digest in enumerate(digests):
        places.setdefault(digest, place)
    count = _calibration(len(places))
    ordered = [places[digest] for digest in sorted(places)]
    return Split(tuple(sorted(ordered[:count])), tuple(sorted(ordered[count:])))


def total_for(held_out: int) -> int:
    """Return how many distinct inputs there must be for so many to be held out."""
    total = held_out
    while total - _calibration(total) < held_out:
        total += 1
    return total


def _calibration(distinct: int) -> int:
    return min(MOST_CALIBRATION, distinct // CALIBRATION_PART)
