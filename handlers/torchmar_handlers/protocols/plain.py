"""A request of no protocol: a file, a text or JSON, answered with the handler's answer itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from torchmar_handlers.common import npy
from torchmar_handlers.common.reply import Reply
from torchmar_handlers.protocols.parsed_request import HandlerInfo, ParsedRequest, instances
from torchmar_handlers.request import JSON_LINES, Request

_BYTES = (bytes, bytearray)


def read(request: Request, handler: HandlerInfo) -> ParsedRequest:
    """Return a request's only instance, or the rows that the handler finds in its body."""
    payload = request.payload
    is_npy = isinstance(payload, _BYTES) and payload[: len(npy.MAGIC)] == npy.MAGIC
    if is_npy:
        request = replace(request, row={"body": npy.read(payload)})
    as_npy = is_npy or request.accepts(npy.CONTENT_TYPE)
    rows = handler.rows(request)
    if rows is None:
        return ParsedRequest([request], partial(_one, as_npy=as_npy), many=False)
    values = instances(rows, "the body", handler.max_instances)
    return ParsedRequest([request.part(row) for row in values], partial(_many, as_npy=as_npy))


def read_lines(request: Request, documents: list[Any], handler: HandlerInfo) -> ParsedRequest:
    """Return the instances of a request with several documents, each of which is an instance.

    The answer is an array, or separate lines if the client accepts JSON lines.
    """
    values = instances(documents, "the body", handler.max_instances)
    lines = next(filter(request.accepts, JSON_LINES), "")
    return ParsedRequest([request.part(document) for document in values], partial(_listed, lines=lines))


def _listed(answers: Sequence[Any], *, lines: str) -> Reply:
    if not lines:
        return _many(answers, as_npy=False)
    return Reply(b"".join(Reply.json(bare(answer)).body + b"\n" for answer in answers), lines)


def _one(answers: Sequence[Any], *, as_npy: bool) -> Reply:
    return _reply(answers[0], as_npy)


def _many(answers: Sequence[Any], *, as_npy: bool) -> Reply:
    return _reply(_together(answers), as_npy)


def _together(answers: Sequence[Any]) -> Any:
    arrays = [answer for answer in answers if isinstance(answer, np.ndarray)]
    if len(arrays) == len(answers) and len({array.shape for array in arrays}) == 1:
        return np.stack(arrays)
    return [bare(answer) for answer in answers]


def bare(answer: Any) -> Any:
    """Return an answer for a JSON document with several answers; the bytes of a file in base64."""
    if not isinstance(answer, Reply):
        return answer
    import base64

    return {"b64": base64.b64encode(answer.body).decode(), "content_type": answer.content_type}


def in_json(answer: Any) -> str:
    """Return an answer as JSON for a tensor of texts."""
    text: str = Reply.json(bare(answer)).body.decode()
    return text


def _reply(answer: Any, as_npy: bool) -> Reply:
    if isinstance(answer, np.ndarray):
        return Reply.npy(answer) if as_npy else Reply.json(answer)
    return Reply.of(answer)
