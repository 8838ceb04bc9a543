"""An encoded text: token ids with their places in the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

Place = tuple[int, int]  # first character and the one after the last


class ReadError(RuntimeError):
    """A tokenizer or vocabulary of the archive that cannot be used: what is wrong, and what to do next."""


@dataclass(frozen=True)
class Encoded:
    """One text and its ids.

    Attributes:
        text: what the places are of: the text as it was sent, or what was left of it when it was cleaned.
        ids: what the model looks up, with special tokens.
        places: where each of them stands in the text.
        special: which are no part of the text (``[CLS]``).
        words: the number of the word that each belongs to; None for special ones.
        kept: the part of the text that the ids are of, if the rest was cut off; else None.
    """

    text: str
    ids: Sequence[int]
    places: Sequence[Place]
    special: Sequence[bool]
    words: Sequence[int | None]
    kept: Place | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing of the text is left."""
        return all(self.special)


class Reader(Protocol):
    """An encoder of texts to the arguments of a model."""

    length: int | None  # tokens of every text, where the model takes no other number of them

    @property
    def replacements(self) -> Mapping[str, int]:
        """Ids of neutral tokens, by name, for explanations; at least one."""

    def of(self, model: torch.nn.Module) -> Reader:
        """Return this reader for another model of the same texts, which may take its arguments in another order."""

    def encode(self, text: str) -> Encoded:
        """Return the ids of a text. Raises BadRequest (413) when it has more than the model takes."""

    def kind(self, encoded: Encoded) -> int:
        """Return a number, not 0, that texts which go well into one batch have in common."""

    def tensors(self, batch: Sequence[Encoded]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the ids of texts, their mask, and which of them are special: ``(n, tokens)`` int64 each."""

    def called_with(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return what the model is called with, by position, for ids and their mask."""

    def credited(self, encoded: Encoded, values: Sequence[float]) -> list[tuple[int, int, float]]:
        """Return places in the text that do not overlap, with the values of the ids that stand there."""


def padded(rows: Sequence[Sequence[int]], fill: int, *, length: int | None = None, left: bool = False) -> torch.Tensor:
    """Return rows of numbers as a tensor, ``(n, length)`` int64, filled up with ``fill``.

    Args:
        rows: the numbers.
        fill: what shorter rows are filled up with.
        length: of all rows; the longest one's unless given.
        left: fill up on the left.
    """
    longest = length or max(map(len, rows))
    filled = [[fill] * (longest - len(row)) for row in rows]
    parts = [[*more, *row] if left else [*row, *more] for row, more in zip(rows, filled, strict=True)]
    return torch.tensor(parts, dtype=torch.long)


def trimmed(text: str, place: Place) -> Place:
    """Return a place without the white space at its ends, which some tokenizers count in; all white space stays."""
    start, end = place
    part = text[start:end]
    bare = part.strip()
    if not bare:
        return place
    return start + len(part) - len(part.lstrip()), start + len(part.rstrip())
