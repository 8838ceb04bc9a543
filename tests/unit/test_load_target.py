"""Requests as bytes for each protocol."""

from __future__ import annotations

import json

import pytest

from torchmar.connection import Endpoint
from torchmar.errors import InsecureError, TorchmarError
from torchmar.exchange import Request
from torchmar.load.kinds import Protocol
from torchmar.load.target import Target, authorization, http_request
from torchmar.load.workload import Case

TENSORS = b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]}'


def _target(protocol: Protocol = "torchserve", version: str | None = None, **endpoint: object) -> Target:
    values: dict[str, object] = {"inference": "http://127.0.0.1:8080", "tokens": {}}
    server = Endpoint(**{**values, **endpoint})  # type: ignore[arg-type]
    return Target(endpoint=server, model="a b", version=version, protocol=protocol)


def _case(body: bytes, content_type: str = "application/json", explain: bool = False) -> Case:
    return Case("a case", Request(body, content_type, explain))


@pytest.mark.parametrize(
    ("protocol", "version", "explain", "path"),
    [
        ("torchserve", None, False, "/predictions/a%20b"),
        ("torchserve", "1.0", False, "/predictions/a%20b/1.0"),
        ("torchserve", None, True, "/explanations/a%20b"),
        ("kserve-v1", None, False, "/v1/models/a%20b:predict"),
        ("kserve-v1", None, True, "/v1/models/a%20b:explain"),
        ("kserve-v2", None, False, "/v2/models/a%20b/infer"),
        ("kserve-v2", "1.0", True, "/v2/models/a%20b/versions/1.0/explain"),
    ],
)
def test_each_protocol_has_its_path(protocol: Protocol, version: str | None, explain: bool, path: str) -> None:
    assert http_request(_target(protocol, version), _case(TENSORS, explain=explain))[0] == path


@pytest.mark.parametrize(
    ("body", "content_type", "instances"),
    [
        (b"[1, 2]", "application/json", [[1, 2]]),
        (b'{"instances": [1, 2]}', "application/json", [1, 2]),
        ("Grüße".encode(), "text/plain", ["Grüße"]),
        (b"\x89PNG", "image/png", [{"b64": "iVBORw=="}]),
    ],
)
def test_a_body_becomes_one_instance_of_kserve_v1(body: bytes, content_type: str, instances: list[object]) -> None:
    _, request = http_request(_target("kserve-v1"), _case(body, content_type))
    assert request.content_type == "application/json"
    assert json.loads(request.body) == {"instances": instances}


def test_invalid_json_is_sent_as_it_is() -> None:
    assert http_request(_target("kserve-v1"), _case(b"{"))[1].body == b"{"


@pytest.mark.parametrize("body", [b"[1]", b"{", b'{"inputs": {"x": 1}}', b"{}"])
def test_what_is_no_request_of_the_open_inference_protocol_is_an_error(body: bytes) -> None:
    with pytest.raises(TorchmarError, match="a case is no request of the Open Inference Protocol") as error:
        http_request(_target("kserve-v2"), _case(body))
    assert '"datatype"' in error.value.hint


def test_a_token_is_not_sent_to_another_machine_in_plain_text() -> None:
    tokens = {"inference": "secret"}
    assert authorization(_target(tokens=tokens)) == "secret"
    assert authorization(_target(inference="https://192.0.2.1", tokens=tokens)) == "secret"
    assert authorization(_target(inference="http://192.0.2.1", tokens=tokens, allow_plain_http=True)) == "secret"
    with pytest.raises(InsecureError, match="in plain text") as error:
        authorization(_target(inference="http://192.0.2.1", tokens=tokens, allow_plain_http=False))
    assert "secret" not in error.value.message
    assert authorization(_target(inference="http://192.0.2.1")) is None
