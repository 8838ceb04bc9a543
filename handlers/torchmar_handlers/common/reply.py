"""One answer of a batch: bytes, a content type and a status."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import numpy as np

try:
    import orjson
except ImportError:  # the same answers, but slower
    orjson = None  # type: ignore[assignment]

from torchmar_handlers.common import npy
from torchmar_handlers.request import JSON

PNG = "image/png"


@dataclass(slots=True)
class Reply:
    """The response to one request; TorchServe sets a content type that is empty."""

    body: Any
    content_type: str = ""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, answer: Any) -> Reply:
        """Return the reply for a handler's answer: bytes, text and tensors unchanged, other values as JSON.

        Raises:
            ValueError: a number is NaN or infinite, which JSON cannot represent.
            TypeError: a value has no JSON form.
        """
        if isinstance(answer, Reply):
            return answer
        # TorchServe sends a tensor as torch.save writes it.
        if isinstance(answer, bytes | bytearray | str) or type(answer).__name__ == "Tensor":
            return cls(answer)
        return cls.json(answer)

    @classmethod
    def json(cls, answer: Any) -> Reply:
        """Return an answer as compact JSON, NumPy's arrays and numbers as lists and numbers."""
        # A whole array at once: for NumPy's numbers, orjson would call ``_plain`` for each.
        plain = answer.tolist() if isinstance(answer, np.ndarray) else answer
        if orjson is not None:
            try:
                body = orjson.dumps(plain, _plain, _STRICT)
            except TypeError:  # keys that are no texts, numbers beyond 64 bits, values without a JSON form
                pass
            else:
                # orjson writes null for NaN, too; the standard encoder distinguishes them.
                if b"null" not in body:
                    return cls(body, JSON)
        return cls(_ENCODER.encode(plain).encode(), JSON)

    @classmethod
    def npy(cls, array: np.ndarray) -> Reply:
        """Return an array as a ``.npy`` file."""
        return cls(npy.write(array), npy.CONTENT_TYPE)

    @classmethod
    def error(cls, status: int, message: str, **more: Any) -> Reply:
        """Return an error in the form of TorchServe's: ``code``, ``type``, ``message``; with the keys of ``more``."""
        # The names of TorchServe's own errors, so that a client reads both in the same way.
        kind = "BadRequestException" if status < 500 else "InternalServerException"
        answer = cls.json({"code": status, "type": kind, "message": message, **more})
        return cls(answer.body, JSON, status)

    @property
    def message(self) -> str:
        """The message of an error from `error`; empty for other answers."""
        return str(json.loads(self.body)["message"]) if self.status >= 400 else ""

    def send(self, context: Any, index: int) -> Any:
        """Set status and headers of request ``index``; return the body for TorchServe's list."""
        if self.content_type:
            context.set_response_content_type(index, self.content_type)
        for name, value in self.headers.items():
            context.set_response_header(index, name, value)
        if self.status != 200:
            context.set_response_status(self.status, _PHRASES.get(self.status, ""), index)
        return self.body


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"an answer has a {type(value).__name__}, which JSON cannot say")


_PHRASES = {status.value: status.phrase for status in HTTPStatus}
_STRICT = (
    orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS
    if orjson is not None
    else None
)
_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_plain)
