"""Archives whose answers show the input of their handlers, and requests for the comparison of two servers."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.packing import pack_handler
from tests.support.paths import DIGITS
from torchmar import archive

# A batch with "fail" in it fails as a whole; "teapot" sets the status of one request.
HANDLER = """
def handle(rows, context):
    if rows is None:
        return None
    if any(row.get("body") == "fail" for row in rows):
        raise ValueError("this request fails")
    answers = []
    for index, row in enumerate(rows):
        if row.get("body") == "teapot":
            context.set_response_status(418, "", index)
        context.set_response_content_type(index, "application/json")
        context.set_response_header(index, "x-batch", str(len(rows)))
        shown = {name: bytes(value).hex() if isinstance(value, bytearray) else value for name, value in row.items()}
        answers.append({"row": shown, "explain": context.get_request_header(index, "explain")})
    return answers
"""
SEVEN = (DIGITS / "samples" / "seven.png").read_bytes()
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "text": ("/predictions/rows", {"data": b"hello", "headers": {"Content-Type": "text/plain"}}),
    "JSON": ("/predictions/rows/2.0", {"json": {"a": [1, None]}}),
    "bytes": ("/predictions/rows", {"data": b"\x00\xff", "headers": {"Content-Type": "application/octet-stream"}}),
    "no content type": ("/predictions/rows", {"data": b"\x01"}),
    "fields": ("/predictions/rows", {"data": {"a": "1", "b": "2"}}),
    "files": ("/predictions/rows", {"files": {"a": ("a.json", b"[1]", "application/json"), "b": ("b", b"\x00")}}),
    "status of the handler": ("/predictions/rows", {"data": b"teapot", "headers": {"Content-Type": "text/plain"}}),
    "an error": ("/predictions/rows", {"data": b"fail", "headers": {"Content-Type": "text/plain"}}),
    "explanation": ("/explanations/rows", {"json": 1}),
    "no such model": ("/predictions/none", {"json": 1}),
    "no such version": ("/predictions/rows/3.0", {"json": 1}),
    "no such path": ("/prediction/rows", {"json": 1}),
    "SageMaker": ("/invocations?model_name=rows", {"json": 1}),
    "SageMaker without a model": ("/invocations", {"json": 1}),
    "an image": ("/predictions/digits", {"data": SEVEN}),
    "an image as JSON": ("/predictions/digits", {"json": {"data": base64.b64encode(SEVEN).decode()}}),
    "no image": ("/predictions/digits", {"data": b"nothing"}),
    "an image explained": ("/explanations/digits", {"data": SEVEN}),
}


def build_archives(folder: Path, **config: object) -> list[Path]:
    """Build the archives of the requests in the folder ``store``: rows 2.0, with this handler, and digits 1.0."""
    keys = {"minWorkers": 1, "maxWorkers": 1, "batchSize": 4, "maxBatchDelay": 50, **config}
    store = folder / "store"
    rows = pack_handler(store, HANDLER, name="rows", version="2.0", config=keys)
    return [rows, archive.build(DIGITS, store).path]


def assert_equal_answers(name: str, expected: str, other: str) -> None:
    """Send a request to two servers, and compare the answers."""
    path, request = REQUESTS[name]
    first, second = (requests.post(url + path, timeout=60, **request) for url in (expected, other))
    assert (second.status_code, second.headers.get("content-type")) == (
        first.status_code,
        first.headers.get("content-type"),
    ), second.text
    assert second.headers["x-request-id"]
    if path == "/predictions/digits" and first.status_code == 200:
        assert second.json() == pytest.approx(first.json(), abs=1e-5)
    elif path == "/explanations/digits":
        assert second.json().keys() == first.json().keys()
    else:
        assert second.content == first.content
