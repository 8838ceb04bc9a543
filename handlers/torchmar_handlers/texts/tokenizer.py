"""The conversion of texts to subword ids, with the archive's own tokenizer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from torchmar_handlers import weights
from torchmar_handlers.common.options import OptionError, Options
from torchmar_handlers.request import BadRequest
from torchmar_handlers.texts.encoded import Encoded, ReadError, padded, trimmed

FILE = "tokenizer.json"

_IDS = ("input_ids", "ids", "tokens")
_MASK = ("attention_mask", "mask")
_TYPES = ("token_type_ids", "type_ids", "segment_ids")
_PADS = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>", "</s>")
_MASKS = ("[MASK]", "<mask>")
_UNKNOWN = ("[UNK]", "<unk>")
_TOKENS = 512  # unless the option, the tokenizer or the model specifies a number
_SHORT = 32  # tokens up to which padding costs less than a separate pass


class Tokenizer:
    """The tokenizer of an archive, and the arguments of its model.

    A model gets ``(ids, mask)``, both ``(n, length)`` int64, by position; or only ``ids`` if it takes no
    more; or, if its inputs have the names that transformers uses (``input_ids``,
    ``attention_mask``, ``token_type_ids``), these tensors in their order.

    Args:
        file: file ``tokenizer.json``.
        options: options of the handler; ``max_tokens`` and ``truncate`` are read.
        model: model that gets the ids.

    Raises:
        ReadError: the file cannot be used, or the package ``tokenizers`` is not installed.
        OptionError: ``max_tokens`` is less than the number of special tokens, or more than the model accepts.
    """

    def __init__(self, file: Path, options: Options, model: torch.nn.Module) -> None:
        self.tokenizer = _loaded(file)
        padding = self.tokenizer.padding or {}
        truncation = self.tokenizer.truncation or {}
        self.left = padding.get("direction") == "left"
        pad = padding.get("pad_id")
        self.pad = pad if pad is not None else _id(self.tokenizer, _PADS) or 0
        self.tokenizer.no_padding()
        self.wants = _wanted(model)
        self.length = _length(model, self.wants)  # None: the model accepts texts of any length
        usual = int(truncation.get("max_length") or _TOKENS)
        self.max_tokens = options.integer("max_tokens", min(usual, self.length or usual), low=1)
        if self.length and self.max_tokens > self.length:
            raise OptionError("max_tokens", f"{self.max_tokens} is more than {self.length}, which the model takes")
        count = self.tokenizer.num_special_tokens_to_add(False)
        if self.max_tokens <= count:
            raise OptionError("max_tokens", f"{self.max_tokens} leaves no room: the tokenizer adds {count} of its own")
        if options.flag("truncate", True):
            self.tokenizer.enable_truncation(self.max_tokens, direction=truncation.get("direction", "right"))
        else:
            self.tokenizer.no_truncation()

    @property
    def replacements(self) -> dict[str, int]:
        """Ids of neutral tokens, by name, for explanations."""
        by_name = {"mask": _id(self.tokenizer, _MASKS), "unk": _id(self.tokenizer, _UNKNOWN), "pad": self.pad}
        return {name: number for name, number in by_name.items() if number is not None}

    def of(self, model: torch.nn.Module) -> Tokenizer:
        """Return this tokenizer for another model of the same texts."""
        other = copy.copy(self)
        other.wants = _wanted(model)
        other.length = _length(model, other.wants)
        return other

    def encode(self, text: str) -> Encoded:
        """Return the ids of a text, cut after ``max_tokens``; if ``truncate`` is false, a longer text is rejected."""
        encoding = self.tokenizer.encode(text)
        ids = encoding.ids
        if len(ids) > self.max_tokens:
            raise BadRequest(f"the text has {len(ids)} tokens; {self.max_tokens} are allowed", 413)
        places, words = encoding.offsets, encoding.word_ids
        special = [bool(flag) for flag in encoding.special_tokens_mask]
        kept_range = None
        if encoding.overflowing:
            visible = [place for place, is_special in zip(places, special, strict=True) if not is_special]
            kept_range = min((start for start, _ in visible), default=0), max((end for _, end in visible), default=0)
        return Encoded(text, ids, [trimmed(text, place) for place in places], special, words, kept_range)

    def kind(self, encoded: Encoded) -> int:
        """Return the power of two above a length, so that padding is never more than half of a batch."""
        return max(_SHORT, 1 << (len(encoded.ids) - 1).bit_length()) if encoded.ids else 0

    def tensors(self, batch: Sequence[Encoded]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the ids of texts, their mask, and the mask of special ids, ``(n, length)`` each."""
        rows = [item.ids for item in batch]
        flags = [[int(flag) for flag in text.special] for text in batch]
        real = [[1] * len(row) for row in rows]
        filled = ((rows, self.pad), (real, 0), (flags, 0))
        ids, mask, special = (padded(part, fill, length=self.length, left=self.left) for part, fill in filled)
        return ids, mask, special

    def called_with(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return ids, mask and the other arguments of the model, in its order."""
        arguments = {"ids": ids, "mask": mask}
        return tuple(arguments[name] if name in arguments else torch.zeros_like(ids) for name in self.wants)

    def rows(self, output: torch.Tensor, batch: Sequence[Encoded]) -> list[torch.Tensor]:
        """Return a model's output for each token, ``(n, length, ...)``, without padding."""
        counts = [len(text.ids) for text in batch]
        starts = [output.shape[1] - count if self.left else 0 for count in counts]
        return [row[start : start + count] for row, start, count in zip(output, starts, counts, strict=True)]

    def credited(self, encoded: Encoded, values: Sequence[float]) -> list[tuple[int, int, float]]:
        """Return the places of tokens with their values; tokens that share a character are merged.

        A tokenizer that replaces characters by another one, such as ``%27`` by an apostrophe, gives it the place of
        the last of them: the characters before it, up to the previous token or white space, are added.
        """
        spans: list[tuple[int, int, float]] = []
        first = encoded.kept[0] if encoded.kept else 0
        for (start, end), is_special, value in zip(encoded.places, encoded.special, values, strict=True):
            if is_special:
                continue
            before = encoded.text[spans[-1][1] if spans else first : start] if start < end else ""
            if before and not before[-1].isspace():
                start -= len(before.split()[-1])
            if spans and start < spans[-1][1]:
                last = spans[-1]
                spans[-1] = (min(last[0], start), max(last[1], end), last[2] + value)
            else:
                spans.append((start, end, value))
        return spans


def _loaded(file: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ReadError(
            f"{FILE} needs the package tokenizers, which is not installed: `pip install tokenizers`, or name it in the "
            "archive's requirements"
        ) from error
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises no more specific error
        raise ReadError(
            f"{FILE} is not a tokenizer that the installed tokenizers can read ({error}): save it anew with "
            "Tokenizer.save, or with save_pretrained of a fast tokenizer of transformers"
        ) from error


def _id(tokenizer: Any, names: Sequence[str]) -> int | None:
    return next((number for name in names if (number := tokenizer.token_to_id(name)) is not None), None)


def _wanted(model: torch.nn.Module) -> tuple[str, ...]:
    """Return the arguments of a model: ``ids``, ``mask`` and ``types``, in its order."""
    kinds = {**dict.fromkeys(_IDS, "ids"), **dict.fromkeys(_MASK, "mask"), **dict.fromkeys(_TYPES, "types")}
    names = weights.input_names(model)
    arguments = []
    for name in names:
        if name not in kinds:
            break
        arguments.append(kinds[name])
    if "ids" in arguments:
        return tuple(arguments)
    return ("ids",) if len(names) == 1 else ("ids", "mask")


def _length(model: torch.nn.Module, arguments: Sequence[str]) -> int | None:
    """Return the length of the texts that a model accepts; None: any length."""
    inputs = weights.inputs(model)
    shape = inputs[arguments.index("ids")].shape if len(inputs) > arguments.index("ids") else None
    return shape[1] if shape is not None and len(shape) == 2 else None
