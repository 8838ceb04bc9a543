"""torchmar_handlers.mlflow serves MLflow's models, and answers as ``mlflow models serve``."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import oracles
from tests.support.mlflow_models import COLUMNS, TENSOR, save
from torchmar import archive, checks, sample_check
from torchmar.exchange import Request, Response
from torchmar.importing import mlflow
from torchmar.worker import Worker

JSON, CSV = "application/json", "text/csv"
ROWS = [[1, 2.0, 3.0], [4, 5.0, 6.5]]
SPLIT = {"dataframe_split": {"columns": ["c", "a", "b"], "data": [[3.0, 1, 2.0], [6.5, 4, 5.0]]}}


@pytest.fixture(scope="module")
def model() -> torch.nn.Linear:
    torch.manual_seed(3)
    return torch.nn.Linear(3, 2)


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory, model: torch.nn.Linear) -> Iterator[dict[str, Worker]]:
    folder = tmp_path_factory.mktemp("mlflow")
    saved = {
        "tensor": save(folder / "tensor", model, TENSOR),
        "columns": save(folder / "columns", torch.jit.script(model), COLUMNS),
        "bare": save(folder / "bare", model, None),
    }
    started = {}
    for name, path in saved.items():
        imported = mlflow.import_model(path, folder / "archives")
        started[name] = Worker(archive.build(imported.folder, folder / "store").path)
    yield started
    for worker in started.values():
        worker.close()


def ask(worker: Worker, body: Any, content_type: str = JSON) -> Response:
    text = body if isinstance(body, str) else json.dumps(body)
    (response,) = worker.predict_batch([Request(text.encode(), content_type)])
    return response


@pytest.mark.parametrize("name", ["tensor", "bare"])
@pytest.mark.parametrize("key", ["inputs", "instances"])
def test_arrays_are_answered_with_arrays(
    workers: dict[str, Worker], model: torch.nn.Linear, name: str, key: str
) -> None:
    response = ask(workers[name], {key: ROWS})
    assert response.content_type == JSON
    predictions = torch.tensor(json.loads(response.body)["predictions"])
    torch.testing.assert_close(predictions, model(torch.tensor(ROWS)))


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (SPLIT, JSON),
        ({"dataframe_records": [dict(zip("abcx", [*row, 0], strict=True)) for row in ROWS]}, JSON),
        ({"inputs": {"a": [1, 4], "b": [2, 5], "c": [3, 6.5]}}, JSON),
        ({"instances": [dict(zip("abc", row, strict=True)) for row in ROWS]}, JSON),
        ("a,b,c\n1,2,3\n4,5,6.5\n", CSV),
    ],
)
def test_tables_are_answered_with_records(
    workers: dict[str, Worker], model: torch.nn.Linear, body: Any, content_type: str
) -> None:
    predictions = json.loads(ask(workers["columns"], body, content_type).body)["predictions"]
    expected = model(torch.tensor(ROWS))
    torch.testing.assert_close(torch.tensor([[row["0"], row["1"]] for row in predictions]), expected)


@pytest.mark.parametrize(
    ("name", "body", "content_type", "status", "message"),
    [
        ("columns", {"dataframe_records": [{"a": 1}]}, JSON, 400, "the table lacks the columns b, c"),
        ("columns", {"inputs": {"a": [1.5], "b": [1], "c": [1]}}, JSON, 400, "column a: 1.5 is no long"),
        ("columns", {"inputs": {"a": [1], "b": ["x"], "c": [1]}}, JSON, 400, 'column b: "x" is no double'),
        ("columns", '{"inputs": {"a": [1e400], "b": [1], "c": [1]}}', JSON, 400, "a: Infinity is no long"),
        ("columns", {"inputs": {"a": [1 << 63], "b": [1], "c": [1]}}, JSON, 400, "is no long"),
        ("columns", {"inputs": {"a": [1], "b": [10**400], "c": [1]}}, JSON, 400, "is no double"),
        ("tensor", {"inputs": [[1.0, 2.0]]}, JSON, 400, "the input has the shape [1, 2]; [-1, 3] is expected"),
        ("bare", {"inputs": [[1.0, 2.0]]}, JSON, 400, "the model cannot take this input"),
        ("tensor", {"inputs": [["x"]]}, JSON, 400, "no array of numbers"),
        ("tensor", {"rows": 1}, JSON, 400, "the body has rows; send an object with one of dataframe_split"),
        ("tensor", [1], JSON, 400, "the body is no object"),
        ("tensor", "{", JSON, 400, "the body is not JSON"),
        ("tensor", "GIF89a", "image/gif", 415, "Content-Type image/gif is not supported"),
    ],
)
def test_a_client_gets_mlflows_error_with_the_reason(
    workers: dict[str, Worker], name: str, body: Any, content_type: str, status: int, message: str
) -> None:
    response = ask(workers[name], body, content_type)
    error = json.loads(response.body)
    assert (response.status, error["error_code"]) == (status, "BAD_REQUEST")
    assert message in error["message"], error


def test_a_number_that_the_type_of_the_tensor_cannot_hold_is_no_other_number() -> None:
    from torchmar_handlers.adapters import mlflow_signature
    from torchmar_handlers.request import BadRequest

    pixels = [{"type": "tensor", "tensor-spec": {"dtype": "uint8", "shape": [-1]}}]
    (tensor,) = mlflow_signature.parse({"inputs": pixels}).tensors
    assert tensor.array([0, 255.0]).tolist() == [0, 255]
    for value in (256, -1, 1e30):
        with pytest.raises(BadRequest, match="numbers that uint8 cannot hold"):
            tensor.array([value])
    texts = [{"type": "tensor", "tensor-spec": {"dtype": "str", "shape": [-1]}}]
    with pytest.raises(ValueError, match=r"a tensor of the type .*, of which torch has none"):
        mlflow_signature.parse({"inputs": texts})


def oracle(folder: Path, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    ran = subprocess.run(
        [oracles.python_of("mlflow"), Path(oracles.__file__).with_name("mlflow_models.py"), folder],
        input=json.dumps(requests),
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "TORCH": str(Path(torch.__file__).parents[1])},
    )
    assert "answers:" in ran.stdout, ran.stdout + ran.stderr
    answers: list[dict[str, Any]] = json.loads(ran.stdout.rpartition("answers:")[2])
    return answers


@pytest.mark.oracle
def test_models_that_mlflow_saves_are_served_as_it_serves_them(tmp_path: Path) -> None:
    bodies = [
        (JSON, json.dumps(SPLIT)),
        (JSON, json.dumps({"inputs": ROWS})),
        (JSON, json.dumps({"instances": ROWS})),
        (JSON, json.dumps({"inputs": ROWS, "params": {"factor": 3.0}})),
        (JSON, json.dumps({"inputs": {"a": [1], "b": [2.5], "c": [3.5]}})),
        (JSON, json.dumps({"dataframe_records": [{"a": 1, "b": 2.5, "c": 3.5}]})),
        (JSON, json.dumps({"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2]]}})),
        (JSON, json.dumps({"inputs": [[1, 2]]})),
        (JSON, "["),
        (CSV, "a,b,c\n1,2,3\n"),
        ("image/png", "x"),
    ]
    names = ("columns", "params", "bare", "program")
    requests = [{"model": name, "content_type": kind, "body": body} for name in names for kind, body in bodies]
    folder = tmp_path / "mlflow"
    answers = iter(oracle(folder, requests))
    for name in names:
        imported = mlflow.import_model(folder / name, tmp_path / "archives")
        built = archive.build(imported.folder, tmp_path / "store").path
        pickled = [finding for finding in checks.check(built) if finding.code.name == "MAR603"]
        assert bool(pickled) == (name != "program"), checks.check(built)
        if name == "columns":
            assert not sample_check.run_samples(built).problems
        with Worker(built) as worker:
            for kind, body in bodies:
                theirs, ours = next(answers), ask(worker, body, kind)
                if theirs["status"] == 200:
                    found, expected = (json.loads(answer)["predictions"] for answer in (ours.body, theirs["body"]))
                    assert len(found) == len(expected), (name, kind, body)
                    for row, wanted in zip(found, expected, strict=True):
                        assert row == pytest.approx(wanted, abs=1e-6), (name, kind, body)
                elif ours.status == 200:
                    # Without a signature MLflow passes float64, and a tensor as a table is no array there.
                    assert name != "columns", (name, kind, body, theirs)
                else:
                    assert ours.status == theirs["status"], (name, kind, body, theirs, ours.body)
