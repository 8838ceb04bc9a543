"""torchmar.server.api.tensors turns elements into bytes and back, as Triton lays them out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from torchmar.server.api.tensors import Tensor, in_json, joined, of_json, split
from torchmar.tensor_elements import LETTERS, pack, unpack

NUMPY = {"BOOL": "?", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8"} | {
    f"{name}INT{bits}": f"<{letter}{bits // 8}" for name, letter in (("", "i"), ("U", "u")) for bits in (8, 16, 32, 64)
}


@pytest.mark.parametrize("datatype", LETTERS)
def test_numbers_are_laid_out_as_by_numpy(datatype: str) -> None:
    dtype = np.dtype(NUMPY[datatype])
    limits = {"b": [True, False], "f": [0.5, -1.0, math.inf]}
    values = limits.get(dtype.kind) or [int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)]
    content = np.array(values, dtype).tobytes()
    assert pack(datatype, values) == content
    assert list(unpack(datatype, content)) == values
    if dtype.itemsize > 1:
        with pytest.raises(ValueError, match=f"no whole number of {datatype}"):
            unpack(datatype, content[:-1])
    if dtype.kind in "iu":
        with pytest.raises(ValueError, match=r".+"):
            pack(datatype, [values[1] + 1])


def test_bytes_have_their_length_before_them() -> None:
    assert pack("BYTES", ["ö", b"", b"\xff"]) == b"\2\0\0\0\xc3\xb6\0\0\0\0\1\0\0\0\xff"
    assert unpack("BYTES", pack("BYTES", ["ö", b"", b"\xff"])) == ["ö".encode(), b"", b"\xff"]
    for content in (b"\1\0", b"\5\0\0\0x"):
        with pytest.raises(ValueError, match="the bytes end within"):
            unpack("BYTES", content)


def test_the_upper_half_of_a_float_is_one() -> None:
    assert list(unpack("BF16", np.array([1.5, -2.0], "<f4").view("<u2")[1::2].tobytes())) == [1.5, -2.0]
    with pytest.raises(ValueError, match="no whole number of BF16"):
        unpack("BF16", b"123")


def test_a_tensor_in_json_is_the_same_tensor() -> None:
    for tensor in (
        Tensor("x", "FP32", [2, 2], pack("FP32", [1, 2, 3, 4.5])),
        Tensor("x", "BYTES", [2, 1], pack("BYTES", ["a", "ö"])),
    ):
        assert of_json(in_json(tensor)) == tensor
    nested = {"name": "x", "datatype": "BYTES", "shape": [1, 2], "data": [["a", {"b": 1}]]}
    assert unpack("BYTES", of_json(nested).content) == [b"a", b'{"b": 1}']


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (Tensor("x", "FP32", [3], bytes(8)), "is of 3 items, not 2"),
        (Tensor("x", "FP32", [1], pack("FP32", [math.nan])), "infinite or not a number"),
        (Tensor("x", "BYTES", [1], pack("BYTES", [b"\xff"])), "send it in base64"),
        (Tensor("x", "FLOAT", [1], bytes(4)), "'FLOAT' is none of BOOL"),
    ],
)
def test_an_element_that_json_cannot_represent_is_an_error(tensor: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        in_json(tensor)


def test_a_body_with_bytes_is_split_as_it_was_joined() -> None:
    tensors = [
        Tensor("x", "FP32", [1, 2], pack("FP32", [1, 2]), {"more": 1}),
        Tensor("y", "BYTES", [1], pack("BYTES", ["ö"])),
    ]
    body, length = joined({"id": "7"}, tensors, "inputs")
    assert split(body, length, "inputs") == ({"id": "7"}, tensors)
    assert split(b'{"outputs": []}', None, "outputs") == ({}, [])


@pytest.mark.parametrize("change", [lambda body: body[:-1], lambda body: body + b"x"])
def test_too_few_or_too_many_bytes_are_an_error(change: Any) -> None:
    body, length = joined({}, [Tensor("x", "FP32", [1], bytes(4))], "inputs")
    with pytest.raises(ValueError, match=r"the body ends within 'x'|belong to no tensor"):
        split(change(body), length, "inputs")
