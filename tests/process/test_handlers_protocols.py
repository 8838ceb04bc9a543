"""torchmar_handlers.protocols recognises the protocol of a request, and replies in the same protocol."""

from __future__ import annotations

import base64
import io
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from torchmar_handlers import protocols
from torchmar_handlers.common.reply import PNG, Reply
from torchmar_handlers.request import BadRequest, Request


class Echo:
    """The part of a handler that protocols use: at most four instances, five levels of JSON."""

    named = False
    max_instances = 4
    max_json_depth = 5
    table = False
    outputs: Sequence[str] = ()

    def rows(self, request: Request) -> list[Any] | None:
        return request.payload if self.table else None

    def columns(self, answers: Sequence[Any]) -> Mapping[str, Any] | None:
        return {name: [answer[name] for answer in answers] for name in self.outputs} if self.outputs else None

    def served_as(self) -> tuple[str, str]:
        return "echo", "1.0"


class Named(Echo):
    """A handler with two outputs."""

    outputs = ("a", "b")


def request(body: Any, **headers: str) -> Request:
    return Request(0, {"body": body}, {name.replace("_", "-"): value for name, value in headers.items()})


def answer(request: Request, served: Any = None, answers: Any = None) -> Any:
    """Return the reply to a request whose instances are returned as answers."""
    parsed = protocols.read(request, served or Echo())
    reply = parsed.reply(answers or [part.payload for part in parsed.parts])
    return json.loads(reply.body) if reply.content_type == "application/json" else reply


def v2(*inputs: Any, **more: Any) -> dict[str, Any]:
    tensors = [dict(zip(("name", "shape", "datatype", "data"), tensor, strict=True)) for tensor in inputs]
    return {"inputs": tensors, **more}


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_rows_are_answered_with_predictions() -> None:
    assert answer(request({"instances": [1, {"a": 2}, [3]]})) == {"predictions": [1, {"a": 2}, [3]]}
    assert answer(request({"instances": [1]}, explain="True")) == {"explanations": [1]}
    assert answer(request({"signature_name": "serving_default", "instances": ["x"]})) == {"predictions": ["x"]}


def test_rows_and_columns_in_one_body_are_rejected() -> None:
    with pytest.raises(BadRequest, match="both instances and inputs"):
        answer(request({"instances": [1], "inputs": [2]}))


def test_columns_are_answered_with_outputs() -> None:
    assert answer(request({"inputs": [1, 2]})) == {"outputs": [1, 2]}
    columns = {"a": [1, 2], "b": ["x", "y"]}
    assert answer(request({"inputs": columns}), Named()) == {"outputs": columns}
    assert answer(request({"inputs": columns})) == {"outputs": [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]}
    assert answer(request({"inputs": {"a": [1, 2]}})) == {"outputs": [1, 2]}


def test_a_single_named_column_keeps_its_name_if_the_handler_uses_names() -> None:
    served = Echo()
    served.named = True
    assert [part.payload for part in protocols.read(request({"inputs": {"a": [1, 2]}}), served).parts] == [
        {"a": 1},
        {"a": 2},
    ]


@pytest.mark.parametrize("datatype", ["UINT8", "INT16", "INT64", "FP16", "FP32", "FP64"])
def test_tensors_are_answered_with_tensors(datatype: str) -> None:
    for data in ([1, 2, 3, 4], [[1, 2], [3, 4]]):
        reply = answer(request(v2(("x", [2, 2], datatype, data), id="7")))
        assert reply == {
            "model_name": "echo",
            "model_version": "1.0",
            "id": "7",
            "outputs": [{"name": "output", "shape": [2, 2], "datatype": datatype, "data": [1, 2, 3, 4]}],
        }


def test_texts_booleans_and_objects_have_tensors_too() -> None:
    assert answer(request(v2(("x", [2, 1], "BYTES", ["a", "ö"]))))["outputs"][0]["data"] == ["a", "ö"]
    assert answer(request(v2(("x", [2], "BOOL", [True, False]))))["outputs"][0]["datatype"] == "BOOL"
    both = request(v2(("x", [2], "INT32", [1, 2]), ("y", [2], "BYTES", ["a", "b"])))
    named = Named()
    named.outputs = ("x", "y")
    assert [(output["name"], output["data"]) for output in answer(both, named)["outputs"]] == [
        ("x", [1, 2]),
        ("y", ["a", "b"]),
    ]
    mixed = answer(request(v2(("x", [2], "INT32", [1, 2]))), answers=[{"a": 0.5}, {"b": 0.25}])
    assert mixed["outputs"][0] | {"data": [*map(json.loads, mixed["outputs"][0]["data"])]} == {
        "name": "output",
        "shape": [2],
        "datatype": "BYTES",
        "data": [{"a": 0.5}, {"b": 0.25}],
    }


