"""The handler of tensors takes and gives arrays in every protocol, by name, type and shape."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.paths import ROOT
from torchmar import archive, sample_check
from torchmar.errors import LoadError
from torchmar.exchange import Request, Response
from torchmar.worker import Worker

IRIS = ROOT / "archives" / "iris"
TENSORS = "torchmar_handlers.tensors"
NPY = "application/x-npy"
SETOSA, VIRGINICA = [5.0, 3.4, 1.5, 0.2], [6.6, 3.0, 5.6, 2.1]


@pytest.fixture(scope="module")
def iris_archive(tmp_path_factory: pytest.TempPathFactory, weights: None) -> Path:
    return archive.build(IRIS, tmp_path_factory.mktemp("tensors")).path


@pytest.fixture(scope="module")
def iris(iris_archive: Path) -> Iterator[Worker]:
    with Worker(iris_archive) as worker:
        yield worker


@pytest.fixture
def serving(make: Callable[..., Path]) -> Callable[..., Path]:
    """Return a function that builds an archive of a module (scripted), a program or ONNX, and options."""

    def build(model: Any, **options: Any) -> Path:
        stream = io.BytesIO()
        if isinstance(model, bytes):
            name, content = "model.onnx", model
        elif isinstance(model, torch.nn.Module):
            torch.jit.save(torch.jit.script(model.eval()), stream)
            name, content = "model.pt", stream.getvalue()
        else:
            torch.export.save(model, stream)
            name, content = "model.pt2", stream.getvalue()
        return make(handler=TENSORS, disk={name: content}, weights=name, config={"handler": options})

    return build


def request_of(body: Any, kind: str = "application/json", **more: Any) -> Request:
    return Request(body if isinstance(body, bytes) else json.dumps(body).encode(), kind, **more)


def decoded(answer: Response) -> Any:
    assert answer.status == 200, answer.body
    if answer.content_type == NPY:
        return np.load(io.BytesIO(answer.body))
    return json.loads(answer.body)


def alone(worker: Worker, body: Any, **more: Any) -> Any:
    return decoded(worker.predict_batch([request_of(body, **more)])[0])


def error_message(answer: Response, status: int = 400) -> str:
    error = json.loads(answer.body)
    assert (answer.status, answer.content_type, error["code"]) == (status, "application/json", status), error
    return str(error["message"])


def npy(array: Any, dtype: Any = None) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array(array, dtype))
    return stream.getvalue()


def v2(**more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "measurements", "shape": [1, 4], "datatype": "FP32", "data": SETOSA, **more}]}


def test_the_archive_keeps_its_contract(iris_archive: Path) -> None:
    held = sample_check.run_samples(iris_archive)
    assert not held.problems
    assert not held.explains


def test_a_batch_is_answered_like_its_requests_one_by_one(iris: Worker) -> None:
    flowers = (np.array(SETOSA) + np.linspace(0, 3, 16)[:, None]).tolist()
    together = [decoded(answer) for answer in iris.predict_batch([request_of(flower) for flower in flowers])]
    for batched, flower in zip(together, flowers, strict=True):
        assert batched == pytest.approx(alone(iris, flower), abs=1e-6)


def test_a_prediction_is_the_models_own(iris: Worker) -> None:
    program = torch.export.load(IRIS / "iris.pt2").module()
    expected = program(torch.tensor([SETOSA, VIRGINICA]))
    assert np.allclose(alone(iris, [SETOSA, VIRGINICA]), expected.detach().numpy(), atol=1e-6)


ONE, TWO = "one", "two"  # the answers to the two flowers, filled in by the test
HEAD = {"model_name": "iris", "model_version": "1.0"}
PROTOCOLS: dict[str, tuple[Request, Any]] = {
    "an array": (request_of(SETOSA), ONE),
    "an array of no declared type": (request_of(SETOSA, "application/octet-stream"), ONE),
    "an array by name": (request_of({"measurements": SETOSA}), ONE),
    "arrays": (request_of([SETOSA, VIRGINICA]), [ONE, TWO]),
    "one of arrays": (request_of([SETOSA]), [ONE]),
    "arrays by name": (request_of({"measurements": [SETOSA, VIRGINICA]}), [ONE, TWO]),
    "an array of objects": (request_of([{"measurements": SETOSA}, {"measurements": VIRGINICA}]), [ONE, TWO]),
    "KServe v1": (request_of({"instances": [SETOSA, {"measurements": VIRGINICA}]}), {"predictions": [ONE, TWO]}),
    "TF Serving columns": (request_of({"inputs": {"measurements": [SETOSA, VIRGINICA]}}), {"outputs": [ONE, TWO]}),
    "TF Serving inputs": (request_of({"inputs": [SETOSA, VIRGINICA]}), {"outputs": [ONE, TWO]}),
    "v2": (
        request_of(v2(shape=[2, 4], data=[SETOSA, VIRGINICA])),
        {
            **HEAD,
            "outputs": [{"name": "probabilities", "shape": [2, 3], "datatype": "FP32", "data": [ONE, TWO]}],
        },
    ),
    "v2, doubles": (
        request_of({**v2(datatype="FP64"), "id": "a", "outputs": [{"name": "probabilities"}]}),
        {
            **HEAD,
            "id": "a",
            "outputs": [{"name": "probabilities", "shape": [1, 3], "datatype": "FP32", "data": [ONE]}],
        },
    ),
}


def filled(template: Any, values: dict[str, list[float]]) -> Any:
    if isinstance(template, dict):
        filling = {key: filled(value, values) for key, value in template.items()}
        if "datatype" in filling:
            filling["data"] = [number for row in filling["data"] for number in row]
        return filling
    if isinstance(template, list):
        return [filled(value, values) for value in template]
    return values.get(template, template) if isinstance(template, str) else template


@pytest.mark.parametrize("name", PROTOCOLS)
def test_arrays_are_taken_however_they_are_sent(iris: Worker, name: str) -> None:
    one, two = alone(iris, [SETOSA, VIRGINICA])
    request, template = PROTOCOLS[name]
    answer = decoded(iris.predict_batch([request])[0])
    expected = filled(template, {"one": one, "two": two})
    assert json.dumps(answer) == json.dumps(expected) or np.allclose(_numbers(answer), _numbers(expected), atol=1e-6)
    assert _shape(answer) == _shape(expected)


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for item in value.values() for number in _numbers(item)]
    if isinstance(value, list):
        return [number for item in value for number in _numbers(item)]
    return [value] if isinstance(value, float) else []


def _shape(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shape(item) for item in value]
    return "number" if isinstance(value, float) else value


def test_npy_is_answered_in_npy(iris: Worker) -> None:
    expected = np.array(alone(iris, [SETOSA, VIRGINICA]), np.float32)
    sent = iris.predict_batch(
        [
            request_of(npy(SETOSA), NPY),
            request_of(npy([SETOSA, VIRGINICA], np.float16)),
            request_of([SETOSA], accept=NPY),
        ]
    )
    assert {answer.content_type for answer in sent} == {NPY}
    one, two, accepted = map(decoded, sent)
    assert (one.shape, two.shape, accepted.shape, one.dtype) == ((3,), (2, 3), (1, 3), np.float32)
    assert np.allclose(one, expected[0], atol=1e-6)
    assert np.allclose(two, expected, atol=1e-3)
    assert np.allclose(accepted[0], expected[0], atol=1e-6)
    # An array in the byte order or memory order of another machine is the same array.
    for other in (np.array(SETOSA, ">f8"), np.asfortranarray([SETOSA, VIRGINICA])[0]):
        assert np.allclose(alone(iris, npy(other)), expected[0], atol=1e-6)
    assert np.allclose(alone(iris, npy(np.asfortranarray([SETOSA, VIRGINICA]))), expected, atol=1e-6)


TAKES = "measurements: float32 of the shape [4] is expected"
MALFORMED: dict[str, tuple[Request, str]] = {
    "empty": (request_of(b""), "the body is empty"),
    "null": (request_of(None), "the body is empty; send measurements: float32 of the shape [4]"),
    "broken JSON": (request_of(b"[1, 2,", "application/json"), "not JSON"),
    "noise": (request_of(b"\x00\xff\xfe", "application/octet-stream"), "not JSON"),
    "text": (request_of(b"a rose", "text/plain"), "not JSON"),
    "an empty array": (request_of([]), f"the input 'measurements' has the shape [0]; {TAKES}"),
    "an empty object": (request_of({}), "the input 'measurements' is missing; send measurements"),
    "a number": (request_of(3), f"has the shape []; {TAKES}"),
    "too few": (request_of([1, 2, 3]), f"has the shape [3]; {TAKES}"),
    "too many": (request_of({"measurements": [1, 2, 3, 4, 5]}), f"has the shape [5]; {TAKES}"),
    "too deep": (request_of([[[1, 2, 3, 4]]]), f"has the shape [1, 1, 4]; {TAKES}"),
    "one of several too short": (
        request_of([SETOSA, [1, 2]]),
        f"instance 1: the input 'measurements' has the shape [2]; {TAKES}",
    ),
    "deeper than any array": (request_of(b"[" * 200 + b"]" * 200, "text/plain"), "is nested unevenly, or too deep"),
    "nested unevenly": (request_of({"measurements": [1, [2], 3, 4]}), "the input 'measurements' is nested unevenly"),
    "a text": (request_of([1, 2, "3", 4]), f"the input 'measurements' is '3' at [2]; {TAKES}"),
    "a text only": (request_of({"measurements": "1 2 3 4"}), f"is '1 2 3 4'; {TAKES}"),
    "a null inside": (request_of([1, None, 3, 4]), f"is None at [1]; {TAKES}"),
    "an object inside": (request_of([1, {}, 3, 4]), f"is {{}} at [1]; {TAKES}"),
    "a number too large": (request_of([1, 2, 3, 10**30]), "at [3]"),
    "a number beyond float32": (request_of([1, 2, 3, 1e300]), "has 1e+300, which float32 does not hold"),
    "booleans": (request_of([True, False, True, True]), "is of booleans; float32 is expected"),
    "another name": (
        request_of({"measurement": SETOSA}),
        "there is no input 'measurement'; did you mean 'measurements'?",
    ),
    "a name too many": (
        request_of({"measurements": SETOSA, "x": 1}),
        "there is no input 'x'; send measurements: float32",
    ),
    "damaged .npy": (request_of(npy(SETOSA)[:-3]), "the .npy file is damaged"),
    ".npy of texts": (request_of(npy(["a", "b", "c", "d"])), f"is 'a' at [0]; {TAKES}"),
    ".npy of another shape": (
        request_of(npy(np.zeros((2, 5)))),
        "instance 0: the input 'measurements' has the shape [5]",
    ),
    "v2 of another name": (request_of(v2(name="x")), "there is no input 'x'"),
    "v2 of another shape": (
        request_of(v2(shape=[2, 2])),
        f"instance 0: the input 'measurements' has the shape [2]; {TAKES}",
    ),
    "v2 of booleans": (request_of(v2(datatype="BOOL", data=[True] * 4)), "is of booleans; float32 is expected"),
    "v2 of texts": (request_of(v2(datatype="BYTES", data=["a"] * 4)), f"is 'a' at [0]; {TAKES}"),
    "v2 of two inputs": (request_of({"inputs": [*v2()["inputs"], *v2(name="y")["inputs"]]}), "there is no input 'y'"),
    "v2 with an output that is not there": (request_of({**v2(), "outputs": [{"name": "y"}]}), "there is no output 'y'"),
    "a bad instance among good ones": (
        request_of({"instances": [SETOSA, 5]}),
        "instance 1: the input 'measurements' has",
    ),
}


def test_malformed_tensors_get_their_own_400_and_others_their_answers(iris: Worker) -> None:
    good = request_of(SETOSA)
    answers = iris.predict_batch([part for request, _ in MALFORMED.values() for part in (request, good)])
    for (name, (_, message)), answer in zip(MALFORMED.items(), answers[::2], strict=True):
        assert message in error_message(answer), name
    expected = decoded(iris.predict_batch([good])[0])
    assert all(decoded(answer) == pytest.approx(expected, abs=1e-6) for answer in answers[1::2])
    assert "TensorHandler failed" not in iris.log()


def test_explanations_are_rejected_with_501_beside_predictions(iris: Worker) -> None:
    answers = iris.predict_batch(
        [
            request_of(SETOSA, explain=True),
            request_of(SETOSA),
            request_of([1], explain=True),
            request_of({"instances": [SETOSA]}, explain=True),
        ]
    )
    assert [answer.status for answer in answers] == [501, 200, 400, 501]


def test_inputs_and_outputs_are_described_to_the_management_api(iris: Worker) -> None:
    described = decoded(iris.predict_batch([Request(b"", headers={"describe": "True"})])[0])
    assert described == {
        "inputs": [{"name": "measurements", "dtype": "float32", "shape": [4]}],
        "outputs": ["probabilities"],
    }


class Double(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, x], 1)


DTYPES = {
    "bool": ([True, False], [[1, 0], [1.5, 2.5]]),
    "uint8": ([0, 255], [[-1, 0], [0, 256], [1.5, 2]]),
    "int8": ([-128, 127], [[-129, 0], [0, 128]]),
    "int16": ([-(2**15), 2**15 - 1], [[0, 2**15], [True, False]]),
    "int32": ([-(2**31), 2**31 - 1], [[0, 2**31]]),
    "int64": ([-(2**63), 2**63 - 1], [[0, 2**63], [0.5, 1]]),
    "float16": ([0.5, 65504], [[0, 70000], [True, False]]),
    "float32": ([0.1, 3], [[0, 1e39]]),
    "float64": ([0.1, 1e300], [["x", 1]]),
}


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_of_every_type_are_returned_unchanged(serving: Callable[..., Path], dtype: str) -> None:
    values, wrong = DTYPES[dtype]
    with Worker(serving(Double(), inputs=[{"name": "x", "dtype": dtype, "shape": [2]}])) as worker:
        good = request_of(npy(values, dtype))
        answers = worker.predict_batch([part for bad in wrong for part in (request_of(bad), good)])
        for answer, neighbour in zip(answers[::2], answers[1::2], strict=True):
            assert dtype in error_message(answer)
            assert neighbour.status == 200
        alone_answer = alone(worker, npy(values, dtype))
        assert alone_answer.dtype == np.dtype(dtype)
        assert alone_answer.tolist() == np.array([*values, *values], dtype).tolist()
        assert alone(worker, values) == alone_answer.tolist()
        assert alone(worker, {"instances": [values]})["predictions"][0] == alone_answer.tolist()


NUMBERS = b"""[0.5, 1.5]; [1, 2]; [true, false]; [1, 0.5]; [0, -0.0]; [1e-7, 123456789.125]; [3.4e38, 1]; [1e39, 1]
; [1e300, 0]; [1099511627776, 1]; [1180591620717411303424, 1]; [1]; [1, 2, 3]; []; [[1, 2]]; [[1, 2], [3.5, 4]]
; [[1, 2], [3]]; [[[1, 2]]]; 5; null; "x"; [1, "2"]; [null, 1]; [{}, 1]; {"x": [1.5, 2]}; {"y": [1, 2]}
; [{"x": [1.5, 2]}]; {"instances": [[1.5, 2]]}; [NaN, 1]; [1, 2; [-Infinity, 0.5]; [1e400, 0.5]"""
PLAIN = [*NUMBERS.split(b"; "), b"[" * 40 + b"1" + b"]" * 40]
HEADERS = [{"Accept": NPY}, {"Accept": "APPLICATION/X-NPY"}, {"Inference-Header-Content-Length": "2"}]


@pytest.mark.parametrize("declared", [None, [{"name": "x", "dtype": "float32", "shape": [2]}]])
def test_arrays_of_json_alone_are_answered_as_beside_others(
    serving: Callable[..., Path], declared: list[dict[str, Any]] | None
) -> None:
    options = {"inputs": declared} if declared else {}
    other = request_of(npy([[[1.5, 2]]], "float64"))  # in a forward pass of its own
    requests = [request_of(body) for body in PLAIN] + [request_of([1.5, 2], headers=more) for more in HEADERS]
    with Worker(serving(Double(), **options)) as worker:
        for request in requests:
            alone, beside = worker.predict_batch([request])[0], worker.predict_batch([request, other])[0]
            assert alone == beside, request
        same = worker.predict_batch([request_of([0.5, 1.5]), request_of([2.5, 3.5])])
        assert [decoded(answer) for answer in same] == [[0.5, 1.5, 0.5, 1.5], [2.5, 3.5, 2.5, 3.5]]


class Length(torch.nn.Module):
    def forward(self, words: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return (words * weights[:, :, None]).sum((1, 2)), words.amax(1), (weights > 0).any(1)


def test_instances_of_different_shapes_share_a_batch(serving: Callable[..., Path]) -> None:
    inputs = [{"name": "words", "dtype": "int64", "shape": [None, 2]}, {"name": "weights", "shape": [None]}]
    with Worker(serving(Length(), inputs=inputs, outputs=["sum", "most", "any"])) as worker:
        short = {"words": [[1, 2]], "weights": [0.5]}
        long = {"words": [[1, 2], [3, 4], [5, 6]], "weights": [1, 0, 1]}
        one, two = {"sum": 1.5, "most": [1, 2], "any": True}, {"sum": 14.0, "most": [5, 6], "any": True}
        uneven = {"words": [[1, 2], [3, 4], [5, 6]], "weights": [1, 0]}
        answers = worker.predict_batch(
            [request_of(body) for body in (short, long, uneven, [short, long], {"instances": [long, short]})]
        )
        # Shapes that the model rejects, not the input's declaration: no other request fails.
        assert [answer.status for answer in answers] == [200, 200, 400, 200, 200]
        assert [decoded(answers[index]) for index in (0, 1)] == [one, two]
        assert decoded(answers[3]) == [one, two]
        assert decoded(answers[4]) == {"predictions": [two, one]}
        many = {"words": [short["words"], short["words"]], "weights": [[0.5], [1]]}
        assert alone(worker, many) == [one, {**one, "sum": 3.0}]
        assert alone(worker, {"inputs": many})["outputs"]["sum"] == [1.5, 3.0]
        bad_bodies = {
            "the model has 2 inputs; send an object with words: int64 of the shape [*, 2], weights: float32": [[1, 2]],
            "the input 'weights' is missing": {"words": [[1, 2]]},
            "the inputs have different numbers of instances: words: 2, weights: 1": {**many, "weights": [[1]]},
            "there is no input 'weight'; did you mean 'weights'?": {**short, "weight": [1]},
            "the input 'words' is of numbers with fractions; int64 is expected": {**short, "words": [[1.5, 2]]},
        }
        for message, body in bad_bodies.items():
            assert message in error_message(worker.predict_batch([request_of(body)])[0])
        tensors = [
            {"name": "words", "shape": [1, 1, 2], "datatype": "INT32", "data": [1, 2]},
            {"name": "weights", "shape": [1, 1], "datatype": "FP32", "data": [0.5]},
        ]
        assert alone(worker, {"inputs": tensors})["outputs"] == [
            {"name": "sum", "shape": [1], "datatype": "FP32", "data": [1.5]},
            {"name": "most", "shape": [1, 2], "datatype": "INT64", "data": [1, 2]},
            {"name": "any", "shape": [1], "datatype": "BOOL", "data": [True]},
        ]


class Ratio(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / x.roll(1, 1)


def test_numbers_that_json_lacks_fail_their_request_only(serving: Callable[..., Path]) -> None:
    inputs = [{"name": "x", "shape": [2]}]
    with Worker(serving(Ratio(), inputs=inputs, outputs=["ratio"])) as worker:
        answers = worker.predict_batch(
            [request_of([1, 2]), request_of([1, 0]), request_of(npy([0, 0], "f4")), request_of([0, 0], accept=NPY)]
        )
        assert decoded(answers[0]) == [0.5, 2]
        assert "the output 'ratio' is inf at [0], which JSON cannot say; accept application/x-npy" in error_message(
            answers[1], 400
        )
        assert np.isnan(decoded(answers[2])).all()
        assert np.isnan(decoded(answers[3])).all()
    with Worker(serving(Ratio(), inputs=inputs, non_finite="null")) as worker:
        assert alone(worker, [[1, 2], [1, 0]]) == [[0.5, 2], [None, 0]]


def test_without_options_a_module_gets_its_inputs_by_the_names_of_its_arguments(serving: Callable[..., Path]) -> None:
    with Worker(serving(Length())) as worker:
        answers = alone(worker, {"instances": [{"words": [[1, 2]], "weights": [0.5]}]})["predictions"]
        assert answers == [{"output_0": 1.5, "output_1": [1, 2], "output_2": True}]
        assert "there is no input 'word'; did you mean 'words'?" in error_message(
            worker.predict_batch([request_of({"word": [1]})])[0]
        )


def onnx_model() -> bytes:
    """Return an ONNX model: ``ids`` (n, 3) of int64 and ``scale`` (n, 1) to ``scaled`` (n, 3) and ``total`` (n, 1)."""
    import onnx
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Cast", ["ids"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "scale"], ["scaled"]),
        helper.make_node("ReduceSum", ["scaled", "axis"], ["total"], keepdims=1),
    ]
    inputs = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", 3]),
        helper.make_tensor_value_info("scale", TensorProto.FLOAT, ["n", 1]),
    ]
    outputs = [
        helper.make_tensor_value_info("scaled", TensorProto.FLOAT, ["n", 3]),
        helper.make_tensor_value_info("total", TensorProto.FLOAT, ["n", 1]),
    ]
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
    graph = helper.make_graph(nodes, "scaling", inputs, outputs, [axis])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(onnx.ModelProto.SerializeToString(model))


def test_onnx_weights_contain_names_types_and_shapes(serving: Callable[..., Path]) -> None:
    with Worker(serving(onnx_model())) as worker:
        instance = {"ids": [1, 2, 3], "scale": [2]}
        bad = request_of({"ids": [1.5, 2, 3], "scale": [2]})
        answers = worker.predict_batch(
            [request_of(instance), bad, request_of({"ids": [[1, 2, 3]] * 2, "scale": [[1], [0.5]]})]
        )
        assert decoded(answers[0]) == {"scaled": [2, 4, 6], "total": [12]}
        assert "the input 'ids' is of numbers with fractions; int64 is expected" in error_message(answers[1])
        assert [answer["total"] for answer in decoded(answers[2])] == [[6], [3]]
        assert "has the shape [2]; ids: int64 of the shape [3]" in error_message(
            worker.predict_batch([request_of({**instance, "ids": [1, 2]})])[0]
        )
        assert decoded(worker.predict_batch([Request(b"", headers={"describe": "True"})])[0]) == {
            "inputs": [
                {"name": "ids", "dtype": "int64", "shape": [3]},
                {"name": "scale", "dtype": "float32", "shape": [1]},
            ],
            "outputs": ["scaled", "total"],
        }


class Named(torch.nn.Module):
    def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sum": left + right, "difference": left - right}


def test_a_program_of_a_fixed_batch_size_is_filled_up_and_split(serving: Callable[..., Path]) -> None:
    program = torch.export.export(Named(), (torch.zeros(4, 2), torch.zeros(4, 2)))
    with Worker(serving(program)) as worker:
        pairs = [{"left": [index, 1], "right": [1, index]} for index in range(7)]
        expected = [{"sum": [i + 1, 1 + i], "difference": [i - 1, 1 - i]} for i in range(7)]
        assert [decoded(answer) for answer in worker.predict_batch([request_of(pair) for pair in pairs])] == expected
        assert alone(worker, pairs) == expected
        assert alone(worker, pairs[3]) == expected[3]
    with Worker(serving(program, outputs=["difference"])) as worker:
        assert alone(worker, pairs[3]) == expected[3]["difference"]
        assert alone(worker, {"instances": pairs})["predictions"] == [
            expected_answer["difference"] for expected_answer in expected
        ]


BAD_OPTIONS = {
    "handler.inputs: a list of inputs is expected": {"inputs": {"x": [2]}},
    "item 0 is not an object with a name": {"inputs": [{"shape": [2]}]},
    "x: dtype 'float' is none of bool, uint8": {"inputs": [{"name": "x", "dtype": "float"}]},
    "x: shape [-1] is not a list of sizes, null for any": {"inputs": [{"name": "x", "shape": [-1]}]},
    "x: there is no 'type'; there are name, dtype, shape": {"inputs": [{"name": "x", "type": "int8"}]},
    "two are called 'x'": {"inputs": [{"name": "x"}, {"name": "x"}]},
    "the model has no input 'y'; it has words, weights": {"inputs": [{"name": "words"}, {"name": "y"}]},
    "handler.outputs: 'y' is not a list of names": {"outputs": "y"},
    "handler.output: no option is called so; did you mean 'outputs'?": {"output": ["y"]},
    "handler.non_finite: 'nan' is none of refuse, null": {"non_finite": "nan"},
}


@pytest.mark.parametrize("message", BAD_OPTIONS)
def test_wrong_options_are_reported_when_the_model_loads(serving: Callable[..., Path], message: str) -> None:
    with pytest.raises(LoadError) as failed, Worker(serving(Length(), **BAD_OPTIONS[message])):
        pass
    assert message in failed.value.traceback
