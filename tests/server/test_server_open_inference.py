"""The built-in server implements the Open Inference Protocol, over gRPC and REST, for its clients."""

from __future__ import annotations

import gzip
import json
import math
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import requests
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from tests import oracles
from tests.support.packing import pack_handler
from tests.support.paths import ROOT
from tests.support.servers import write_config
from torchmar import archive
from torchmar.engines.builtin import Builtin
from torchmar.errors import NotFoundError, ServerError
from torchmar.grpc import GrpcOpenInference
from torchmar.grpc.wire import open_inference_pb2 as wire
from torchmar.inference import Tensor
from torchmar.management import ManagementClient

STANDARD = "inference.GRPCInferenceService"
TORCHSERVES = "org.pytorch.serve.grpc.openinference.GRPCInferenceService"
ARCHIVES = ROOT / "archives"
PNG = (ARCHIVES / "digits" / "samples" / "seven.png").read_bytes()
EMAIL = (ARCHIVES / "topics" / "samples" / "email.txt").read_bytes()
SETOSA = np.array([[5.0, 3.4, 1.5, 0.2]], np.float32)
# A sample of each archive, by the input that its metadata has; tables have an input for each column.
SAMPLES: dict[str, Any] = {
    "digits": PNG,
    "scenes": (ARCHIVES / "scenes" / "samples" / "two.png").read_bytes(),
    "reader": (ARCHIVES / "reader" / "samples" / "one.png").read_bytes(),
    "segments": (ARCHIVES / "segments" / "samples" / "one.png").read_bytes(),
    "topics": EMAIL,
    "highlight": (ARCHIVES / "highlight" / "samples" / "comment.txt").read_bytes(),
    "search": (ARCHIVES / "search" / "samples" / "copy.txt").read_bytes(),
    "iris": SETOSA,
    "diabetes": json.loads((ARCHIVES / "diabetes" / "samples" / "low.json").read_bytes()),
    "tumours": json.loads((ARCHIVES / "tumours" / "samples" / "benign.json").read_bytes()),
}
# A handler that is not torchmar's: it returns its input, as JSON of the protocol.
MIRROR = """
def handle(rows, context):
    if rows is None:
        return None
    answers = []
    for index, row in enumerate(rows):
        body = row["body"]
        if body.get("parameters", {}).get("fail"):
            context.set_response_status(418, "", index)
            answers.append({"error": "short and stout"})
            continue
        outputs = [{key: one[key] for key in ("name", "shape", "datatype", "data")} for one in body["inputs"]]
        answers.append({"model_name": "mirror", "model_version": "1.0", "outputs": outputs})
    return answers
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, weights: None) -> Iterator[Builtin]:
    """Run the built-in server with every archive loaded, and with a handler that is not torchmar's."""
    folder = tmp_path_factory.mktemp("open-inference")
    store = folder / "store"
    store.mkdir()
    built = [archive.build(ARCHIVES / name, store).path for name in SAMPLES]
    built.append(pack_handler(store, MIRROR, name="mirror"))
    with Builtin(write_config(folder), store, folder / "run") as running:
        for path in built:
            running.load(path)
        yield running


@pytest.fixture(scope="module")
def token(server: Builtin) -> str:
    assert server.server.key_file
    return str(json.loads(server.server.key_file.read_text())["inference"]["key"])


Call = Callable[..., Any]


@pytest.fixture(scope="module")
def call(server: Builtin, token: str) -> Iterator[Call]:
    """Return a function that calls a method of the service and returns its answer."""
    with grpc.insecure_channel(server.server.grpc_inference.removeprefix("grpc://")) as channel:

        def method(
            name: str, request: Message, reply: Any, *, service: str = STANDARD, authorization: str = f"Bearer {token}"
        ) -> Any:
            unary_method = channel.unary_unary(f"/{service}/{name}", type(request).SerializeToString, reply.FromString)
            metadata = [("authorization", authorization)] if authorization else []
            return unary_method(request, metadata=metadata, timeout=60)

        yield method


