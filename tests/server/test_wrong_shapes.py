"""A tensor of a wrong shape is 400 with the expected shape, for every archive of archives/ and in every protocol."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import requests

from tests.support.paths import ROOT
from tests.support.servers import write_config
from torchmar import archive, recipe
from torchmar.engines.builtin import Builtin
from torchmar.grpc.wire import inference_pb2, open_inference_pb2, tensorflow_pb2, tensorflow_serving_pb2

ARCHIVES = ROOT / "archives"
NAMES = sorted(path.parent.name for path in ARCHIVES.glob("*/archive.yaml"))
WRONG = np.arange(6, dtype=np.float32).reshape(1, 2, 3)  # one instance of (2, 3), which no model takes
TEXT = "a text is expected"
# What each archive expects, in the words of its errors.
EXPECTED = {
    "clinic": r"array of 12 numbers, shape \[12\]",
    "diabetes": r"10 are expected, in this order|has the shape \[2, 3\] in one row; a number .* is expected",
    "digits": r"expected shape \[1, 32, 32\]",
    "guard": TEXT,
    "highlight": TEXT,
    "imagenet": r"\(height, width, 3\).*\(3, 224, 224\)",
    "iris": r"of the shape \[4\] is expected",
    "page": r"\(height, width, 3\)",
    "reader": r"\(height, width, 3\)",
    "scenes": r"\(height, width, 3\)",
    "search": TEXT,
    "segments": r"\(height, width, 3\)",
    "sentences": TEXT,
    "speech": "a recording is expected: a WAV file",
    "topics": TEXT,
    "tumours": r"30 are expected, in this order|has the shape \[2, 3\] in one row; a number .* is expected",
    "vit": r"\(height, width, 3\).*\(3, 32, 32\)",
}
# Over TorchServe's gRPC API the input is bytes, which are what these archives read: an image or a recording in a file.
# For archives of texts, the bytes of any JSON are a text.
OF_BYTES = {"speech": "not a WAV file"}
IMAGE = "not an image of a known format"

Result = tuple[object, str]
Call = Callable[[str, Any, Any], Result]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, weights: None) -> Iterator[Builtin]:
    folder = tmp_path_factory.mktemp("wrong-shapes")
    (folder / "store").mkdir()
    with Builtin(write_config(folder), folder / "store", folder / "run") as running:
        yield running


@pytest.fixture(scope="module")
def token(server: Builtin) -> str:
    assert server.server.key_file
    return f"Bearer {json.loads(server.server.key_file.read_text())['inference']['key']}"


@pytest.fixture(scope="module")
def call(server: Builtin, token: str) -> Iterator[Call]:
    """Return a function that calls a method over gRPC and returns the code and the details of the error."""
    with grpc.insecure_channel(server.server.grpc_inference.removeprefix("grpc://")) as channel:

        def send(method: str, request: Any, response: Any) -> Result:
            stub = channel.unary_unary(method, type(request).SerializeToString, response.FromString)
            try:
                return "OK", str(stub(request, metadata=[("authorization", token)], timeout=60))
            except grpc.RpcError as error:
                return error.code().name, error.details() or ""  # type: ignore[attr-defined]

        yield send


@pytest.fixture(scope="module")
def post(server: Builtin, token: str) -> Callable[[str, Any], Result]:
    def send(path: str, body: Any) -> Result:
        response = requests.post(
            f"{server.server.inference}{path}", json=body, headers={"Authorization": token}, timeout=60
        )
        return response.status_code, response.text

    return send


def inputs_of(server: Builtin, token: str, name: str) -> list[str]:
    response = requests.get(f"{server.server.inference}/v2/models/{name}", headers={"Authorization": token}, timeout=60)
    return [tensor["name"] for tensor in response.json()["inputs"]]


def infer_request(name: str, inputs: list[str]) -> open_inference_pb2.ModelInferRequest:
    contents = open_inference_pb2.InferTensorContents(fp32_contents=WRONG.ravel().tolist())
    tensor = open_inference_pb2.ModelInferRequest.InferInputTensor
    tensors = [tensor(name=one, datatype="FP32", shape=WRONG.shape, contents=contents) for one in inputs]
    return open_inference_pb2.ModelInferRequest(model_name=name, inputs=tensors)


def predict_request(name: str, inputs: list[str]) -> tensorflow_serving_pb2.PredictRequest:
    dims = [tensorflow_pb2.TensorShapeProto.Dim(size=size) for size in WRONG.shape]
    tensor = tensorflow_pb2.TensorProto(
        dtype=tensorflow_pb2.DT_FLOAT,
        tensor_shape=tensorflow_pb2.TensorShapeProto(dim=dims),
        tensor_content=WRONG.tobytes(),
    )
    spec = tensorflow_serving_pb2.ModelSpec(name=name)
    return tensorflow_serving_pb2.PredictRequest(model_spec=spec, inputs=dict.fromkeys(inputs, tensor))


def test_every_archive_has_an_expectation() -> None:
    assert set(NAMES) <= set(EXPECTED)


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_shape_is_400_with_the_expected_one(
    server: Builtin, token: str, post: Callable[[str, Any], Result], call: Call, name: str
) -> None:
    weights = recipe.parse((ARCHIVES / name / recipe.FILE_NAME).read_text()).weights
    if weights and not (ARCHIVES / name / weights).is_file():
        pytest.skip(f"{name} has no weights: scripts/train {name} downloads them")
    server.load(archive.build(ARCHIVES / name, server.model_store).path)
    names = inputs_of(server, token, name)
    # A row of a table and the one input of a model are arrays; several inputs have names.
    of_columns = name in ("diabetes", "tumours")
    instance: Any = WRONG[0].tolist()
    columns: Any = WRONG.tolist()
    if len(names) > 1 and not of_columns:
        instance, columns = dict.fromkeys(names, instance), dict.fromkeys(names, columns)
    results = {
        "TorchServe's REST": post(f"/predictions/{name}", instance),
        "KServe v1": post(f"/v1/models/{name}:predict", {"instances": [instance]}),
        "TensorFlow Serving's REST": post(
            f"/v1/models/{name}:predict", {"signature_name": "serving_default", "inputs": columns}
        ),
        "KServe v2": post(
            f"/v2/models/{name}/infer",
            {
                "inputs": [
                    {"name": tensor, "datatype": "FP32", "shape": list(WRONG.shape), "data": WRONG.ravel().tolist()}
                    for tensor in names
                ]
            },
        ),
        "KServe v2 over gRPC": call(
            "/inference.GRPCInferenceService/ModelInfer",
            infer_request(name, names),
            open_inference_pb2.ModelInferResponse,
        ),
        "TensorFlow Serving's gRPC": call(
            "/tensorflow.serving.PredictionService/Predict",
            predict_request(name, names),
            tensorflow_serving_pb2.PredictResponse,
        ),
    }
    for protocol, (status, message) in results.items():
        assert status in (400, "INVALID_ARGUMENT"), (protocol, status, message)
        assert re.search(EXPECTED[name], message), (protocol, message)
    if EXPECTED[name] != TEXT:
        row = {"data": json.dumps(instance).encode()}
        status, message = call(
            "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions",
            inference_pb2.PredictionsRequest(model_name=name, input=row),
            inference_pb2.PredictionResponse,
        )
        assert status == "INVALID_ARGUMENT", message
        assert re.search(f"{EXPECTED[name]}|{OF_BYTES.get(name, IMAGE)}", message), message
    server.management.unregister(name)
