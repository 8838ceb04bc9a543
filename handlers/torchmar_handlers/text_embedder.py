"""A handler that returns a vector for a text; texts with similar meanings have similar vectors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from torchmar_handlers.common import npy, signatures
from torchmar_handlers.common.options import OptionError
from torchmar_handlers.request import NotFinite, Request
from torchmar_handlers.texts import outputs
from torchmar_handlers.texts.encoded import Encoded
from torchmar_handlers.texts.handler import TextHandler

POOLINGS = ("mean", "first", "last")


class TextEmbedder(TextHandler):
    """Convert texts to vectors; options in the ``handler`` section of the configuration.

    ============== ======================== ===============================================================
    option         default                  meaning
    ============== ======================== ===============================================================
    normalize      true                     make vectors as long as 1, so that their product is the cosine
    pooling        mean                     of a model that has a vector for each token: their ``mean``, the
                                            ``first`` (``[CLS]``) or the ``last``
    output         the sentence's vector,   the output to take of a model that has several, by its name
                   or the first
    ============== ======================== ===============================================================

    and those of `torchmar_handlers.texts.handler.TextHandler`. The model gives vectors, ``(n, width)``, or one
    for each token, ``(n, length, width)``.

    A prediction is ``{"embedding": [...]}`` with seven significant digits of the largest number; if the
    client accepts ``application/x-npy``, the array itself, float32 ``(width,)``, or ``(n, width)`` for
    an array of texts.
    """

    def initialize(self, context: Any) -> None:
        super().initialize(context)
        self.normalize = self.options.flag("normalize", True)
        self.pooling = self.options.text("pooling", POOLINGS[0], choices=POOLINGS)
        self.output = self.options.text("output", "")
        self.width: int | None = None  # width of the vectors; known after the first vector
        if self.output and self.output_names and self.output not in self.output_names:
            raise OptionError("output", f"the model has no {self.output!r}; it has {', '.join(self.output_names)}")
        self.warm_up(context)

    def predict_handle(self, batch: Sequence[Encoded], requests: Sequence[Request]) -> list[Any]:
        """Return the vector of each text."""
        preferred = (self.output,) if self.output else outputs.VECTORS
        output = outputs.only(self.inference(self.arguments(batch)), preferred, self.output_names).float()
        vectors = self._pooled(output, batch) if output.dim() == 3 else output.reshape(len(batch), -1)
        if not bool(vectors.isfinite().all()):
            raise NotFinite("the model's output for this text is not a number")
        if self.normalize:
            vectors = torch.nn.functional.normalize(vectors, dim=1)
        rows = vectors.cpu().numpy()
        self.width = rows.shape[1]
        return [
            row if request.accepts(npy.CONTENT_TYPE) else {"embedding": _rounded(row)}
            for row, request in zip(rows, requests, strict=True)
        ]

    def columns(self, answers: Sequence[Any]) -> Mapping[str, Any]:
        """Return the vectors as one tensor, ``(n, width)`` float32."""
        rows = [answer["embedding"] if isinstance(answer, Mapping) else answer for answer in answers]
        return {"embedding": np.array(rows, np.float32)}

    def signature(self) -> signatures.Signature:
        """Return a text as input, and a vector as output, with the width of the samples' vectors, if there are any."""
        return signatures.of([signatures.tensor("text", "BYTES")], [signatures.tensor("embedding", "FP32", self.width)])

    def _pooled(self, states: torch.Tensor, batch: Sequence[Encoded]) -> torch.Tensor:
        """Return one vector for each text from the vectors of its tokens, including special ones."""
        rows = self.pieces.rows(states, batch)
        if self.pooling == "mean":
            return torch.stack([row.mean(0) for row in rows])
        return torch.stack([row[0 if self.pooling == "first" else -1] for row in rows])


def _rounded(vector: np.ndarray) -> list[float]:
    """Return numbers with the seven digits of float32, whose decimal form is short."""
    exact = vector.astype(np.float64)
    largest = float(np.abs(exact).max(initial=0))
    decimals = 6 - math.floor(math.log10(largest)) if largest else 0
    return list((np.round(exact, min(decimals, 300)) + 0.0).tolist())