Rest = Callable[..., requests.Response]


@pytest.fixture(scope="module")
def rest(server: Builtin, token: str) -> Rest:
    """Return a function that sends requests below ``/v2``."""

    def ask(path: str, body: Any = None, *, method: str = "", **headers: str) -> requests.Response:
        url = f"{server.server.inference}/v2{path}"
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        data = json.dumps(body) if isinstance(body, dict) else body
        verb = method or ("GET" if body is None else "POST")
        given = {"Authorization": f"Bearer {token}", "Accept-Encoding": "identity", **named}
        return requests.request(verb, url, data=data, headers=given, timeout=60)

    return ask


def texts(*items: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(item)) + item for item in items)


def raw_request(model: str, *inputs: tuple[str, str, Sequence[int], bytes], **more: Any) -> wire.ModelInferRequest:
    request = wire.ModelInferRequest(model_name=model, **more)
    for name, datatype, shape, content in inputs:
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(content)
    return request


def sample(model: str, inputs: Sequence[Any]) -> wire.ModelInferRequest:
    """Return a request with the sample of an archive, built from its metadata."""
    given = SAMPLES[model]
    if isinstance(given, bytes):
        return raw_request(model, (inputs[0].name, inputs[0].datatype, [1], texts(given)))
    if isinstance(given, np.ndarray):
        return raw_request(model, (inputs[0].name, inputs[0].datatype, given.shape, given.tobytes()))
    letters = {"FP64": "<d", "INT64": "<q", "BOOL": "?"}
    columns = [
        (tensor.name, tensor.datatype, [1], struct.pack(letters[tensor.datatype], given[tensor.name]))
        for tensor in inputs
    ]
    return raw_request(model, *columns)


