"""The conversion of texts to words and pairs of words, as in TorchServe's own text handler.

The clean-up is that of ``ts.torch_handler.text_handler`` and ``text_classifier``, step by step; that
module itself is not imported, because it imports captum. In cases where it fails (a word that the vocabulary
does not have, more than one request in a batch), this module continues.
"""

from __future__ import annotations

import functools
import re
import string
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import torch
from ts.handler_utils.text_utils import get_tokenizer, ngrams_iterator
from ts.torch_handler.contractions import CONTRACTION_MAP
from ts.utils.util import CLEANUP_REGEX

from torchmar_handlers.texts.encoded import Encoded, ReadError, padded

FILE = "source_vocab.pt"

_UNKNOWN = ("<unk>", "[UNK]", "<UNK>")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Vocabulary:
    """The vocabulary of an archive of ``text_classifier``; its model is called with ``(ids, offsets)``.

    All texts of a batch are one row of ids, ``(total,)``, and ``offsets``, ``(n,)``, are the beginnings of the texts,
    as in `torch.nn.EmbeddingBag`. A word that the vocabulary does not have is replaced by ``<unk>`` if it has this
    word, or else omitted.

    Args:
        file: the ``source_vocab.pt``, a mapping from words to ids, or a list of words.
        ngrams: largest number of consecutive words that are looked up together; TorchServe's handler has 2.

    Raises:
        ReadError: the file has another form, or loading it needs code.
    """

    length: int | None = None

    def __init__(self, file: Path, ngrams: int) -> None:
        self.vocabulary = _loaded(file)
        self.ngrams = ngrams
        self.unknown = next((self.vocabulary[name] for name in _UNKNOWN if name in self.vocabulary), None)
        self.tokenizer = get_tokenizer("basic_english")

    @property
    def replacements(self) -> dict[str, int]:
        """Ids of neutral words, by name, for explanations; in most vocabularies, 0 is one, without a name."""
        return {"unk": self.unknown or 0}

    def of(self, model: torch.nn.Module) -> Vocabulary:
        """Return this vocabulary: every model is called in the same way."""
        return self

    def encode(self, text: str) -> Encoded:
        """Return the ids of the words of a text, and then of its pairs of words."""
        words: list[str] = self.tokenizer(cleaned(text))
        ends = list(accumulate(len(word) + 1 for word in words))
        ids, places, numbers = [], [], []
        # ngrams_iterator returns the words first, then all pairs in their order, then all triples.
        counted = [(first, count) for count in range(1, self.ngrams + 1) for first in range(len(words) - count + 1)]
        for ngram, (first, count) in zip(ngrams_iterator(words, self.ngrams), counted, strict=True):
            number = self.vocabulary.get(ngram, self.unknown)
            if number is not None:
                ids.append(number)
                places.append((ends[first] - len(words[first]) - 1, ends[first + count - 1] - 1))
                numbers.append(first)
        return Encoded(" ".join(words), ids, places, [False] * len(ids), numbers)

    def kind(self, encoded: Encoded) -> int:
        """Return the same number for all texts: no text is padded."""
        return 1 if encoded.ids else 0

    def tensors(self, batch: Sequence[Encoded]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the ids of texts and their mask, ``(n, tokens)``; no id is special."""
        ids = padded([item.ids for item in batch], 0)
        return ids, padded([[1] * len(item.ids) for item in batch], 0), torch.zeros_like(ids)

    def called_with(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return all ids in a row, and the beginning of each text."""
        real = mask.bool()
        lengths = real.sum(1)
        return ids[real], lengths.cumsum(0) - lengths

    def credited(self, encoded: Encoded, values: Sequence[float]) -> list[tuple[int, int, float]]:
        """Return the places of words with their values; the value of a pair is divided between its words."""
        values_of_spans = {match.span(): 0.0 for match in re.finditer(r"\S+", encoded.text)}
        for (start, end), value in zip(encoded.places, values, strict=True):
            members = [match.span() for match in re.compile(r"\S+").finditer(encoded.text, start, end)]
            for place in members:
                values_of_spans[place] += value / len(members)
        return [(start, end, value) for (start, end), value in values_of_spans.items()]


def cleaned(text: str) -> str:
    """Return a text without HTML, accents, punctuation and capitals, with contractions written out."""
    text = CLEANUP_REGEX.sub("", text).lower()
    text = _contractions().sub(_written_out, text).replace("'", "")
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return text.translate(_NO_PUNCTUATION)


@functools.cache
def _contractions() -> re.Pattern[str]:
    return re.compile(f"({'|'.join(CONTRACTION_MAP)})", re.IGNORECASE | re.DOTALL)


def _written_out(match: re.Match[str]) -> str:
    contraction = match.group(0)
    # IGNORECASE also matches a long s (U+017F) for an s, which is in no key.
    full = CONTRACTION_MAP.get(contraction) or CONTRACTION_MAP.get(contraction.lower()) or contraction
    return contraction[0] + full[1:]


def _loaded(file: Path) -> dict[str, int]:
    expected = "a mapping from words to ids, or a list of words"
    try:
        # On the CPU: the tensors of a vocabulary may have been saved on a GPU.
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # random content may raise any error in the unpickler
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ReadError(
            f"{FILE} is not {expected} that can be loaded without running code of its own ({line}): for a Vocab of "
            f"torchtext, save vocab.get_stoi() with torch.save, and <unk> as its default"
        ) from error
    words = {word: number for number, word in enumerate(content)} if isinstance(content, list | tuple) else content
    sound = isinstance(words, Mapping) and all(
        isinstance(word, str) and type(number) is int and number >= 0 for word, number in words.items()
    )
    if not sound or not words:
        raise ReadError(f"{FILE} is not {expected}: it holds a {type(content).__name__}")
    return dict(words)
