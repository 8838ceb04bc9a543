"""The base class of the handlers of texts: a text is checked and converted to ids."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from torchmar_handlers import weights
from torchmar_handlers.base import BaseHandler
from torchmar_handlers.request import BadRequest, Request
from torchmar_handlers.texts import tokenizer
from torchmar_handlers.texts.encoded import Encoded, Reader, ReadError

_TEXTS = ("the", "a", "1", "der", "la", "\u7684")


class TextHandler(BaseHandler):
    """Answer texts.

    ============== ==================================== ================================================
    option         default                              meaning
    ============== ==================================== ================================================
    max_text       100000                               characters of a text; more get 413
    max_tokens     what ``tokenizer.json`` says, or     tokens that the model sees of a text, with those
                   512; the model's, if that is fixed   that the tokenizer adds
    truncate       true                                 cut longer texts; false: reject them (413)
    ============== ==================================== ================================================

    The archive contains the ``tokenizer.json`` of the package ``tokenizers`` (any fast tokenizer of
    transformers writes it); the server needs this package, too. See `torchmar_handlers.texts.tokenizer` for the
    arguments of the model.

    A text is UTF-8, raw or in JSON: ``"..."`` or ``{"text": "..."}``; several are an array of these.
    Texts of a batch with similar lengths are run by the model together, padded to the longest.
    """

    #: Whether a text without a token (such as white space) is answered without the model, or rejected.
    empty_texts = False

    def initialize(self, context: Any) -> None:
        super().initialize(context)
        self.max_text = self.options.integer("max_text", 100_000, low=1)
        self.reader = self.read_with(Path(context.system_properties.get("model_dir")))
        self.output_names = weights.output_names(self.model)

    def read_with(self, folder: Path) -> Reader:
        """Return the reader that converts texts to ids, from files of the archive in ``folder``."""
        self.pieces = self._pieces(folder)
        return self.pieces

    def rows(self, request: Request) -> list[Any] | None:
        """Return the texts of a JSON array."""
        payload = request.payload
        return payload if isinstance(payload, list) else None

    def typical_inputs(self) -> Iterator[Encoded]:
        """Yield a short text in the probable language of the archive."""
        for text in _TEXTS:
            encoded = self.reader.encode(text)
            if not encoded.is_empty:
                yield encoded

    def decode(self, request: Request) -> Encoded:
        """Return the ids of a request's text."""
        text = request.text()
        if len(text) > self.max_text:
            raise BadRequest(f"the text has {len(text)} characters; {self.max_text} are allowed", 413)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadRequest(f"the text is not Unicode: character {error.start} is half of a surrogate pair") from None
        encoded = self.reader.encode(text)
        if encoded.is_empty and not self.empty_texts:
            raise BadRequest("the text has no word that the model knows")
        return encoded

    def group(self, decoded: Encoded) -> Hashable:
        """Return a number that texts of about the same length share."""
        return 0 if decoded.is_empty else self.reader.kind(decoded)

    def preprocess(self, inputs: Sequence[Encoded]) -> Sequence[Encoded]:
        """Return the texts unchanged; the model's arguments are made when it is called."""
        return inputs

    def arguments(self, batch: Sequence[Encoded]) -> tuple[torch.Tensor, ...]:
        """Return the model's arguments for a batch."""
        return self.reader.called_with(*self.reader.tensors(batch)[:2])

    def _pieces(self, folder: Path) -> tokenizer.Tokenizer:
        file = folder / tokenizer.FILE
        if not file.is_file():
            raise ReadError(
                f"the archive has no {tokenizer.FILE}, which makes tokens of texts: name it under files: in the recipe "
                "(tokenizers' Tokenizer.save writes it, and save_pretrained of transformers)"
            )
        return tokenizer.Tokenizer(file, self.options, self.model)
