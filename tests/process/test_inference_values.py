"""torchmar.inference converts values to bodies and answers to values, and sends many requests at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from torchmar.errors import TorchmarError
from torchmar.exchange import Response
from torchmar.inference import Tensor, bodies, each


@pytest.mark.parametrize(
    ("data", "body", "content_type"),
    [
        (b"\x00", b"\x00", "application/octet-stream"),
        (bytearray(b"\x00"), b"\x00", "application/octet-stream"),
        ("grün", "grün".encode(), "text/plain"),
        ({"a": [1, None]}, b'{"a": [1, null]}', "application/json"),
        ([1.5], b"[1.5]", "application/json"),
    ],
)
def test_a_value_has_its_body(data: Any, body: bytes, content_type: str) -> None:
    request = bodies.request(data)
    assert (request.body, request.content_type) == (body, content_type)


def test_a_file_has_the_type_of_its_suffix(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"png")
    assert bodies.request(tmp_path / "a.png").content_type == "image/png"
    with pytest.raises(TorchmarError, match="cannot be read"):
        bodies.request(tmp_path / "none")


@pytest.mark.parametrize("array", [np.arange(6.0).reshape(2, 3), torch.tensor([[1, 2], [3, 4]])])
def test_an_array_is_sent_and_returned_as_npy(array: Any) -> None:
    request = bodies.request(array)
    assert request.content_type == "application/x-npy"
    back = bodies.value(Response(200, request.body, {"content-type": "application/x-npy"}))
    assert np.array_equal(back, np.asarray(array))


@pytest.mark.parametrize("data", [object(), float("nan"), {1: {2}}])
def test_values_that_json_lacks_are_reported(data: object) -> None:
    with pytest.raises(TorchmarError, match="cannot be sent as JSON"):
        bodies.request(data)


@pytest.mark.parametrize(
    ("body", "content_type", "value"),
    [
        (b'{"a": 1}', "application/json; charset=utf-8", {"a": 1}),
        (b'{"a": 1}', "", {"a": 1}),  # as TorchServe sends what most handlers answer
        (b"a word", "", "a word"),
        (b'"a word"', "text/plain", '"a word"'),
        (b"\xff\xfe", "", b"\xff\xfe"),
        (b"12", "image/png", b"12"),
    ],
)
def test_an_answer_has_its_value(body: bytes, content_type: str, value: Any) -> None:
    assert bodies.value(Response(200, body, {"content-type": content_type})) == value


@pytest.mark.parametrize("kind", ["application/json", "application/x-npy"])
def test_a_response_that_is_not_of_its_type_is_reported(kind: str) -> None:
    with pytest.raises(TorchmarError, match=f"has content type {kind}, but its body is not"):
        bodies.value(Response(200, b"{", {"content-type": kind}))


@pytest.mark.parametrize(
    ("values", "datatype", "shape", "data"),
    [
        ([[1, 2], [3, 4]], "INT64", (2, 2), [1, 2, 3, 4]),
        ([1, 2.5], "FP32", (2,), [1, 2.5]),
        ([True], "BOOL", (1,), [True]),
        ([["a"], ["b"]], "BYTES", (2, 1), ["a", "b"]),
        (np.zeros((1, 2), np.float16), "FP16", (1, 2), [0, 0]),
        (np.array([1], np.uint8), "UINT8", (1,), [1]),
        (np.array(["x"]), "BYTES", (1,), ["x"]),
    ],
)
def test_a_tensor_is_made_of_lists_and_arrays(
    values: Any, datatype: str, shape: tuple[int, ...], data: list[Any]
) -> None:
    tensor = Tensor.of("x", values)
    assert (tensor.datatype, tensor.shape, list(tensor.data)) == (datatype, shape, data)
    assert Tensor.read(tensor.document()) == tensor
    assert tensor.array().tolist() == np.asarray(values).tolist()


@pytest.mark.parametrize("values", [[[1], [2, 3]], [[1, 2], 3], [[1], [[2]]], [None], ["a", 1], np.array([1j])])
def test_values_that_are_no_tensors_are_reported(values: Any) -> None:
    with pytest.raises(TorchmarError, match="input 'x'"):
        Tensor.of("x", values)


def test_json_has_no_place_for_bytes() -> None:
    assert Tensor.of("x", [b"text"]).document()["data"] == ["text"]
    with pytest.raises(TorchmarError, match="base64"):
        Tensor.of("x", [b"\xff"]).document()


class Client:
    """A client that remembers whether it was closed."""

    made: list[Client]

    def __init__(self) -> None:
        self.closed = threading.Event()
        self.made.append(self)

    def close(self) -> None:
        self.closed.set()


@pytest.fixture(autouse=True)
def made() -> None:
    Client.made = []


@pytest.mark.parametrize("ordered", [True, False])
def test_each_item_is_yielded_once_with_its_result_and_every_client_is_closed(ordered: bool) -> None:
    def ask(client: Client, number: int) -> int:
        if number % 10 == 3:
            raise TorchmarError(f"{number} is refused")
        return number * number

    results = list(each(range(100), ask, Client, jobs=5, ordered=ordered))
    assert sorted(item for item, _ in results) == list(range(100))
    assert not ordered or [item for item, _ in results] == list(range(100))
    for item, result in results:
        assert str(result) == f"{item} is refused" if item % 10 == 3 else result == item * item
    assert len(Client.made) == 5
    assert all(client.closed.wait(5) for client in Client.made)


@pytest.mark.parametrize("ordered", [True, False])
def test_no_more_items_are_taken_than_twice_the_threads(ordered: bool) -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(100):
            taken += 1
            yield number

    for yielded, _ in enumerate(each(items(), lambda client, item: item, Client, jobs=3, ordered=ordered)):
        assert taken - yielded <= 6


def test_an_early_stop_does_not_wait() -> None:
    never = threading.Event()
    results = each([1, 0, 0], lambda client, item: item or never.wait(), Client, jobs=2, ordered=False)
    assert next(results) == (1, 1)
    results.close()
    never.set()


def test_errors_that_are_no_torchmar_errors_are_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(each([1, 0], lambda client, item: 1 // item, Client, jobs=1))


def test_no_items_have_no_results() -> None:
    assert not list(each([], lambda client, item: item, Client))


def test_no_item_is_lost_without_threads() -> None:
    assert list(each([1, 2], lambda client, item: item, Client, jobs=0)) == [(1, 1), (2, 2)]


def test_an_array_of_objects_is_reported() -> None:
    with pytest.raises(TorchmarError, match="array of objects"):
        bodies.request(np.array([object()]))
