"""An encoded text: token ids with their places in the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

Place = tuple[int, int]  # index of the first character, and of the one after the last


class ReadError(RuntimeError):
    """A tokenizer or vocabulary of the archive cannot be used; the message has the reason and the remedy."""


@dataclass(frozen=True)
class Encoded:
    """One text and its ids.

    Attributes:
        text: the text to which the places refer: the original text, or the text after the clean-up.
        ids: ids for the model, including special tokens.
        places: place of each id in the text.
        special: whether each id is no part of the text (``[CLS]``).
        words: index of the word of each id; None for special ids.
        kept: the part of the text with the ids, if the rest was cut off; else None.
    """

    text: str
    ids: Sequence[int]
    places: Sequence[Place]
    special: Sequence[bool]
    words: Sequence[int | None]
    kept: Place | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no part of the text is left."""
        return all(self.special)


class Reader(Protocol):
    """An encoder of texts to the arguments of a model."""

    length: int | None  # tokens of every text, if the model accepts no other number

    @property
    def replacements(self) -> Mapping[str, int]:
        """Ids of neutral tokens, by name, for explanations; at least one."""

    def of(self, model: torch.nn.Module) -> Reader:
        """Return a reader for another model of the same texts, whose arguments may have another order."""

    def encode(self, text: str) -> Encoded:
        """Return the ids of a text. Raises BadRequest (413) if the model does not accept so many."""

    def kind(self, encoded: Encoded) -> int:
        """Return a number, not 0, that is equal for texts that suit one batch."""

    def tensors(self, batch: Sequence[Encoded]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the ids of texts, their mask, and the mask of special ids: ``(n, tokens)`` int64 each."""

    def called_with(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the positional arguments of the model for ids and their mask."""

    def credited(self, encoded: Encoded, values: Sequence[float]) -> list[tuple[int, int, float]]:
        """Return places in the text that do not overlap, with the values of the ids in them."""


def padded(rows: Sequence[Sequence[int]], fill: int, *, length: int | None = None, left: bool = False) -> torch.Tensor:
    """Return rows of numbers as a tensor, ``(n, length)`` int64, padded with ``fill``.

    Args:
        rows: the numbers.
        fill: number that pads shorter rows.
        length: length of all rows; default: that of the longest row.
        left: whether to pad on the left.
    """
    longest = length or max(map(len, rows))
    filled = [[fill] * (longest - len(row)) for row in rows]
    parts = [[*padding, *row] if left else [*row, *padding] for row, padding in zip(rows, filled, strict=True)]
    return torch.tensor(parts, dtype=torch.long)


def trimmed(text: str, place: Place) -> Place:
    """Return a place without the white space at its ends, which some tokenizers include; only white space is kept."""
    start, end = place
    part = text[start:end]
    bare = part.strip()
    if not bare:
        return place
    return start + len(part) - len(part.lstrip()), start + len(part.rstrip())
