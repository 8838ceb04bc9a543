"""The protocols of clients, each recognised by the request itself and answered in the same form.

========================== ========================================= ===================================
protocol                   a body                                    its answer
========================== ========================================= ===================================
plain                      a file, a text, JSON, ``.npy``            the handler's answer itself
JSON lines                 a JSON document on each line              a JSON array of answers, or lines
KServe v1, TF Serving row  ``{"instances": [...]}``                  ``{"predictions": [...]}``
TF Serving column          ``{"inputs": {name: [...]}}``             ``{"outputs": ...}``
Open Inference (KServe v2) ``{"inputs": [{name, shape, ...}]}``      ``{"outputs": [{name, shape, ...}]}``
========================== ========================================= ===================================

A request of any protocol becomes one or more instances, each a separate `Request`, so that
handlers decode one input at a time, and do not know protocols.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torchmar_handlers.common import npy
from torchmar_handlers.protocols import open_inference, plain, tensorflow
from torchmar_handlers.protocols.parsed_request import HandlerInfo, ParsedRequest
from torchmar_handlers.request import JSON, JSON_LINES, MAPPINGS, TEXTS, BadRequest, Request, loads

__all__ = ["HandlerInfo", "ParsedRequest", "plain_json", "read"]

_NESTED = frozenset({list, dict})
_BINARY = open_inference.HEADER_LENGTH.lower()


def read(request: Request, handler: HandlerInfo) -> ParsedRequest:
    """Return the instances of a request, and the function that combines their answers.

    Raises:
        BadRequest: the body violates its protocol, or a limit (413).
    """
    if _BINARY in request.headers:
        return open_inference.read_binary(request, request.headers[_BINARY], handler)
    if "body" not in request.row:
        request.check_form()
        if (payload := request.payload) is not None:
            # A form's input: from here on it is the body, for any name of the field.
            fields = {name: value for name, value in request.row.items() if value is not payload}
            request = replace(request, row={**fields, "body": payload})
    if request.media_type in JSON_LINES:
        return _lines(request, handler)
    body = _document(request)
    if isinstance(body, list):
        _check_json_depth(body, handler.max_json_depth)
        return plain.read(request, handler)
    if not isinstance(body, MAPPINGS):
        return plain.read(request, handler)
    _check_json_depth(body, handler.max_json_depth)
    if body is not request.row.get("body"):
        request = replace(request, row={**request.row, "body": body})
    if open_inference.speaks(body):
        return open_inference.read(request, body, handler)
    if tensorflow.speaks_rows(body):
        return tensorflow.read_rows(request, body, handler)
    if tensorflow.speaks_columns(body):
        return tensorflow.read_columns(request, body, handler)
    return plain.read(request, handler)


def plain_json(context: Any, index: int) -> bool:
    """Return whether request ``index`` is a prediction with JSON in request and answer, by its headers.

    If its body is an array, its protocol is the plain one.
    """
    raw_headers = context.get_all_request_header(index)
    headers = dict(zip(map(str.lower, raw_headers), raw_headers.values(), strict=True))
    return (
        headers.get("content-type") == JSON
        and headers.get("explain") != "True"
        and headers.get("describe") != "True"
        and _BINARY not in headers
        and npy.CONTENT_TYPE not in str(headers.get("accept", "")).lower()
    )


def _document(request: Request) -> Any:
    """Return the body as parsed JSON; None: it is another body, which the handler decodes."""
    payload = request.row.get("body")
    if not isinstance(payload, TEXTS):
        return payload
    # TorchServe parses a body only if its type is exactly application/json.
    start = payload[:200].lstrip()[:1]
    if start not in (b"{", "{", b"[", "[") or not (request.sends(JSON) or _may_be_ours(payload)):
        return None
    if str(request.headers.get("content-type", "")).startswith("text/"):
        return None  # a text, which may look like JSON
    if request.sends(JSON):
        return loads(payload)
    try:
        return json.loads(payload)
    except (ValueError, RecursionError):
        return None


def _lines(request: Request, handler: HandlerInfo) -> ParsedRequest:
    """Return the instances of JSON lines: a document on each line that is not blank."""
    payload = request.payload
    if not isinstance(payload, bytes | bytearray | str):
        raise BadRequest("JSON lines are sent as text")
    lines: Sequence[bytes | bytearray | str] = payload.splitlines()
    documents = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                documents.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise BadRequest(f"line {number} of the body is not JSON: {error}") from None
    _check_json_depth(documents, handler.max_json_depth)
    return plain.read_lines(request, documents, handler)


def _may_be_ours(payload: bytes | bytearray | str) -> bool:
    """Return whether a body without a declared type could be JSON of a protocol (and not, for example, a text)."""
    keys = ("instances", "inputs")
    return any((f'"{key}"' if isinstance(payload, str) else f'"{key}"'.encode()) in payload for key in keys)  # type: ignore[operator]


def _check_json_depth(value: Any, limit: int) -> None:
    level: Sequence[Any] = [value]
    for _ in range(limit + 1):
        below: list[Any] = []
        for item in level:
            values = item if type(item) is list else item.values()
            # Most bodies contain only numbers, which this check finds without a step of Python for each.
            if not _NESTED.isdisjoint(map(type, values)):
                below += [element for element in values if type(element) in _NESTED]
        if not below:
            return
        level = below
    raise BadRequest(f"the JSON is nested more than {limit} levels deep; {limit} are allowed")