def test_a_client_may_choose_among_outputs() -> None:
    served = Named()
    served.outputs = ("x", "y")
    document = v2(("x", [1], "INT32", [1]), ("y", [1], "INT32", [2]))
    chosen = answer(request({**document, "outputs": [{"name": "y"}]}), served)
    assert [output["name"] for output in chosen["outputs"]] == ["y"]
    parsed = protocols.read(request({**document, "outputs": [{"name": "z"}]}), served)
    with pytest.raises(BadRequest, match="no output 'z'; there are x, y"):
        parsed.reply([part.payload for part in parsed.parts])


def test_tensors_may_follow_the_json_as_bytes() -> None:
    numbers = np.array([[1.5, 2], [3, 4]], np.float32).tobytes()
    texts = b"".join(struct.pack("<I", len(encoded)) + encoded for encoded in (b"a", "ö".encode()))
    header = {
        "inputs": [
            {"name": n, "shape": s, "datatype": t, "parameters": {"binary_data_size": len(d)}}
            for n, s, t, d in (("x", [2, 2], "FP32", numbers), ("y", [2], "BYTES", texts))
        ]
    }
    start = json.dumps(header).encode()
    binary_request = Request(0, {"body": start + numbers + texts}, {"inference-header-content-length": str(len(start))})
    parts = [part.payload for part in protocols.read(binary_request, Echo()).parts]
    assert [part["x"].tolist() for part in parts] == [[1.5, 2], [3, 4]]
    assert [part["y"] for part in parts] == [b"a", "ö".encode()]


def binary(reply: Any) -> tuple[dict[str, Any], bytes]:
    """Return the JSON of an answer with tensors as bytes, and these."""
    length = int(reply.headers["Inference-Header-Content-Length"])
    assert reply.content_type == "application/octet-stream"
    return json.loads(reply.body[:length]), reply.body[length:]


def test_outputs_are_bytes_if_the_client_requests_it() -> None:
    served = Named()
    served.outputs = ("x", "y")
    request_document = v2(
        ("x", [2], "FP32", [1, 2]), ("y", [2], "BYTES", ["a", "ö"]), parameters={"binary_data_output": True}
    )
    document, content = binary(answer(request(request_document), served))
    x = np.array([1, 2], np.float64).tobytes()
    y = b"\1\0\0\0a\2\0\0\0\xc3\xb6"
    assert [(output["name"], output["parameters"]) for output in document["outputs"]] == [
        ("x", {"binary_data_size": len(x)}),
        ("y", {"binary_data_size": len(y)}),
    ]
    assert content == x + y
    some = {**request_document, "outputs": [{"name": "x", "parameters": {"binary_data": False}}, {"name": "y"}]}
    document, content = binary(answer(request(some), served))
    assert (document["outputs"][0]["data"], content) == ([1, 2], y)
    assert all(part.as_bytes for part in protocols.read(request(request_document), Echo()).parts)
    assert not any(part.as_bytes for part in protocols.read(request(some), Echo()).parts)


def test_an_output_may_be_its_highest_values() -> None:
    document = v2(("x", [2, 3], "FP32", [0.5, 2, 1, 3, 0, 0.25]))
    chosen = {**document, "outputs": [{"name": "output", "parameters": {"classification": 2}}]}
    (output,) = answer(request(chosen))["outputs"]
    assert (output["shape"], output["datatype"]) == ([2, 2], "BYTES")
    assert output["data"] == ["2.000000:1", "1.000000:2", "3.000000:0", "0.250000:2"]


@pytest.mark.parametrize("datatype", ["BF16", "FP16"])
def test_half_of_a_float_is_read(datatype: str) -> None:
    content = np.array([1.5, -2.0], "<f4").view("<u2")[1::2].tobytes()
    if datatype == "FP16":
        content = np.array([1.5, -2.0], "<f2").tobytes()
    tensor = {"name": "x", "shape": [2], "datatype": datatype, "parameters": {"binary_data_size": 4}}
    start = json.dumps({"inputs": [tensor]}).encode()
    binary_request = Request(0, {"body": start + content}, {"inference-header-content-length": str(len(start))})
    assert [part.payload for part in protocols.read(binary_request, Echo()).parts] == [1.5, -2.0]


