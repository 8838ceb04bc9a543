"""The built-in server implements TensorFlow Serving's APIs, over REST and gRPC, for its clients."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import requests
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from PIL import Image

from tests import oracles
from tests.support.packing import pack_handler
from tests.support.paths import ROOT
from tests.support.servers import write_config
from torchmar import archive
from torchmar.engines.builtin import Builtin
from torchmar.errors import ConflictError, NotFoundError, ServerError
from torchmar.grpc.wire import tensorflow_pb2
from torchmar.grpc.wire import tensorflow_serving_pb2 as wire

ARCHIVES = ROOT / "archives"
PNG = (ARCHIVES / "digits" / "samples" / "seven.png").read_bytes()
ROWS = [[5.0, 3.4, 1.5, 0.2], [6.6, 3.0, 5.6, 2.1]]
BENIGN = json.loads((ARCHIVES / "tumours" / "samples" / "benign.json").read_bytes())
DIGITS = {digit: ARCHIVES / "vit" / "samples" / f"{name}.png" for digit, name in ((2, "two"), (7, "seven"))}
LOW = json.loads((ARCHIVES / "diabetes" / "samples" / "low.json").read_bytes())
# A handler that knows nothing of this project.
CUSTOM = """
def handle(rows, context):
    if rows is None:
        return None
    answers = []
    for row in rows:
        body = row["body"]
        if "instances" in body:
            answers.append({"predictions": [{"label": "odd", "score": 0.5} for _ in body["instances"]]})
        else:
            inputs = body["inputs"]
            answers.append({"outputs": {"sums": [sum(one) for one in inputs["x"]], "texts": inputs["s"]}})
    return answers
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, weights: None) -> Iterator[Builtin]:
    """Run the built-in server with archives of several kinds, and a version without a number."""
    folder = tmp_path_factory.mktemp("tensorflow-serving")
    store = folder / "store"
    store.mkdir()
    built = [archive.build(ARCHIVES / name, store).path for name in ("digits", "iris", "tumours", "diabetes", "vit")]
    built += [pack_handler(store, CUSTOM, name="custom", version=version) for version in ("1.5", "2.0")]
    with Builtin(write_config(folder), store, folder / "run") as running:
        for path in built:
            running.load(path)
        yield running


@pytest.fixture(scope="module")
def token(server: Builtin) -> str:
    assert server.server.key_file
    return str(json.loads(server.server.key_file.read_text())["inference"]["key"])


Rest = Callable[..., Any]


@pytest.fixture(scope="module")
def rest(server: Builtin, token: str) -> Rest:
    """Return a function that sends a request below ``/v1/models`` and returns status and document."""

    def send(path: str, body: Any = None, *, method: str = "") -> tuple[int, Any]:
        url = f"{server.server.inference}/v1/models/{path}"
        data = body if isinstance(body, str | None) else json.dumps(body)
        verb = method or ("GET" if body is None else "POST")
        response = requests.request(verb, url, data=data, headers={"Authorization": f"Bearer {token}"}, timeout=60)
        return response.status_code, response.json()

    return send


@pytest.fixture(scope="module")
def call(server: Builtin, token: str) -> Iterator[Callable[..., Any]]:
    """Return a function that calls a method of either service."""
    with grpc.insecure_channel(server.server.grpc_inference.removeprefix("grpc://")) as channel:

        def method(name: str, request: Any, response: Any, service: str = "PredictionService") -> Any:
            path = f"/tensorflow.serving.{service}/{name}"
            send = channel.unary_unary(path, type(request).SerializeToString, response.FromString)
            return send(request, metadata=[("authorization", f"Bearer {token}")], timeout=60)

        yield method


def predict_request(model: str, **inputs: tensorflow_pb2.TensorProto) -> wire.PredictRequest:
    return wire.PredictRequest(model_spec=wire.ModelSpec(name=model), inputs=inputs)


def floats(rows: Any) -> tensorflow_pb2.TensorProto:
    array = np.array(rows, np.float32)
    dims = [tensorflow_pb2.TensorShapeProto.Dim(size=size) for size in array.shape]
    shape = tensorflow_pb2.TensorShapeProto(dim=dims)
    return tensorflow_pb2.TensorProto(dtype=tensorflow_pb2.DT_FLOAT, tensor_shape=shape, tensor_content=array.tobytes())