def arrays(answer: wire.ModelInferResponse) -> dict[str, list[Any]]:
    """Return the outputs of an answer in raw contents, flat."""
    values: dict[str, list[Any]] = {}
    for output, content in zip(answer.outputs, answer.raw_output_contents, strict=True):
        if output.datatype == "BYTES":
            items, place = [], 0
            while place < len(content):
                (length,) = struct.unpack_from("<I", content, place)
                items.append(content[place + 4 : place + 4 + length])
                place += 4 + length
            values[output.name] = items
        else:
            dtype = {"FP32": "<f4", "FP64": "<f8", "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "UINT64": "<u8"}
            values[output.name] = np.frombuffer(content, dtype[output.datatype]).tolist()
    return values


def code_of(call: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert isinstance(caught.value, grpc.Call)
    return caught.value.code().name, caught.value.details() or ""


@pytest.mark.parametrize("model", SAMPLES)
def test_metadata_describes_inputs_and_outputs(call: Call, rest: Rest, model: str) -> None:
    metadata = call("ModelMetadata", wire.ModelMetadataRequest(name=model), wire.ModelMetadataResponse)
    assert (metadata.name, list(metadata.versions), metadata.platform) == (model, ["1.0"], "pytorch")
    answer = call("ModelInfer", sample(model, metadata.inputs), wire.ModelInferResponse)
    assert (answer.model_name, answer.model_version) == (model, "1.0")
    assert [output.name for output in answer.outputs] == [output.name for output in metadata.outputs]
    for described, given in zip(metadata.outputs, answer.outputs, strict=True):
        assert described.datatype == given.datatype
        assert len(described.shape) == len(given.shape)
        assert all(size in (-1, given_size) for size, given_size in zip(described.shape, given.shape, strict=True))
    document = rest(f"/models/{model}").json()
    for key in ("inputs", "outputs"):
        tensors = [(tensor["name"], tensor["datatype"], tensor["shape"]) for tensor in document[key]]
        assert tensors == [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in getattr(metadata, key)]
    assert document == rest(f"/models/{model}/versions/1.0").json()


def test_metadata_of_an_undescribed_model_has_empty_lists(rest: Rest) -> None:
    document = rest("/models/mirror").json()
    assert (document["inputs"], document["outputs"]) == ([], [])


def test_metadata_is_derived_from_options_weights_and_samples(rest: Rest) -> None:
    iris = rest("/models/iris").json()
    assert iris["inputs"] == [{"name": "measurements", "datatype": "FP32", "shape": [-1, 4]}]
    assert iris["outputs"] == [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}]
    assert rest("/models/search").json()["outputs"] == [{"name": "embedding", "datatype": "FP32", "shape": [-1, 96]}]
    columns = {tensor["name"]: tensor["datatype"] for tensor in rest("/models/diabetes").json()["inputs"]}
    assert (columns["age"], columns["sex"]) == ("FP64", "INT64")


@pytest.mark.parametrize("service", [STANDARD, TORCHSERVES])
@pytest.mark.parametrize("raw", [True, False])
def test_texts_reach_handlers_as_they_are(call: Call, service: str, raw: bool) -> None:
    def ask(model: str, *items: bytes) -> wire.ModelInferResponse:
        request = wire.ModelInferRequest(model_name=model)
        tensor = request.inputs.add(name="text", datatype="BYTES", shape=[len(items), 1])
        if raw:
            request.raw_input_contents.append(texts(*items))
        else:
            tensor.contents.bytes_contents.extend(items)
        return call("ModelInfer", request, wire.ModelInferResponse, service=service)

    topics = ask("topics", EMAIL, EMAIL)
    if raw:
        assert arrays(topics)["label"] == [b"email", b"email"]
        (entities,) = arrays(ask("highlight", b"import os\n"))["entities"]
    else:
        assert list(topics.outputs[0].contents.bytes_contents) == [b"email", b"email"]
        assert not topics.raw_output_contents
        (entities,) = ask("highlight", b"import os\n").outputs[0].contents.bytes_contents
    assert [entity["text"] for entity in json.loads(entities)] == ["import", "os"]
    assert list(ask("search", b"copy a file").outputs[0].shape) == [1, 96]
    code, words = code_of(lambda: ask("topics", b"\xff\xfe"))
    assert code == "INVALID_ARGUMENT"
    assert words.startswith("the text is not UTF-8")


def test_an_image_is_its_file(call: Call) -> None:
    answer = arrays(
        call("ModelInfer", raw_request("digits", ("any", "BYTES", [2], texts(PNG, PNG))), wire.ModelInferResponse)
    )
    assert answer["label"] == [b"7", b"7"]
    assert answer["probability"][0] > 0.9


@pytest.mark.parametrize(
    ("datatype", "dtype"),
    [("FP16", "<f2"), ("FP32", "<f4"), ("FP64", "<f8"), ("BF16", ""), ("INT8", "<i1"), ("UINT64", "<u8")],
)
def test_numbers_of_any_datatype_are_the_same_numbers(call: Call, datatype: str, dtype: str) -> None:
    row = [5.0, 3.0, 1.0, 0.0]
    if datatype == "BF16":
        content = b"".join(struct.pack("<f", value)[2:] for value in row)
    else:
        content = np.array([row]).astype(dtype).tobytes()
    reference = raw_request("iris", ("measurements", "FP32", [1, 4], struct.pack("<4f", *row)))
    request = raw_request("iris", ("measurements", datatype, [1, 4], content))
    wanted, given = (arrays(call("ModelInfer", sent, wire.ModelInferResponse)) for sent in (reference, request))
    assert given == wanted


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (raw_request("iris", ("measurements", "FP32", [1, 1], b"\0\0\0\0")), "float32 of the shape [4] is expected"),
        (raw_request("iris", ("measurements", "FP32", [1, 4], b"\0\0\0\0")), "is of 4 items, and there are 1"),
        (raw_request("iris", ("measurements", "FP32", [0, 4], b"")), "has no instances"),
        (raw_request("iris", ("measurements", "FP32", [4], struct.pack("<4f", 1, 2, 3, 4))), "shape [4] is expected"),
        (raw_request("iris", ("measurements", "WHAT", [1, 4], b"")), "the datatype 'WHAT' is none of"),
        (raw_request("iris", ("sepals", "FP32", [1, 4], bytes(16))), "there is no input 'sepals'"),
        (raw_request("iris", ("a", "FP32", [1, 4], bytes(16)), ("b", "FP32", [2, 4], bytes(32))), "a: 1, b: 2"),
        (raw_request("iris", ("measurements", "BYTES", [1], texts(b"x"))), "is expected"),
        (raw_request("digits", ("image", "BYTES", [1], texts(b"no image"))), "not an image of a known format"),
        (raw_request("topics", ("text", "FP32", [1], bytes(4))), "a text is expected, not a number"),
    ],
)
def test_an_input_that_a_model_cannot_take_is_an_error_with_a_message(
    call: Call, request_: wire.ModelInferRequest, words: str
) -> None:
    code, details = code_of(lambda: call("ModelInfer", request_, wire.ModelInferResponse))
    assert code == "INVALID_ARGUMENT"
    assert words in details
    assert "Exception" not in details