def test_torchserves_base64_of_bytes_over_grpc_is_read() -> None:
    body = {
        **v2(("x", [2], "BYTES", [base64.b64encode(content).decode() for content in (b"a", b"\xff")])),
        "model_name": "echo",
    }
    over_grpc = Request(0, {"body": body}, {"body": {"content-type": "application/json"}})
    assert [part.payload for part in protocols.read(over_grpc, Echo()).parts] == [b"a", b"\xff"]
    over_rest = Request(0, {"body": v2(("x", [1], "BYTES", ["YQ=="]))}, {"content-length": "9"})
    assert [part.payload for part in protocols.read(over_rest, Echo()).parts] == ["YQ=="]


def test_a_request_format_is_recognised_without_a_content_type() -> None:
    assert answer(request(b' {"instances": [1]}')) == {"predictions": [1]}
    assert answer(request(b'{"instances": [1]}', content_type="application/json; charset=utf-8")) == {
        "predictions": [1]
    }
    text = request('{"instances": 1}', content_type="text/plain; charset=utf-8")
    assert protocols.read(text, Echo()).parts[0].payload == '{"instances": 1}'
    assert protocols.read(request('{ if (x) "inputs" }'), Echo()).parts[0].payload == '{ if (x) "inputs" }'


def test_a_plain_body_is_one_instance_or_the_rows_that_the_handler_sees() -> None:
    assert answer(request({"a": 1})) == {"a": 1}
    served = Echo()
    served.table = True
    assert answer(request([{"a": 1}, {"a": 2}]), served) == [{"a": 1}, {"a": 2}]


def test_arrays_are_received_and_sent_as_npy() -> None:
    array = np.arange(6.0).reshape(2, 3)
    reply = answer(request(npy(array)))
    assert reply.content_type == "application/x-npy"
    assert np.array_equal(np.load(io.BytesIO(reply.body)), array)
    assert answer(request(npy(array)), answers=[{"label": 1}]) == {"label": 1}
    array_request = request([1, 2], accept="application/x-npy")
    assert np.load(io.BytesIO(answer(array_request, answers=[array]).body)).shape == (2, 3)
    assert answer(request([1, 2]), answers=[array]) == array.tolist()


def test_files_among_many_answers_are_in_base64() -> None:
    reply = answer(request({"instances": [1]}), answers=[Reply(b"\x89PNG", PNG)])
    assert reply == {"predictions": [{"b64": base64.b64encode(b"\x89PNG").decode(), "content_type": PNG}]}


def test_options_are_found_beside_the_instances() -> None:
    for body in ({"instances": [{"data": 1}], "target": 3}, {"instances": [1], "parameters": {"target": 3}}):
        (part,) = protocols.read(request(body), Echo()).parts
        assert part.option("target") == 3
    (part,) = protocols.read(request({"instances": [1]}, explain_target="3"), Echo()).parts
    assert part.option("target") == "3"
    first, second = protocols.read(request({"instances": [{"target": 1}, {}], "target": 2}), Echo()).parts
    assert (first.option("target"), second.option("target")) == (1, 2)


def test_errors_name_the_instance_in_the_field_of_the_request_format() -> None:
    parsed = protocols.read(request({"instances": [1, 2]}), Echo())
    error = json.loads(parsed.error_reply(400, "too small", 1).body)
    assert error["message"] == error["error"] == "instance 1: too small"
    assert json.loads(protocols.read(request([1]), Echo()).error_reply(400, "no", 0).body)["message"] == "no"


def test_errors_have_the_keys_that_the_handler_adds_but_the_protocol_decides_on_its_own() -> None:
    def keys(status: int, message: str) -> dict[str, Any]:
        return {"success": False, "error": f"{status}: {message}"}

    plain = json.loads(protocols.read(request([1]), Echo()).error_reply(413, "no", error_keys=keys).body)
    assert plain == {
        "code": 413,
        "type": "BadRequestException",
        "message": "no",
        "success": False,
        "error": "413: no",
    }
    rows = json.loads(protocols.read(request({"instances": [1, 2]}), Echo()).error_reply(400, "no", 1, keys).body)
    assert (rows["success"], rows["error"]) == (False, "instance 1: no")