def strings(*items: bytes) -> tensorflow_pb2.TensorProto:
    shape = tensorflow_pb2.TensorShapeProto(dim=[tensorflow_pb2.TensorShapeProto.Dim(size=len(items))])
    return tensorflow_pb2.TensorProto(dtype=tensorflow_pb2.DT_STRING, tensor_shape=shape, string_val=items)


def error_of(send: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        send()
    return caught.value.code().name, caught.value.details() or ""  # type: ignore[attr-defined]


def test_rows_have_predictions_and_columns_have_outputs(rest: Rest) -> None:
    status, rows = rest("iris:predict", {"signature_name": "serving_default", "instances": ROWS})
    assert status == 200
    assert np.argmax(rows["predictions"], 1).tolist() == [0, 2]
    status, columns = rest("iris/versions/1:predict", {"inputs": {"measurements": ROWS}})
    assert (status, columns) == (200, {"outputs": rows["predictions"]})
    encoded = base64.b64encode(PNG).decode()
    status, images = rest("digits/versions/1.0:predict", {"instances": [{"b64": encoded}]})
    assert status == 200
    assert next(iter(images["predictions"][0])) == "7"
    assert rest("digits:predict", {"instances": [{"image_bytes": {"b64": encoded}}]}) == (200, images)


def test_examples_are_classified_with_a_context_that_they_share(rest: Rest) -> None:
    status, whole = rest("tumours:classify", {"examples": [BENIGN]})
    assert status == 200
    ((best, second),) = whole["results"]
    assert best[0] == "benign"
    assert best[1] > second[1]
    name = next(iter(BENIGN))
    rest_of_it = {key: [value] for key, value in BENIGN.items() if key != name}
    status, shared = rest(
        "tumours/versions/1:classify", {"context": {name: BENIGN[name]}, "examples": [rest_of_it] * 2}
    )
    assert (status, shared["results"]) == (200, whole["results"] * 2)


def test_examples_have_numbers(rest: Rest) -> None:
    status, document = rest("diabetes:regress", {"examples": [LOW, LOW]})
    assert status == 200
    first, second = document["results"]
    assert first == second > 0


def test_a_version_has_a_number_if_it_is_whole_and_is_a_label_in_any_case(rest: Rest) -> None:
    assert rest("custom/labels/1.5:predict", {"instances": [1]})[0] == 200
    assert rest("custom/versions/1.5:predict", {"instances": [1]})[0] == 200
    assert rest("custom/versions/2:predict", {"instances": [1]})[0] == 200
    for path in ("custom/versions/1:predict", "custom/labels/canary:predict", "custom/versions/3:predict"):
        status, document = rest(path, {"instances": [1]})
        assert (status, set(document) >= {"error"}) == (404, True)
    status, document = rest("custom/versions/2")
    available = {"version": "2", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    assert (status, document) == (200, {"model_version_status": [available]})
    status, document = rest("custom/labels/1.5")
    assert (status, document["model_version_status"][0]["version"]) == (200, "1.5")


def test_the_state_of_a_model_is_for_clients_of_kserve_and_of_tensorflow_serving(rest: Rest) -> None:
    status, document = rest("custom")
    assert status == 200
    assert (document["name"], document["ready"]) == ("custom", True)
    assert [state["version"] for state in document["model_version_status"]] == ["1.5", "2"]


def test_metadata_is_the_signature_of_the_model(rest: Rest) -> None:
    status, document = rest("iris/metadata")
    assert status == 200
    assert document["model_spec"] == {"name": "iris", "signature_name": "", "version": "1"}
    signature = document["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["method_name"] == "tensorflow/serving/predict"
    assert signature["inputs"]["measurements"]["dtype"] == "DT_FLOAT"
    sizes = [dim["size"] for dim in signature["inputs"]["measurements"]["tensor_shape"]["dim"]]
    assert sizes == ["-1", "4"]
    assert rest("iris/versions/1/metadata") == (200, document)


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        ("nothing:predict", {"instances": [1]}, 404, "nothing"),
        ("nothing", None, 404, "nothing"),
        ("nothing/metadata", None, 404, "nothing"),
        ("iris/versions/7/metadata", None, 404, "7"),
        ("iris:predict", {"signature_name": "other", "instances": ROWS}, 400, "other"),
        ("iris:classify", {"signature_name": "other", "examples": [{}]}, 400, "other"),
        ("iris:classify", {"instances": ROWS}, 400, "examples"),
        ("iris:classify", {"examples": []}, 400, "empty"),
        ("iris:classify", {"examples": [1]}, 400, "example 0 is not an object"),
        ("iris:classify", {"context": [1], "examples": [{}]}, 400, "context is not an object"),
        ("iris:classify", "{", 400, "not JSON"),
        ("digits:regress", {"examples": [{"image": {"b64": base64.b64encode(PNG).decode()}}]}, 400, "call predict"),
        ("iris:predict", {"instances": [[1, 2, 3]]}, 400, "shape"),
        ("iris:predict", {"instances": ROWS, "inputs": ROWS}, 400, "both"),
    ],
)
def test_errors_have_the_key_that_clients_read(rest: Rest, path: str, body: Any, status: int, error: str) -> None:
    status_given, document = rest(path, body)
    assert status_given == status
    assert error in document["error"]


def test_states_and_metadata_are_only_read(rest: Rest) -> None:
    for path in ("iris", "iris/metadata", "iris/versions/1"):
        assert rest(path, {"instances": ROWS})[0] == 405


def test_tensors_have_tensors_of_the_same_values_as_rest(rest: Rest, call: Callable[..., Any]) -> None:
    response = call("Predict", predict_request("iris", measurements=floats(ROWS)), wire.PredictResponse)
    output = response.outputs["probabilities"]
    assert [dim.size for dim in output.tensor_shape.dim] == [2, 3]
    rows = rest("iris:predict", {"instances": ROWS})[1]["predictions"]
    assert np.reshape(output.float_val, (2, 3)) == pytest.approx(np.array(rows), abs=1e-6)
    assert response.model_spec.version.value == 1
    for item in (PNG, base64.b64encode(PNG), base64.urlsafe_b64encode(PNG)):
        response = call("Predict", predict_request("digits", image=strings(item)), wire.PredictResponse)
        assert list(response.outputs["label"].string_val) == [b"7"]


def test_a_handler_of_a_user_gets_the_json_of_rest(call: Callable[..., Any]) -> None:
    request = predict_request("custom", x=floats([[1, 2], [3, 4.5]]), s=strings(b"a", b"\xff"))
    request.model_spec.version.value = 2
    response = call("Predict", request, wire.PredictResponse)
    assert list(response.outputs["sums"].float_val) == [3.0, 7.5]
    assert list(response.outputs["texts"].string_val) == [b"a", b'{"b64": "/w=="}']
    request.output_filter.append("sums")
    assert list(call("Predict", request, wire.PredictResponse).outputs) == ["sums"]
    example = tensorflow_pb2.Example()
    example.features.feature["x"].float_list.value.append(1)
    request = wire.ClassificationRequest(model_spec=wire.ModelSpec(name="custom", version_label="1.5"))
    request.input.example_list.examples.append(example)
    response = call("Classify", request, wire.ClassificationResponse)
    (first_class,) = response.result.classifications[0].classes
    assert (first_class.label, first_class.score) == ("odd", 0.5)
    assert response.model_spec.version_label == "1.5"


def test_errors_of_wrong_calls_contain_the_models_inputs(call: Callable[..., Any]) -> None:
    def error(**inputs: tensorflow_pb2.TensorProto) -> tuple[str, str]:
        return error_of(lambda: call("Predict", predict_request("iris", **inputs), wire.PredictResponse))

    code, details = error(measurements=floats([[1, 2, 3]]))
    assert code == "INVALID_ARGUMENT"
    assert "[4]" in details
    code, details = error(measurements=floats(1))
    assert (code, "FP32 [-1, 4]" in details) == ("INVALID_ARGUMENT", True)
    code, details = error()
    assert (code, "no inputs" in details) == ("INVALID_ARGUMENT", True)
    huge = tensorflow_pb2.TensorProto(dtype=tensorflow_pb2.DT_FLOAT, float_val=[1])
    huge.tensor_shape.dim.add(size=1 << 40)
    code, details = error(measurements=huge)
    assert (code, "max_request_size" in details) == ("INVALID_ARGUMENT", True)
    for model, expected in (("nothing", "NOT_FOUND"), ("", "INVALID_ARGUMENT")):
        request = predict_request(model, x=floats([1]))
        assert error_of(lambda: call("Predict", request, wire.PredictResponse))[0] == expected  # noqa: B023


def test_services_are_listed_by_reflection_under_their_own_names(server: Builtin, token: str) -> None:
    with grpc.insecure_channel(server.server.grpc_inference.removeprefix("grpc://")) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        services = set(database.get_services())
        assert services >= {"tensorflow.serving.PredictionService", "tensorflow.serving.ModelService"}
        file = database.FindFileContainingSymbol("tensorflow.serving.PredictionService")
        (predict,) = (method for method in file.service[0].method if method.name == "Predict")
        assert predict.input_type == ".tensorflow.serving.PredictRequest"
        assert database.FindFileContainingSymbol("tensorflow.TensorProto").package == "tensorflow"


def pixels(digit: int) -> np.ndarray:
    """Return an image of a digit as clients of TensorFlow models have it: bytes, ``(32, 32, 3)``."""
    return np.array(Image.open(DIGITS[digit]).convert("RGB"))


@pytest.mark.parametrize("scale", [1, 255])
def test_images_as_lists_have_their_probabilities_in_the_order_of_classes(rest: Rest, scale: int) -> None:
    instances = [(pixels(digit) / scale if scale > 1 else pixels(digit)).tolist() for digit in (7, 2)]
    status, answer = rest("vit:predict", {"signature_name": "serving_default", "instances": instances})
    assert status == 200
    assert np.array(answer["predictions"]).shape == (2, 10)
    assert np.argmax(answer["predictions"], 1).tolist() == [7, 2]
    assert np.sum(answer["predictions"], 1) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("shape", [(32, 32, 2), (32, 32), (0, 32, 3)])
def test_an_image_of_another_shape_is_400_with_the_expected_one(rest: Rest, shape: tuple[int, ...]) -> None:
    status, answer = rest("vit:predict", {"instances": [np.zeros(shape, int).tolist()]})
    assert status == 400
    assert "(height, width, 3)" in answer["error"]
    assert "(3, 32, 32)" in answer["error"]


def test_images_as_tensors_have_their_probabilities(call: Callable[..., Any]) -> None:
    images = floats(np.stack([pixels(2), pixels(7)]))
    answer = call("Predict", predict_request("vit", image=images), wire.PredictResponse)
    probabilities = answer.outputs["probabilities"]
    values = [*probabilities.float_val, *probabilities.double_val]
    assert np.argmax(np.reshape(values, (2, 10)), 1).tolist() == [2, 7]


@pytest.mark.oracle
def test_tensorflows_own_client_needs_no_change(server: Builtin, token: str) -> None:
    python = oracles.python_of("tensorflow")
    environment = {
        **os.environ,
        "ADDRESS": server.server.grpc_inference.removeprefix("grpc://"),
        "ARCHIVES": str(ARCHIVES),
        "TOKEN": token,
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    client = Path(oracles.__file__).with_name("tensorflow_client.py")
    ran = subprocess.run([python, client], env=environment, capture_output=True, text=True, timeout=300)
    assert ran.stdout.splitlines()[-1:] == ["all as with TensorFlow Serving"], ran.stdout + ran.stderr


def test_labels_are_set_and_removed_over_the_management_api(server: Builtin, rest: Rest) -> None:
    management = server.management
    management.set_label("custom", "stable", "1.5")
    management.set_label("custom", "canary", "2.0")
    assert management.labels("custom") == {"stable": "1.5", "canary": "2.0"}
    assert rest("custom/labels/stable")[1]["model_version_status"][0]["version"] == "1.5"
    assert rest("custom/labels/canary:predict", {"instances": [1]})[0] == 200
    management.set_label("custom", "stable", "2.0")
    assert rest("custom/labels/stable")[1]["model_version_status"][0]["version"] == "2"
    management.remove_label("custom", "canary")
    assert management.labels("custom") == {"stable": "2.0"}
    assert rest("custom/labels/canary:predict", {"instances": [1]})[0] == 404
    for label, version, error in (
        ("stable", "9", NotFoundError),
        ("1.5", "2.0", ConflictError),
        ("a b", "2.0", ServerError),
    ):
        with pytest.raises(error):
            management.set_label("custom", label, version)
    with pytest.raises(NotFoundError):
        management.remove_label("custom", "canary")
    management.remove_label("custom", "stable")