def test_contents_are_all_raw_or_none(call: Call) -> None:
    request = raw_request("iris", ("measurements", "FP32", [1, 4], bytes(16)))
    request.inputs.add(name="more", datatype="FP32", shape=[1])
    code, details = code_of(lambda: call("ModelInfer", request, wire.ModelInferResponse))
    assert (code, details) == ("INVALID_ARGUMENT", "there are 2 inputs and raw_input_contents of 1")


def test_of_two_contents_of_an_input_none_is_lost(call: Call) -> None:
    both = raw_request("iris", ("measurements", "FP32", [1, 4], bytes(16)))
    both.inputs[0].contents.fp32_contents.extend([1, 2, 3, 4])
    code, details = code_of(lambda: call("ModelInfer", both, wire.ModelInferResponse))
    assert (code, details) == (
        "INVALID_ARGUMENT",
        "input 'measurements': there are contents and raw_input_contents; send one of them",
    )
    del both.raw_input_contents[:]
    both.inputs[0].contents.fp64_contents.extend([4, 3, 2, 1])
    code, details = code_of(lambda: call("ModelInfer", both, wire.ModelInferResponse))
    assert (code, details) == (
        "INVALID_ARGUMENT",
        "input 'measurements': FP32 must be in fp32_contents, not in fp64_contents",
    )


def test_a_client_chooses_outputs_and_their_classes(call: Call) -> None:
    request = raw_request("digits", ("image", "BYTES", [1], texts(PNG)), id="42")
    request.outputs.add(name="probability")
    answer = call("ModelInfer", request, wire.ModelInferResponse)
    assert (answer.id, [output.name for output in answer.outputs]) == ("42", ["probability"])
    best = raw_request("iris", ("measurements", "FP32", [1, 4], SETOSA.tobytes()))
    best.outputs.add(name="probabilities").parameters["classification"].int64_param = 2
    (first, _) = arrays(call("ModelInfer", best, wire.ModelInferResponse))["probabilities"]
    value, index = first.split(b":")
    assert (float(value) > 0.9, index) == (True, b"0")
    request.outputs.add(name="nothing")
    code, details = code_of(lambda: call("ModelInfer", request, wire.ModelInferResponse))
    assert (code, details) == ("INVALID_ARGUMENT", "there is no output 'nothing'; there are label, probability")


