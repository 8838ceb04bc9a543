"""TensorFlow's messages become tensors and back, in every form that its clients send."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from torchmar.grpc.wire import tensorflow_pb2 as wire
from torchmar.server.api import tensorflow_serving as documents
from torchmar.server.api.tensors import Tensor
from torchmar.server.grpc import tensorflow_json, tensorflow_tensors
from torchmar.tensor_elements import BYTES, pack

MAX = 1 << 20


def message(dtype: str, shape: list[int], **fields: Any) -> wire.TensorProto:
    return wire.TensorProto(dtype=wire.DataType.Value(dtype), tensor_shape=tensorflow_tensors.shape(shape), **fields)


@pytest.mark.parametrize(
    ("dtype", "field", "numpy_type"),
    [
        ("DT_FLOAT", "float_val", "<f4"),
        ("DT_DOUBLE", "double_val", "<f8"),
        ("DT_INT8", "int_val", "<i1"),
        ("DT_INT16", "int_val", "<i2"),
        ("DT_INT32", "int_val", "<i4"),
        ("DT_INT64", "int64_val", "<i8"),
        ("DT_UINT8", "int_val", "<u1"),
        ("DT_UINT16", "int_val", "<u2"),
        ("DT_UINT32", "uint32_val", "<u4"),
        ("DT_UINT64", "uint64_val", "<u8"),
        ("DT_BOOL", "bool_val", "?"),
    ],
)
def test_numbers_in_content_and_in_the_field_of_their_type_are_one_tensor(
    dtype: str, field: str, numpy_type: str
) -> None:
    array = np.array([[1, 0, 1], [0, 1, 1]], numpy_type)
    content = tensorflow_tensors.tensor("x", message(dtype, [2, 3], tensor_content=array.tobytes()), MAX)
    listed = tensorflow_tensors.tensor("x", message(dtype, [2, 3], **{field: array.ravel().tolist()}), MAX)
    assert content == listed
    assert content.content == array.tobytes()
    assert content.shape == [2, 3]
    returned = tensorflow_tensors.message(content)
    assert getattr(returned, field)[:] == array.ravel().tolist()
    assert tensorflow_tensors.tensor("x", returned, MAX) == content


def test_halves_are_the_lower_bits_of_their_field() -> None:
    array = np.array([1.5, -2.0], np.float16)
    bits = array.view(np.uint16).tolist()
    half = tensorflow_tensors.tensor("x", message("DT_HALF", [2], half_val=bits), MAX)
    assert (half.datatype, half.content) == ("FP16", array.tobytes())
    brain = tensorflow_tensors.tensor("x", message("DT_BFLOAT16", [1], half_val=[0x3F80]), MAX)
    assert (brain.datatype, brain.content) == ("BF16", struct.pack("<H", 0x3F80))
    assert list(tensorflow_tensors.message(half).half_val) == bits


def test_the_last_element_is_repeated_until_the_shape_is_full() -> None:
    filled = tensorflow_tensors.tensor("x", message("DT_FLOAT", [2, 2], float_val=[1, 2]), MAX)
    assert filled.content == struct.pack("<4f", 1, 2, 2, 2)
    empty = tensorflow_tensors.tensor("x", message("DT_INT32", [3]), MAX)
    assert empty.content == struct.pack("<3i", 0, 0, 0)
    texts = tensorflow_tensors.tensor("x", message("DT_STRING", [3], string_val=[b"a", b"b"]), MAX)
    assert texts.content == pack(BYTES, [b"a", b"b", b"b"])


def test_strings_in_content_have_their_lengths_in_front() -> None:
    content = bytes([1, 0x80 | 2, 1]) + b"a" + b"b" * 130
    texts = tensorflow_tensors.tensor("x", message("DT_STRING", [2], tensor_content=content), MAX)
    assert texts.content == pack(BYTES, [b"a", b"b" * 130])


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (message("DT_FLOAT", [2], float_val=[1, 2, 3]), "there are 3 elements, and the shape is of 2"),
        (message("DT_FLOAT", [2], tensor_content=b"1234"), "tensor_content has 4 bytes, and 2 elements"),
        (message("DT_FLOAT", [-1], float_val=[1]), "negative size"),
        (message("DT_FLOAT", [1 << 40], float_val=[1]), "more than max_request_size"),
        (message("DT_STRING", [1 << 40], string_val=[b""]), "more than max_request_size"),
        (message("DT_STRING", [2], tensor_content=b"\x01"), "ends within the lengths"),
        (message("DT_STRING", [1], tensor_content=b"\x05abc"), "do not match tensor_content"),
        (message("DT_INT8", [1], int_val=[300]), "-128 <= number <= 127"),
        (message("DT_HALF", [1], half_val=[1 << 17]), "more than 16 bits"),
        (message("DT_COMPLEX64", [1]), "DT_COMPLEX64 is not supported"),
        (wire.TensorProto(dtype=77), "the type 77 is not supported"),  # type: ignore[arg-type]
        (wire.TensorProto(dtype=wire.DT_FLOAT, tensor_shape=wire.TensorShapeProto(unknown_rank=True)), "unknown"),
    ],
)
def test_a_tensor_that_does_not_match_its_type_and_shape_is_rejected_by_name(
    given: wire.TensorProto, error: str
) -> None:
    with pytest.raises(ValueError, match=f"input 'x': .*{error}"):
        tensorflow_tensors.tensor("x", given, MAX)


def test_strings_that_are_not_text_are_base64_in_json() -> None:
    texts = Tensor("x", BYTES, [2], pack(BYTES, [b"abc", b"\xff"]))
    assert tensorflow_json.nested(texts) == ["abc", {"b64": "/w=="}]
    assert tensorflow_json.nested(texts._replace(name="x_bytes")) == [{"b64": "YWJj"}, {"b64": "/w=="}]
    rows = Tensor("x", "INT32", [2, 1, 2], struct.pack("<4i", 1, 2, 3, 4))
    assert tensorflow_json.nested(rows) == [[[1, 2]], [[3, 4]]]
    assert tensorflow_json.nested(Tensor("x", "INT32", [0, 2], b"")) == []


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"predictions": [[0.5, 1], [2, 3]]}, {"outputs": ("FP32", [2, 2])}),
        ({"predictions": [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]}, {"a": ("INT64", [2]), "b": (BYTES, [2])}),
        ({"outputs": {"a": [[True]], "b": [{"c": 1}]}}, {"a": ("BOOL", [1, 1]), "b": (BYTES, [1])}),
        ({"outputs": [1, 2]}, {"outputs": ("INT64", [2])}),
        ([[1], [2, 3]], {"outputs": (BYTES, [2])}),
        ([None], {"outputs": (BYTES, [1])}),
        ({"dog": 0.5}, {"outputs": (BYTES, [1])}),
        ("dog", {"outputs": (BYTES, [1])}),
    ],
)
def test_the_json_of_any_handler_becomes_tensors(document: Any, expected: dict[str, tuple[str, list[int]]]) -> None:
    tensors = tensorflow_json.outputs(document)
    assert {name: (tensor.datatype, list(tensor.shape)) for name, tensor in tensors.items()} == expected


@pytest.mark.parametrize(
    ("version", "number"), [("1", 1), ("1.0", 1), ("2.0.0", 2), ("1.5", None), ("2.0+b1", None), ("v1", None)]
)
def test_whole_versions_have_numbers(version: str, number: int | None) -> None:
    assert documents.number(version) == number


def test_answers_of_classifiers_are_classes() -> None:
    assert documents.classes({"cat": 0.9, "dog": 0.1}) == [("cat", 0.9), ("dog", 0.1)]
    assert documents.classes({"classes": ["a", 2], "scores": [0.5, 1]}) == [("a", 0.5), ("2", 1.0)]
    assert documents.classes({"label": "a", "probability": 0.5}) == [("a", 0.5)]
    assert documents.classes([0.25, 0.75]) == [("0", 0.25), ("1", 0.75)]
    for other in ("cat", {"cat": "dog"}, [[0.5]], {}, [], None, {"cat": True}):
        with pytest.raises(ValueError, match="call predict"):
            documents.classes(other)


def test_answers_of_regressors_are_numbers() -> None:
    assert documents.regression(1) == 1.0
    assert documents.regression([2.5]) == 2.5
    assert documents.regression({"prediction": 3, "unit": "mg"}) == 3.0
    for other in ("1", {"a": 1, "b": 2}, [1, 2], None, True):
        with pytest.raises(ValueError, match="call predict"):
            documents.regression(other)


def test_features_take_the_rank_of_their_inputs() -> None:
    inputs = [{"name": "scalar", "shape": [-1]}, {"name": "list", "shape": [-1, 1]}]
    given = {"scalar": [1.0], "list": [2.0], "unknown": [3.0], "several": [4.0, 5.0]}
    assert documents.instances([given], {"scalar": [9.0], "shared": [b"x"]}, inputs) == [
        {"scalar": 1.0, "shared": b"x", "list": [2.0], "unknown": 3.0, "several": [4.0, 5.0]}
    ]
