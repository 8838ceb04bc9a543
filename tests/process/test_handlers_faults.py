"""torchmar_handlers.common.faults separates inputs that the model rejects (400) from a model that is broken (503)."""

from __future__ import annotations

import io
import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from torchmar.exchange import Request
from torchmar.worker import Worker

TENSORS = "torchmar_handlers.tensors"


def scripted(model: nn.Module) -> bytes:
    stream = io.BytesIO()
    torch.jit.save(torch.jit.script(model.eval()), stream)
    return stream.getvalue()


def state_dict(model: nn.Module) -> bytes:
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    return stream.getvalue()


def ask(path: Path, *bodies: Any) -> list[tuple[int, str]]:
    """Return status and message (or answer) of requests of one batch."""
    with Worker(path) as worker:
        answers = worker.predict_batch([Request(json.dumps(body).encode(), "application/json") for body in bodies])
    return [
        (answer.status, json.loads(answer.body)["message"] if answer.status >= 400 else answer.body.decode())
        for answer in answers
    ]


class Words(nn.Module):
    """A model whose first layer is a table of ten vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.table(ids).sum(1)


class Broken(nn.Module):
    """A model that takes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.layer(rows) @ torch.zeros(5, 5)


@pytest.mark.parametrize(
    ("model", "good", "bad", "message"),
    [
        (nn.Linear(3, 2), [1.0, 2.0, 3.0], [1.5, 2.5], "expected a shape such as [3], got [2]"),
        (nn.Linear(3, 2), [1.0, 2.0, 3.0], [1, 2, 3], "expected float32 [3], got int64 [3]"),
        (
            nn.Conv2d(3, 2, 3),
            [[[0.5] * 8] * 8] * 3,
            [[[0.5] * 8] * 8] * 2,
            "such as [3, 32, 32], got [2, 8, 8]",
        ),
        (nn.Conv2d(4, 4, 3, groups=2), [[[0.5] * 8] * 8] * 4, [[0.5] * 8] * 8, "a shape such as [4, 32, 32]"),
        (Words(), [1, 9], [1, 10], "index out of range"),
        (Words(), [1, 9], [0.5, 1.5], "expected int64 [8], got float32 [2]"),
    ],
    ids=["a row", "whole numbers", "channels", "groups", "an id beyond the table", "fractions"],
)
def test_the_input_of_an_undescribed_model_is_derived_from_its_first_layer(
    make: Callable[..., Path], model: nn.Module, good: Any, bad: Any, message: str
) -> None:
    path = make(handler=TENSORS, disk={"model.pt": scripted(model)}, weights="model.pt")
    # The bad one is the first that the worker sees, and comes among good ones.
    (first, why), (second, _) = ask(path, bad, good)
    assert (first, second) == (400, 200), why
    assert "the model cannot take this input" in why
    assert message in why
    assert "Traceback" not in why


def test_a_model_that_takes_nothing_is_to_blame_itself(make: Callable[..., Path]) -> None:
    path = make(handler=TENSORS, disk={"model.pt": scripted(Broken())}, weights="model.pt")
    assert ask(path, [1.0, 2.0, 3.0], [1.0]) == [(503, "Prediction failed")] * 2


HANDLER = """
import torch
from torchmar_handlers.base import BaseHandler


class Mine(BaseHandler):
    def decode(self, request):
        return torch.tensor(request.json()["row"])

    def postprocess(self, output):
        return [{0: "none", 1: "one"}[index] for index in output.argmax(1).tolist()]
"""
MODEL = """
from torch import nn


class Net(nn.Linear):
    def __init__(self):
        super().__init__(3, 3)
"""


@pytest.fixture
def users_archive(make: Callable[..., Path]) -> Path:
    """Return an archive of a handler of a user's own, with a state dict and a sample."""
    linear = nn.Linear(3, 3)
    with torch.no_grad():
        linear.weight.copy_(torch.eye(3))
        linear.bias.zero_()
    return make(
        textwrap.dedent(HANDLER),
        disk={"model.pt": state_dict(linear), "model.py": MODEL},
        weights="model.pt",
        model_file="model.py",
        samples=[{"json": {"row": [1.0, 0.0, 0.0]}, "expect": "none"}],
    )


def test_a_users_own_handler_has_it_too(users_archive: Path) -> None:
    answers = ask(
        users_archive, {"row": [0.0, 1.0, 0.0]}, {"row": [1.0]}, {"row": [0.0, 0.0, 1.0]}, {"rows": []}, {"row": "x"}
    )
    assert [status for status, _ in answers] == [200, 400, 503, 400, 400]
    assert "expected shape [3], got [1]: RuntimeError: mat1 and mat2 shapes cannot be multiplied" in answers[1][1]
    # A label that is missing is the archive's fault, whatever the input was.
    assert answers[2][1] == "Prediction failed"
    # The sample can be read, so that what cannot is to blame.
    assert answers[3][1] == "the input cannot be read: KeyError: 'row'"


def test_an_input_that_fails_by_chance_is_answered(make: Callable[..., Path], tmp_path: Path) -> None:
    model = """
    import pathlib
    import torch
    from torch import nn

    class Net(nn.Linear):
        def __init__(self):
            super().__init__(3, 3)

        def forward(self, rows):
            once = pathlib.Path({file!r})
            if (rows == 7).any() and not once.exists():
                once.write_text("")
                raise RuntimeError("once")
            return super().forward(rows)
    """
    path = make(
        handler=TENSORS,
        disk={
            "model.pt": state_dict(nn.Linear(3, 3)),
            "model.py": textwrap.dedent(model).format(file=str(tmp_path / "once")),
        },
        weights="model.pt",
        model_file="model.py",
    )
    ((status, why),) = ask(path, [7.0, 7.0, 7.0])
    assert status == 200, why