def test_unsupported_features_are_rejected_with_a_message(call: Call, rest: Rest) -> None:
    shared = raw_request("iris", ("measurements", "FP32", [1, 4], SETOSA.tobytes()))
    shared.inputs[0].parameters["shared_memory_region"].string_param = "region"
    sequence = raw_request("iris", ("measurements", "FP32", [1, 4], SETOSA.tobytes()))
    sequence.parameters["sequence_id"].int64_param = 7
    for request, words in ((shared, "shared memory is not supported"), (sequence, "sequences are not kept")):
        code, details = code_of(lambda request=request: call("ModelInfer", request, wire.ModelInferResponse))
        assert code == "UNIMPLEMENTED"
        assert words in details
    for method in ("RepositoryModelLoad", "CudaSharedMemoryStatus", "TraceSetting", "LogSettings"):
        code, details = code_of(lambda method=method: call(method, wire.ModelReadyRequest(), wire.ModelReadyResponse))
        assert code == "UNIMPLEMENTED"
        assert not details.startswith("Method not found")
    for path in ("/repository/models/iris/load", "/systemsharedmemory/status", "/trace/setting", "/logging"):
        rejected = rest(path, method="POST")
        assert rejected.status_code == 501
        assert rejected.json()["message"]


def test_unknown_models_and_models_that_are_not_ready_are_reported(server: Builtin, call: Call) -> None:
    def ask(name: str, **more: str) -> tuple[str, str]:
        request = raw_request(name, ("measurements", "FP32", [1, 4], SETOSA.tobytes()), **more)
        return code_of(lambda: call("ModelInfer", request, wire.ModelInferResponse))

    assert ask("nothing") == ("NOT_FOUND", "Model not found: nothing")
    assert ask("iris", model_version="9") == ("NOT_FOUND", "Model version: 9 does not exist for model: iris")
    assert ask("")[0] == "INVALID_ARGUMENT"
    with ManagementClient(server.server) as management:
        management.scale("mirror", min_worker=0)
        try:
            code, details = ask("mirror")
            assert code == "UNAVAILABLE"
            assert "has no worker" in details
            ready = call("ModelReady", wire.ModelReadyRequest(name="mirror"), wire.ModelReadyResponse)
            assert not ready.ready
        finally:
            management.scale("mirror", min_worker=1)


def test_a_foreign_handler_gets_the_json_of_rest(call: Call) -> None:
    def ask(service: str = STANDARD, **parameters: bool) -> Any:
        request = raw_request("mirror", ("x", "BYTES", [1], texts(b"text")), ("y", "FP32", [1], struct.pack("<f", 0.5)))
        for name, value in parameters.items():
            request.parameters[name].bool_param = value
        return call("ModelInfer", request, wire.ModelInferResponse, service=service)

    assert arrays(ask()) == {"x": [b"text"], "y": [0.5]}
    # Under TorchServe's name as TorchServe has it: in base64 to the handler, as it stands in JSON from there.
    assert arrays(ask(TORCHSERVES))["x"] == [b'"dGV4dA=="']
    assert code_of(lambda: ask(fail=True)) == ("FAILED_PRECONDITION", "short and stout")
    binary = raw_request("mirror", ("x", "BYTES", [1], texts(b"\xff")))
    code, details = code_of(lambda: call("ModelInfer", binary, wire.ModelInferResponse))
    assert code == "INVALID_ARGUMENT"
    assert "send it in base64" in details


def test_a_stream_answers_in_order_and_continues_after_an_error(server: Builtin, token: str) -> None:
    with grpc.insecure_channel(server.server.grpc_inference.removeprefix("grpc://")) as channel:
        stream_method = channel.stream_stream(
            f"/{STANDARD}/ModelStreamInfer",
            wire.ModelInferRequest.SerializeToString,
            wire.ModelStreamInferResponse.FromString,
        )
        requests_ = [
            raw_request("iris", ("measurements", "FP32", [1, 4], SETOSA.tobytes()), id=str(number))
            for number in range(20)
        ]
        requests_.insert(5, raw_request("nothing", ("x", "FP32", [1], bytes(4)), id="wrong"))
        requests_.insert(9, raw_request("iris", ("x", "FP32", [1], bytes(4)), id="bad"))
        answers = list(stream_method(iter(requests_), metadata=[("authorization", f"Bearer {token}")], timeout=60))
    assert [answer.infer_response.id for answer in answers] == [sent.id for sent in requests_]
    failed = {answer.infer_response.id: answer.error_message for answer in answers if answer.error_message}
    assert failed["wrong"] == "Model not found: nothing"
    assert failed.keys() == {"wrong", "bad"}
    assert answers[0].infer_response.parameters["triton_final_response"].bool_param


