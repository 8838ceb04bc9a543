"""`torchmar new` creates archives that build, answer their samples and pass their tests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.paths import ROOT
from torchmar import recipe, scaffolding
from torchmar.errors import TorchmarError
from torchmar.scaffolding import Created, Kind, weights_recipe

ARCHIVES = ROOT / "archives"


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, "PATH": path, "NO_COLOR": "1"}, capture_output=True, text=True, timeout=300
    )


def assert_tidy(folder: Path) -> None:
    """Assert that the Python files are formatted, have no finding of the linter, and are typed."""
    files = list(folder.rglob("*.py"))
    assert files
    for check in (["format", "--check"], ["check", "--select", "E,F,I,UP,B"]):
        ran = run("ruff", *check, "--isolated", "--line-length", "120", *files, cwd=folder)
        assert ran.returncode == 0, ran.stdout + ran.stderr


def test_a_new_project_passes_its_own_tests(tmp_path: Path) -> None:
    ran = run(sys.executable, "-m", "torchmar", "new", "my-model", "--project", "shop", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-3:] == ["  cd shop", "  scripts/test", "  torchmar serve"]
    project = tmp_path / "shop"
    tested = run("scripts/test", "-q", "-p", "no:cacheprovider", cwd=project)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "4 passed" in tested.stdout
    assert (project / "model_store" / "my-model-1.0.mar").is_file()
    assert_tidy(project)


# Weights and the kind that is named, by the names of the archives; the kind and the handler that are chosen.
FROM_WEIGHTS: dict[str, tuple[str, Kind | None, Kind, str]] = {
    "program": ("iris/iris.pt2", None, "tensors", "torchmar_handlers.tensors"),
    "onnx": ("search/search.onnx", None, "tensors", "torchmar_handlers.tensors"),
    "script": ("digits/digits.pt", None, "image-classifier", "torchmar_handlers.image_classifier"),
    "custom": ("iris/iris.pt2", "custom", "custom", "handler.py"),
    "table": ("iris/iris.pt2", "table", "table", "torchmar_handlers.tabular_classifier"),
    "table-of-many": ("tumours/tumours.pt", "table", "table", "torchmar_handlers.tabular_classifier"),
    "text": ("highlight/highlight.pt", "text", "text", "torchmar_handlers.token_classifier"),
}


@pytest.fixture(scope="module")
def of_weights(tmp_path_factory: pytest.TempPathFactory, weights: None) -> tuple[dict[str, Created], str]:
    """Create an archive of each kind of weights; return them, and what pytest prints that runs the tests of all."""
    folder = tmp_path_factory.mktemp("created")
    created = {
        name: scaffolding.create(name, folder / "archives", weights=ARCHIVES / path, kind=kind)
        for name, (path, kind, _, _) in FROM_WEIGHTS.items()
    }
    for archive in created.values():
        files = {str(path.relative_to(archive.folder)) for path in archive.folder.rglob("*") if path.is_file()}
        assert set(archive.files) == files
    # The tests of all archives have one file name.
    options = ("-vv", "-p", "no:cacheprovider", "--import-mode=importlib")
    return created, run(sys.executable, "-m", "pytest", *options, "archives", cwd=folder).stdout


@pytest.mark.parametrize("name", FROM_WEIGHTS)
def test_an_archive_of_weights_passes_its_tests_and_is_tidy(
    of_weights: tuple[dict[str, Created], str], name: str
) -> None:
    created, tested = of_weights[0][name], of_weights[1]
    _, _, chosen, handler = FROM_WEIGHTS[name]
    assert created.kind == chosen
    written, _ = recipe.read(created.folder)
    assert written.handler == handler
    outcomes = [line.split()[:2] for line in tested.splitlines() if line.startswith(f"archives/{name}/")]
    assert {test.partition("::")[2] for test, _ in outcomes} >= {"test_the_samples_have_their_answers"}, tested
    assert {outcome for _, outcome in outcomes} == {"PASSED"}, tested
    assert_tidy(created.folder)


def test_inputs_are_those_of_the_weights(tmp_path: Path, weights: None) -> None:
    created = scaffolding.create("made", tmp_path, weights=ARCHIVES / "digits" / "digits.pt")
    assert [(tensor.shape, tensor.guessed) for tensor in created.inputs] == [((1, 32, 32), True)]
    config = yaml.safe_load((created.folder / "archive.yaml").read_text())["config"]
    assert config["handler"] == {"mode": "L", "resize": [32, 32], "topk": 3}
    assert "10 classes" in (created.folder / "archive.yaml").read_text()
    created = scaffolding.create("other", tmp_path, weights=ARCHIVES / "search" / "search.onnx")
    assert [(tensor.name, tensor.dtype, tensor.shape) for tensor in created.inputs] == [
        ("ids", "int64", (None,)),
        ("mask", "int64", (None,)),
    ]
    sample = json.loads((created.folder / "samples" / "zeros.json").read_text())
    assert sample == {"ids": [0, 0, 0, 0], "mask": [0, 0, 0, 0]}
    assert created.notes  # the length is a guess


def test_a_table_has_the_columns_and_the_labels_that_lie_beside_the_weights(tmp_path: Path, weights: None) -> None:
    beside = tmp_path / "beside"
    beside.mkdir()
    shutil.copy(ARCHIVES / "iris" / "iris.pt2", beside)
    model = beside / "iris.pt2"
    created = scaffolding.create("plain", tmp_path, weights=model, kind="table")
    config = yaml.safe_load((created.folder / "archive.yaml").read_text())["config"]
    assert [column["name"] for column in config["handler"]["columns"]] == [f"column_{place}" for place in range(1, 5)]
    assert config["handler"]["activation"] == "none"  # its output is probabilities already
    assert any("names" in note for note in created.notes)

    columns = [{"name": name, "min": 0, "mean": 3.5} for name in ("sepal length", "sepal width", "petal length")]
    columns.append({"name": "kind", "type": "integer", "default": 2})
    (beside / "columns.json").write_text(json.dumps(columns))
    (beside / "config.json").write_text('{"id2label": {"1": "versicolor", "0": "setosa", "2": "virginica"}}')
    created = scaffolding.create("known", tmp_path, weights=model, kind="table")
    read, _ = recipe.read(created.folder)
    assert read.labels == ["setosa", "versicolor", "virginica"]
    assert read.files["columns.json"] == "columns.json"
    row = json.loads((created.folder / "samples" / "row.json").read_text())
    assert row == {"sepal length": 3.5, "sepal width": 3.5, "petal length": 3.5, "kind": 2}
    assert created.notes == ()

    (beside / "columns.json").write_text(json.dumps(columns[:3]))
    with pytest.raises(TorchmarError, match=r"describes 3 numbers of a row, and iris\.pt2 takes 4"):
        scaffolding.create("less", tmp_path, weights=model, kind="table")


@pytest.mark.parametrize(
    ("path", "kind", "message"),
    [
        ("digits/digits.pt", "table", "does not take one row of numbers"),
        ("clinic/clinic.pt2", "table", r"does not take one row of numbers \(image_data \[12\], text_data"),
        ("iris/iris.pt2", "text", r"takes no ids of tokens \(measurements: float32\)"),
        ("", "text", "needs a model: name its file \\(with tokenizer.json beside it\\)"),
        ("", "table", "needs a model"),
        ("iris/iris.pt2", "image-classifier", r"does not take one image \(measurements \[4\], without"),
        ("clinic/clinic.pt2", "image-classifier", r"does not take one image \(image_data \[12\], text_data"),
    ],
)
def test_a_model_of_another_kind_is_rejected(
    path: str, kind: Kind, message: str, tmp_path: Path, weights: None
) -> None:
    with pytest.raises(TorchmarError, match=message):
        scaffolding.create("made", tmp_path / "archives", weights=ARCHIVES / path if path else None, kind=kind)
    assert not (tmp_path / "archives").exists()


def test_a_model_of_texts_needs_its_tokenizer(tmp_path: Path, weights: None) -> None:
    shutil.copy(ARCHIVES / "search" / "search.onnx", tmp_path)
    with pytest.raises(TorchmarError, match=r"there is no tokenizer\.json beside"):
        scaffolding.create("made", tmp_path / "archives", weights=tmp_path / "search.onnx", kind="text")


def test_labels_that_do_not_fit_are_left_out(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    assert weights_recipe.labels(model, 2)[0].startswith("# labels: labels.json # a list of the 2 classes")
    (tmp_path / "labels.json").write_text('["a", "no"]')
    assert weights_recipe.labels(model, 2) == ('labels: ["a", "no"] # of labels.json beside the weights\n', [])
    line, (note,) = weights_recipe.labels(model, 3)
    assert line.startswith("# labels")
    assert note == "labels.json beside the weights has 2 labels, and the model 3 classes: not used"
    (tmp_path / "labels.json").write_text("[")
    with pytest.raises(TorchmarError, match="is not JSON"):
        weights_recipe.labels(model, 2)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (None, "made", "cannot be read: No such file or directory"),
        (b"", "made", "weights is empty$"),
        (b"import torch\n", "made", "is in no format that torchmar knows"),
        (b"\x89PNG\r\n\x1a\n", "made", "cannot be served as it is"),
        (b"x", "../made", "is not a model name"),
    ],
)
def test_a_failed_creation_leaves_no_files(content: bytes | None, name: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "weights"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(TorchmarError, match=message):
        scaffolding.create(name, tmp_path / "archives", weights=file)
    assert not (tmp_path / "archives").exists()


def test_a_folder_that_exists_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    with pytest.raises(TorchmarError, match="exists already"):
        scaffolding.create("made", tmp_path)
    with pytest.raises(TorchmarError, match="exists already") as raised:
        scaffolding.create_project(tmp_path / "made", "model")
    assert "remove" not in str(raised.value.hint)  # the folder may be the user's whole work
    assert list((tmp_path / "made").iterdir()) == []
