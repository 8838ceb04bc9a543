"""Scores of letters, from left to right, to a text (connectionist temporal classification, best path)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_BLANK = 0


def read(probabilities: np.ndarray, characters: Sequence[str]) -> tuple[str, float]:
    """Return the text of one line and the mean probability of its letters; 0 if it has none.

    Args:
        probabilities: ``(steps, 1 + len(characters))``; the first is that of no letter.
        characters: the letters, in the order of the model's outputs.
    """
    best = probabilities.argmax(axis=1)
    # A letter that fills several steps is one; the same letter twice has a blank between.
    begins = best != _BLANK
    begins[1:] &= best[1:] != best[:-1]
    places = np.flatnonzero(begins)
    text = "".join(characters[index - 1] for index in best[places].tolist())
    return text, float(probabilities[places, best[places]].mean()) if len(places) else 0.0