def test_configuration_statistics_and_index_are_the_same_over_both(call: Call, rest: Rest) -> None:
    config = call("ModelConfig", wire.ModelConfigRequest(name="iris"), wire.ModelConfigResponse).config
    document = rest("/models/iris/config").json()
    assert (config.max_batch_size, config.input[0].data_type) == (document["max_batch_size"], wire.TYPE_FP32)
    assert document["input"] == [{"name": "measurements", "data_type": "TYPE_FP32", "dims": [4]}]
    assert document["dynamic_batching"]["preferred_batch_size"] == [16]

    def counted() -> tuple[int, int, int]:
        request = wire.ModelStatisticsRequest(name="iris")
        (model_stats,) = call("ModelStatistics", request, wire.ModelStatisticsResponse).model_stats
        return (
            model_stats.inference_count,
            model_stats.inference_stats.success.count,
            model_stats.inference_stats.fail.count,
        )

    before = counted()
    for good in (True, False):
        content = SETOSA.tobytes() if good else bytes(4)
        request = raw_request("iris", ("measurements", "FP32", [1, 4 if good else 1], content))
        try:
            call("ModelInfer", request, wire.ModelInferResponse)
        except grpc.RpcError:
            assert not good
    assert [new - old for new, old in zip(counted(), before, strict=True)] == [2, 1, 1]
    (model_stats,) = rest("/models/iris/stats").json()["model_stats"]
    stats = model_stats["inference_stats"]
    assert (model_stats["inference_count"], stats["success"]["count"], stats["fail"]["count"]) == counted()
    assert stats["success"]["ns"] > 0
    assert {statistics["name"] for statistics in rest("/models/stats").json()["model_stats"]} == {*SAMPLES, "mirror"}

    index = call("RepositoryIndex", wire.RepositoryIndexRequest(ready=True), wire.RepositoryIndexResponse).models
    assert {(indexed.name, indexed.version, indexed.state) for indexed in index} >= {
        (name, "1.0", "READY") for name in SAMPLES
    }
    assert {indexed["name"] for indexed in rest("/repository/index", b"{}", method="POST").json()} == {
        *SAMPLES,
        "mirror",
    }
    for path in ("/models/nothing/config", "/models/nothing/stats", "/models/iris/versions/9/config"):
        assert rest(path).status_code == 404
    assert rest("").json()["name"] == "torchmar"


def test_rest_responses_are_binary_if_requested(rest: Rest) -> None:
    head = {
        "id": "1",
        "inputs": [
            {"name": "measurements", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}
        ],
    }

    def ask(**more: Any) -> requests.Response:
        start = json.dumps({**head, **more}).encode()
        return rest("/models/iris/infer", start + SETOSA.tobytes(), Inference_Header_Content_Length=str(len(start)))

    answer = ask(parameters={"binary_data_output": True})
    length = int(answer.headers["Inference-Header-Content-Length"])
    assert answer.headers["Content-Type"] == "application/octet-stream"
    document = json.loads(answer.content[:length])
    (output,) = document["outputs"]
    assert (document["id"], output["parameters"], "data" in output) == ("1", {"binary_data_size": 12}, False)
    probabilities = np.frombuffer(answer.content[length:], np.float32)
    in_json = ask(outputs=[{"name": "probabilities", "parameters": {"binary_data": False}}])
    assert "Inference-Header-Content-Length" not in in_json.headers
    assert in_json.json()["outputs"][0]["data"] == pytest.approx(probabilities.tolist())


