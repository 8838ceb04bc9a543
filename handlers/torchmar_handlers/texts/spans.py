"""Labels of tokens to labelled spans of the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torchmar_handlers.texts.encoded import Encoded

OUTSIDE = "O"


@dataclass
class Span:
    """Characters ``start`` to ``end``, their label, and the probability of each token in them."""

    label: str
    start: int
    end: int
    scores: list[float]

    @property
    def score(self) -> float:
        """The mean probability."""
        return sum(self.scores) / len(self.scores)


def has_prefixes(labels: Sequence[str]) -> bool:
    """Return whether labels mark the beginning of spans: all but ``O`` start with ``B-``, ``I-`` (``E-``, ``S-``)."""
    span_labels = [label for label in labels if label != OUTSIDE]
    return bool(span_labels) and all(label[1:2] == "-" and label[0] in "BIELSU" for label in span_labels)


def join(
    encoded: Encoded, labels: Sequence[str], scores: Sequence[float], *, prefixes: bool, whole_words: bool
) -> list[Span]:
    """Return the spans that the labels of a text's tokens describe, in their order.

    With prefixes, a span continues while tokens are labelled ``I-`` (``E-``, ``L-``) with its name; such a label also
    begins a span if there is none. Without prefixes, neighbours with the same label are a span. ``O`` is no span.

    Args:
        encoded: the text.
        labels: labels of all tokens, including special ones.
        scores: probability of each label.
        prefixes: whether labels mark the beginning of spans.
        whole_words: whether all tokens of a word get the label of its first token.
    """
    spans: list[Span] = []
    going_on = False  # whether the last span ends with the previous token
    word: int | None = None
    rows = zip(encoded.places, encoded.special, encoded.words, labels, scores, strict=True)
    for (start, end), is_special, of_word, label, score in rows:
        if is_special:
            going_on = False
            continue
        if whole_words and of_word is not None and of_word == word:
            if going_on:
                spans[-1].end = max(spans[-1].end, end)
            continue
        word = of_word
        place, name = (label[0], label[2:]) if prefixes and label != OUTSIDE else ("", label)
        if label == OUTSIDE:
            going_on = False
        elif going_on and spans[-1].label == name and place in ("", "I", "E", "L"):
            spans[-1].end = max(spans[-1].end, end)
            spans[-1].scores.append(score)
        else:
            spans.append(Span(name, start, end, [score]))
            going_on = True
    return spans
