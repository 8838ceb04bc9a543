"""torchmar.worker.process.describing reads a handler's description of its tensors, in any form."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from torchmar.worker.process.describing import description
from torchmar.worker.process.messages import ModelDescription

TENSOR = {"name": "text", "datatype": "BYTES", "shape": [-1]}
NOTHING = {"inputs": [], "outputs": [], "binary": False, "max_instances": 0}


class Handler:
    """A user's handler."""

    def __init__(self, signature: Any) -> None:
        self._signature = signature

    def signature(self) -> Any:
        if isinstance(self._signature, Exception):
            raise self._signature
        return self._signature

    def handle(self, rows: Any, context: Any) -> Any:
        return rows


def of(handler: Any) -> ModelDescription:
    return description(SimpleNamespace(_entry_point=handler.handle))


def test_a_signature_is_taken_as_it_is() -> None:
    signature = of(Handler({"inputs": [TENSOR], "outputs": [TENSOR, TENSOR]}))
    assert signature == {"inputs": [TENSOR], "outputs": [TENSOR, TENSOR], "binary": False, "max_instances": 0}
    assert of(Handler({"inputs": ({**TENSOR, "shape": (-1, 2)},), "outputs": ()}))["inputs"][0]["shape"] == [-1, 2]


@pytest.mark.parametrize(
    "signature",
    [None, 5, {}, {"inputs": [TENSOR]}, {"inputs": [{"name": "x"}], "outputs": []}, ValueError("no"), SystemError()],
)
def test_an_unusable_description_is_ignored(signature: Any) -> None:
    assert of(Handler(signature)) == NOTHING


def test_a_handler_without_a_description_has_none() -> None:
    def handle(rows: Any, context: Any) -> Any:
        return rows

    assert description(SimpleNamespace(_entry_point=handle)) == NOTHING


@pytest.mark.process
def test_only_a_handle_of_ours_gets_tensors_as_bytes() -> None:
    from torchmar_handlers.tensors import TensorHandler

    class Own(TensorHandler):
        def signature(self) -> Any:
            return {"inputs": [], "outputs": []}

    class Another(Own):
        def handle(self, data: Any, context: Any) -> Any:
            return super().handle(data, context)

    assert of(Own())["binary"] is True
    assert of(Another())["binary"] is False