def test_a_foreign_handler_gets_json_of_binary_tensors(rest: Rest) -> None:
    def ask(content: bytes) -> requests.Response:
        tensors = [
            {"name": "x", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(content)}},
            {"name": "y", "shape": [2], "datatype": "INT16", "data": [1, -2]},
        ]
        start = json.dumps({"inputs": tensors}).encode()
        return rest("/models/mirror/infer", start + content, Inference_Header_Content_Length=str(len(start)))

    x, y = ask(texts("grün".encode())).json()["outputs"]
    assert (x["data"], y["data"]) == (["grün"], [1, -2])
    for content, words in ((texts(b"\xff"), "send it in base64"), (b"\5\0\0\0", "the bytes end within an element")):
        rejected = ask(content)
        assert rejected.status_code == 400
        assert words in rejected.json()["message"]


@pytest.mark.parametrize(("encoding", "decode"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)])
def test_rest_compresses_for_clients_that_accept_it(
    server: Builtin, token: str, rest: Rest, encoding: str, decode: Callable[[bytes], bytes]
) -> None:
    body = {"inputs": [{"name": "m", "shape": [1, 4], "datatype": "FP32", "data": SETOSA[0].tolist()}]}
    body["inputs"][0]["name"] = "measurements"
    plain = rest("/models/iris/infer", body)
    assert "Content-Encoding" not in plain.headers
    headers = {"Authorization": f"Bearer {token}", "Accept-Encoding": encoding}
    url = f"{server.server.inference}/v2/models/iris/infer"
    with requests.post(url, json=body, headers=headers, stream=True, timeout=60) as answer:
        assert answer.headers["Content-Encoding"] == encoding
        assert json.loads(decode(answer.raw.read())) == plain.json()


def test_numbers_that_json_lacks_are_sent_as_bytes(call: Call) -> None:
    content = struct.pack("<4f", math.nan, 0, 0, 0)
    request = raw_request("iris", ("measurements", "FP32", [1, 4], content))
    assert all(map(math.isnan, arrays(call("ModelInfer", request, wire.ModelInferResponse))["probabilities"]))
    in_json = raw_request("mirror", ("x", "FP32", [4], content))
    code, details = code_of(lambda: call("ModelInfer", in_json, wire.ModelInferResponse))
    assert (code, "infinite or not a number" in details) == ("INVALID_ARGUMENT", True)


def test_the_client_of_the_library_reads_it(server: Builtin) -> None:
    with GrpcOpenInference(server.server) as client:
        metadata = client.model_metadata("iris")
        assert [(tensor.name, tensor.datatype, tensor.shape) for tensor in metadata.inputs] == [
            ("measurements", "FP32", (-1, 4))
        ]
        half = Tensor.of("measurements", SETOSA.astype(np.float16))
        (probabilities,) = client.infer("iris", [half])
        assert probabilities.array().argmax() == 0
        (label, _) = client.infer("digits", [Tensor.of("image", [PNG])])
        assert label.data == ["7"]  # not the number that its JSON would be
        with pytest.raises(NotFoundError, match="Model not found: nothing"):
            client.infer("nothing", [Tensor.of("x", [1])])
        with pytest.raises(ServerError, match="not an image") as caught:
            client.infer("digits", [Tensor.of("image", [b"x"])])
        assert caught.value.status == 400


