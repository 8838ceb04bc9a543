"""torchmar.server.kserve_errors writes errors as clients of KServe's protocols read them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from torchmar.server.kserve_errors import is_kserve, with_error


@pytest.mark.parametrize(
    ("target", "is_one"),
    [
        (b"/v1/models/m:predict", True),
        (b"/v2", True),
        (b"/v2?x=1", True),
        (b"http://host:8080/v2/models/m/infer", True),
        (b"/v10/models", False),
        (b"/predictions/v1", False),
        (b"/predictions/m?x=/v1/", False),
        (b"", False),
    ],
)
def test_the_path_determines_the_protocol(target: bytes, is_one: bool) -> None:
    assert is_kserve(target) is is_one


@pytest.mark.parametrize(
    ("body", "document"),
    [
        ({"code": 400, "message": "no"}, {"code": 400, "message": "no", "error": "no"}),
        ({"error": "mine", "message": "no"}, {"error": "mine", "message": "no"}),
        ({"detail": 1}, {"detail": 1, "error": '{"detail": 1}'}),
        ("no", {"error": "no"}),
        (["no"], {"error": '["no"]'}),
    ],
)
def test_an_error_keeps_its_fields(body: Any, document: Any) -> None:
    assert json.loads(with_error(json.dumps(body).encode())) == document


@pytest.mark.parametrize(("body", "error"), [(b"no such label", "no such label"), (b"", ""), (b"\xff", "\ufffd")])
def test_a_text_becomes_the_error(body: bytes, error: str) -> None:
    assert json.loads(with_error(body)) == {"error": error}
