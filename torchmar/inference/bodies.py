"""Python values to request bodies, and response bodies to Python values."""

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
    """Return the request that asks with ``data``.

    Args:
        data: a path: the file, with the content type of its suffix; bytes; a text; an array or tensor: ``.npy``
            (this needs numpy); anything else: JSON.
        explain: whether an explanation is wanted.
        accept: the content type of the answer that is wanted.
        headers: more of them.

    Raises:
        TorchmarError: the file cannot be read, the array has objects, or the value is no JSON.
    """
    if isinstance(data, Path):
        return exchange.read(data, explain=explain, accept=accept, headers=headers)
    body, content_type = _body(data)
    return Request(body, content_type, explain, accept, headers or {})


def explanation_headers(
    method: str | None = None, target: str | int | None = None, n_steps: int | None = None, baseline: str | None = None
) -> dict[str, str]:
    """Return the headers by which a request says how it wants to be explained; None is the handler's default."""
    asked = {"Method": method, "Target": target, "N-Steps": n_steps, "Baseline": baseline}
    return {f"Explain-{name}": str(value) for name, value in asked.items() if value is not None}


def value(answer: Response) -> Any:
    """Return what an answer says: JSON as Python values, ``.npy`` as an array, a text; bytes if it is none of these.

    Raises:
        TorchmarError: the answer is not what it says that it is, or is an array and there is no numpy.
    """
    kind = answer.content_type
    try:
        if kind == JSON:
            return json.loads(answer.body)
        if kind == NPY:
            return _numpy().load(io.BytesIO(answer.body), allow_pickle=False)
    except ValueError as error:
        raise TorchmarError(f"the answer says that it is {kind}, and is not: {error}") from None
    if kind.startswith("text/"):
        return answer.body.decode("utf-8", "replace")
    return answer.body if kind else _guessed(answer.body)


def _guessed(body: bytes) -> Any:
    """Return the value of a body without a content type, as TorchServe sends those of most handlers."""
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
            raise TorchmarError("an array of objects cannot be sent", hint="give it a dtype of numbers") from None
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