def test_health_follows_readiness_and_needs_no_token(server: Builtin, call: Call) -> None:
    def check(service: str) -> Any:
        request = health_pb2.HealthCheckRequest(service=service)
        reply = health_pb2.HealthCheckResponse
        return call("Check", request, reply, service="grpc.health.v1.Health", authorization="").status

    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    assert [check(name) for name in ("", STANDARD, TORCHSERVES)] == [serving] * 3
    assert code_of(lambda: check("nothing"))[0] == "NOT_FOUND"
    everything = health_pb2.HealthListRequest(), health_pb2.HealthListResponse
    listed = call("List", *everything, service="grpc.health.v1.Health", authorization="")
    statuses = {name: answer.status for name, answer in listed.statuses.items()}
    assert statuses.keys() > {"", STANDARD} and set(statuses.values()) == {serving}
    assert call("ServerLive", wire.ServerLiveRequest(), wire.ServerLiveResponse, authorization="").live
    assert call("ServerReady", wire.ServerReadyRequest(), wire.ServerReadyResponse, authorization="").ready
    assert (
        code_of(
            lambda: call("ModelReady", wire.ModelReadyRequest(name="iris"), wire.ModelReadyResponse, authorization="")
        )[0]
        == "PERMISSION_DENIED"
    )
    with grpc.insecure_channel(server.server.grpc_inference.removeprefix("grpc://")) as channel:
        watching = channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            health_pb2.HealthCheckRequest.SerializeToString,
            health_pb2.HealthCheckResponse.FromString,
        )(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watching).status == serving
        # The file of a model that cannot load: it is registered, and none of its workers answers.
        _broken(server)
        assert next(watching).status == not_serving
        with ManagementClient(server.server) as management:
            management.unregister("broken")
        assert next(watching).status == serving
        watching.cancel()


def _broken(server: Builtin) -> None:
    code = "def handle(rows, context):\n    raise RuntimeError('it is gone')\n"
    pack_handler(server.folder.parent / "store", code, name="broken")
    with ManagementClient(server.server) as management:
        management.register("broken-1.0.mar", initial_workers=1, synchronous=False)


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
@pytest.mark.parametrize("api", ["inference", "management"])
def test_reflection_lists_services_and_messages(server: Builtin, version: str, api: str) -> None:
    address = server.server.grpc_inference if api == "inference" else server.server.grpc_management
    symbol = {"inference": STANDARD, "management": "org.pytorch.serve.grpc.management.ManagementAPIsService"}[api]
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol),
    ]
    with grpc.insecure_channel(address.removeprefix("grpc://")) as channel:
        stream_method = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )
        services, file = stream_method(iter(requests), timeout=60)
    names = {service.name for service in services.list_services_response.service}
    assert {symbol, "grpc.health.v1.Health", f"grpc.reflection.{version}.ServerReflection"} <= names
    assert file.file_descriptor_response.file_descriptor_proto


def test_the_script_to_copy_fails_when_its_request_fails(server: Builtin, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("no image")
    address = server.server.grpc_inference.removeprefix("grpc://")
    where = ["--grpc", "--address", address, "--key-file", str(server.server.key_file)]
    for model, message in (
        ("digits", "INVALID_ARGUMENT: the body is not an image"),
        ("nothing", "INTERNAL: Model not"),
    ):
        command = [sys.executable, ROOT / "scripts" / "ask.py", model, tmp_path / "text.txt", *where]
        ran = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=60)
        assert ran.returncode == 1
        assert ran.stderr.startswith(message)


ENVIRONMENTS = {"triton": "triton_client.py", "kserve": "kserve_client.py"}


@pytest.mark.oracle
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_protocols_own_clients_are_served(server: Builtin, token: str, name: str) -> None:
    python = oracles.python_of(name)
    script = Path(oracles.__file__).parent / ENVIRONMENTS[name]
    environment = {
        **os.environ,
        "REST": server.server.inference,
        "GRPC": server.server.grpc_inference.removeprefix("grpc://"),
        "TOKEN": token,
        "ARCHIVES": str(ARCHIVES),
    }
    done = subprocess.run([python, script], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert done.stdout.splitlines()[-1] == "all is well"
