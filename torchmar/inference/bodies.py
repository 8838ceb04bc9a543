"""The conversion of Python values to request bodies, and of response bodies to Python values."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchmar import exchange
from torchmar.errors import TorchmarError
from torchmar.exchange import ANY, Request, Response

JSON = "application/json"
NPY = "application/x-npy"


def request(
    data: Any, *, explain: bool = False, accept: str = ANY, headers: Mapping[str, str] | None = None
) -> Request:
    """Return the request with ``data`` as its body.

    Args:
        data: a path: the file, with the content type of its suffix; bytes; a text; an array or tensor: ``.npy``
            (this needs numpy); any other value: JSON.
        explain: whether the request is for an explanation.
        accept: content type of the response.
        headers: further headers.

    Raises:
        TorchmarError: the file cannot be read, the array has objects, or JSON cannot represent the value.
    """
    if isinstance(data, Path):
        return exchange.read(data, explain=explain, accept=accept, headers=headers)
    body, content_type = _body(data)
    return Request(body, content_type, explain, accept, headers or {})


def explanation_headers(
    method: str | None = None, target: str | int | None = None, n_steps: int | None = None, baseline: str | None = None
) -> dict[str, str]:
    """Return the headers for the options of an explanation; None means the handler's default."""
    options = {"Method": method, "Target": target, "N-Steps": n_steps, "Baseline": baseline}
    return {f"Explain-{name}": str(value) for name, value in options.items() if value is not None}


def value(response: Response) -> Any:
    """Return the value of a response: Python values for JSON, an array for ``.npy``, a text, or otherwise bytes.

    Raises:
        TorchmarError: the body does not match its content type, or it is an array and numpy is not installed.
    """
    content_type = response.content_type
    try:
        if content_type == JSON:
            return json.loads(response.body)
        if content_type == NPY:
            return _numpy().load(io.BytesIO(response.body), allow_pickle=False)
    except ValueError as error:
        raise TorchmarError(f"the response has content type {content_type}, but its body is not: {error}") from None
    if content_type.startswith("text/"):
        return response.body.decode("utf-8", "replace")
    return response.body if content_type else _guessed(response.body)


def _guessed(body: bytes) -> Any:
    """Return the value of a body without a content type, which is usual for TorchServe's handlers."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return body
    try:
        return json.loads(text)
    except ValueError:
        return text


def _body(data: Any) -> tuple[bytes, str]:
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data), "application/octet-stream"
    if isinstance(data, str):
        return data.encode(), "text/plain"
    if hasattr(data, "__array__"):
        stream = io.BytesIO()
        try:
            _numpy().save(stream, _numpy().asarray(data), allow_pickle=False)
        except ValueError:
            raise TorchmarError("an array of objects cannot be sent", hint="convert it to a numeric dtype") from None
        return stream.getvalue(), NPY
    try:
        return json.dumps(data, ensure_ascii=False, allow_nan=False).encode(), JSON
    except (TypeError, ValueError, RecursionError) as error:
        raise TorchmarError(f"the input cannot be sent as JSON: {error}") from None


def _numpy() -> Any:
    try:
        import numpy
    except ModuleNotFoundError:
        raise TorchmarError("arrays need numpy", hint="pip install numpy") from None
    return numpy