X = ("x", [2], "INT32", [1, 2])


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ({"instances": 5}, 400, "instances is not an array"),
        ({"instances": []}, 400, "instances is empty"),
        ({"instances": [1] * 5}, 413, "5 instances; 4 are allowed"),
        ({"instances": [1], "signature_name": "classify"}, 400, "no signature 'classify'"),
        ({"inputs": []}, 400, "inputs is empty"),
        ({"inputs": {}}, 400, "inputs is empty"),
        ({"inputs": {"a": 1}}, 400, "inputs.a is not an array"),
        ({"inputs": {"a": []}}, 400, "no rows"),
        ({"inputs": {"a": [1], "b": [1, 2]}}, 400, "not equally long: a: 1, b: 2"),
        ({"inputs": {"a": [1] * 5}}, 413, "4 are allowed"),
        ({"a": [[[[[[1]]]]]]}, 400, "nested more than 5 levels"),
        ([[[[[[[1]]]]]]], 400, "nested more than 5 levels"),
        ({"inputs": [*v2(X)["inputs"], "x"]}, 400, "inputs[1] is not an object"),
        (v2(X, X), 400, "two inputs are called 'x'"),
        (v2((None, [1], "INT32", [1])), 400, "inputs[0] has no name"),
        (v2(("x", None, "INT32", [1])), 400, "input 'x': the shape is not an array"),
        (v2(("x", [-1], "INT32", [1])), 400, "the shape is not an array of sizes"),
        (v2(("x", [True], "INT32", [1])), 400, "the shape is not an array of sizes"),
        (v2(("x", [], "INT32", [1])), 400, "has no instances"),
        (v2(("x", [0], "INT32", [])), 400, "has no instances"),
        (v2(("x", [1], "FLOAT", [1])), 400, "'FLOAT' is none of BOOL, UINT8"),
        (v2(("x", [1], None, [1])), 400, "None is none of"),
        (v2(("x", [1], [], [1])), 400, "[] is none of"),
        (v2(("x", [3], "INT32", [1])), 400, "is of 3 items, and there are 1"),
        (v2(("x", [10**12], "INT32", [1])), 400, "and there are 1"),
        (v2(("x", [1], "INT32", 1)), 400, "data is not an array"),
        (v2(("x", [1], "INT32", [1.5])), 400, "not INT32"),
        (v2(("x", [1], "INT32", ["1"])), 400, "not INT32"),
        (v2(("x", [1], "UINT8", [256])), 400, "beyond UINT8"),
        (v2(("x", [1], "INT64", [10**30])), 400, "not INT64"),
        (v2(("x", [2], "FP32", [[1], 2])), 400, "nested unevenly"),
        (v2(("x", [1], "FP32", [None])), 400, "not FP32"),
        (v2(("x", [1], "BYTES", [1])), 400, "array of texts"),
        (v2(X, ("y", [1], "INT32", [1])), 400, "first dimensions of the inputs differ"),
        (v2(("x", [5], "INT32", [1] * 5)), 413, "4 are allowed"),
        ({"inputs": [{"name": "x", "shape": [1], "datatype": "INT32"}]}, 400, "has no data"),
        ({**v2(X), "outputs": "x"}, 400, "outputs is not an array"),
        ({**v2(X), "outputs": [{"name": "x", "parameters": {"classification": "1"}}]}, 400, "not a number of classes"),
        ({**v2(X), "outputs": [{"name": "x", "parameters": 1}]}, 400, "output 'x': parameters is not an object"),
        ({**v2(X), "parameters": {"sequence_id": 1}}, 501, "sequences are not kept"),
        ({"inputs": [{**v2(X)["inputs"][0], "parameters": {"shared_memory_region": "r"}}]}, 501, "shared memory"),
        (v2(("x", [1], "FP16", [1e6])), 400, "items beyond FP16"),
        (b"\x93NUMPY\x01\x00", 400, ".npy file is damaged"),
        (npy(np.zeros(3))[:-1], 400, "24 bytes of data expected, 23 there"),
        (npy(np.zeros(3)).replace(b"(3,)", b"(9999999999999,)"), 400, "damaged"),
        (npy(np.array([(1, 2.0)], "i4,f4")), 400, "send numbers"),
        (npy(np.zeros(3)).replace(b"<f8", b"|O8"), 400, "send numbers"),
    ],
)
def test_violations_of_a_request_format_are_reported(body: Any, code: int, message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        protocols.read(request(body), Echo())
    assert caught.value.error_code == code
    assert message in caught.value.message


@pytest.mark.parametrize("length", ["x", "-1", "0", "999"])
def test_a_wrong_length_of_the_json_before_binary_tensors_is_reported(length: str) -> None:
    binary_request = Request(0, {"body": b'{"inputs": []}'}, {"inference-header-content-length": length})
    with pytest.raises(BadRequest, match="Inference-Header-Content-Length"):
        protocols.read(binary_request, Echo())
