"""Keras models are converted when the archive is built, and answer as in Keras, without Keras in the worker."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support import keras_models
from tests.support.environments import environment_without
from tests.support.paths import ROOT
from torchmar import archive, checks, recipe, sample_check, scaffolding
from torchmar.conversion import converting
from torchmar.errors import ArchiveError
from torchmar.exchange import Request
from torchmar.worker import Worker
from torchmar_handlers.weights import exported

pytestmark = pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="needs pip install 'torchmar[keras]'")

TENSORS = "torchmar_handlers.tensors"
IMAGES = "torchmar_handlers.image_classifier"
PIXELS = {"mode": "RGB", "resize": [16, 16], "mean": [0.0] * 3, "std": [1.0] * 3, "topk": 5}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return keras_models.make(tmp_path_factory.mktemp("keras"))


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


def lay_down(folder: Path, model: Path, handler: str = TENSORS, **keys: object) -> Path:
    folder.mkdir(parents=True)
    shutil.copy(model, folder)
    document = {"name": "made", "version": "1.0", "handler": handler, "weights": model.name, **keys}
    (folder / "archive.yaml").write_text(json.dumps(document))
    return folder


def answers(built: Path, *bodies: object, **headers: str) -> list[object]:
    with Worker(built) as worker:
        got = worker.predict_batch([Request(json.dumps(body).encode(), "application/json", headers) for body in bodies])
    assert [one.status for one in got] == [200] * len(bodies), got
    return [json.loads(one.body) for one in got]


@pytest.mark.parametrize("name", ["pictures.keras", "pictures.h5", "attention.keras", "table.keras"])
def test_an_archive_of_a_keras_model_answers_as_keras_does(models: Path, tmp_path: Path, name: str) -> None:
    built = archive.build(lay_down(tmp_path / "made", models / name), tmp_path)
    known = np.load(models / f"{name}.npz")
    got = answers(built.path, *known["input_0"].tolist())
    np.testing.assert_allclose(np.asarray(got), known["output"], rtol=1e-4, atol=1e-6)
    with archive.Archive(built.path) as opened:
        assert opened.manifest.model.serialized_file == f"{Path(name).stem}.pt2"
        assert name not in opened


def test_inputs_and_outputs_keep_their_names(models: Path, tmp_path: Path) -> None:
    built = archive.build(lay_down(tmp_path / "made", models / "two.keras"), tmp_path)
    known = np.load(models / "two.keras.npz")
    rows = [
        {"ids": ids.tolist(), "numbers": numbers.tolist()}
        for ids, numbers in zip(known["input_0"], known["input_1"], strict=True)
    ]
    got = answers(built.path, *rows)
    for name in ("risk", "q"):
        np.testing.assert_allclose([one[name] for one in got], known[name], rtol=1e-4, atol=1e-6)


def test_an_image_gets_keras_probabilities_and_an_explanation_by_gradients(models: Path, tmp_path: Path) -> None:
    from PIL import Image

    folder = lay_down(tmp_path / "made", models / "pictures.keras", IMAGES, config={"handler": PIXELS})
    built = archive.build(folder, tmp_path)
    assert "channels first" in built.converted
    assert "without its last softmax" in built.converted
    known = np.load(models / "pictures.keras.npz")
    pixels = np.round(known["input_0"][0] * 255).astype("uint8")
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    with Worker(built.path) as worker:
        (answer,) = worker.predict_batch([Request(stream.getvalue())])
        (explained,) = worker.predict_batch([Request(stream.getvalue(), explain=True)])
    expected = {str(index): float(value) for index, value in enumerate(known["output"][0])}
    assert json.loads(answer.body) == pytest.approx(expected, abs=1e-4)
    assert explained.status == 200
    assert np.asarray(json.loads(explained.body)["attributions"]).shape == (3, 16, 16)


def test_a_table_classifier_has_the_probability_that_the_sigmoid_of_the_model_made(
    models: Path, tmp_path: Path
) -> None:
    folder = lay_down(tmp_path / "made", models / "table.keras", "torchmar_handlers.tabular_classifier")
    known = np.load(models / "table.keras.npz")
    converted = converting.convert(*recipe.read(folder))
    assert converted is not None
    assert "without its last sigmoid, which the handler computes" in converted.notes
    program = torch.export.load(converted.file).module()
    np.testing.assert_allclose(
        program(torch.from_numpy(known["input_0"])).sigmoid().detach(), known["output"], rtol=1e-4
    )


def test_the_program_is_what_one_writes_in_torch(models: Path, tmp_path: Path) -> None:
    converted = converting.convert(*recipe.read(lay_down(tmp_path / "made", models / "pictures.keras")))
    assert converted is not None
    program = torch.export.load(converted.file)
    names = [str(node.target).split(".")[1] for node in program.graph.nodes if node.op == "call_function"]
    middle = ["pad", "conv2d", "relu6", "conv2d", "conv2d", "relu", "add", "max_pool2d"]
    assert names == ["permute", *middle, "permute", "mean", "addcmul", "linear", "softmax"]
    stored = sum(value.numel() for value in program.state_dict.values())
    assert stored < 600, "each weight is in the program once"
    # The worker calls its graph without the checks of trees that torch makes, which take longer than a small model.
    assert exported.load(converted.file, torch.device("cpu"))._run is not None


def test_the_same_model_gives_the_same_bytes(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = []
    for number in (1, 2):
        if number == 2:  # the first may have been converted by another test
            monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("PYTHONHASHSEED", str(number))
        folder = lay_down(tmp_path / f"project{number}" / "made", models / "pictures.keras")
        digests.append(archive.build(folder, tmp_path / f"store{number}").digest)
    assert digests[0] == digests[1]


def test_an_unchanged_model_is_not_converted_again(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = lay_down(tmp_path / "made", models / "table.keras", samples=[{"json": [0.1, 0.2, 0.3, 0.4]}])
    first = archive.build(folder, tmp_path)
    assert "on 2 random inputs and 1 samples" in first.converted
    monkeypatch.setattr(sys, "executable", "/bin/false")
    again = archive.build(folder, tmp_path, force=True)
    assert (again.digest, again.converted) == (first.digest, first.converted)
    shutil.copy(models / "attention.keras", folder / "table.keras")
    with pytest.raises(ArchiveError, match="ended with 1"):
        archive.build(folder, tmp_path)


def test_the_build_imports_neither_keras_nor_torch(models: Path, tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "made", models / "table.keras")
    code = (
        "import sys, pathlib, torchmar.archive as a\n"
        "a.build(*map(pathlib.Path, sys.argv[1:]))\n"
        "heavy = {'torch', 'keras', 'h5py', 'numpy', 'tensorflow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, folder, tmp_path], check=True, cwd=ROOT)


def test_a_worker_without_keras_has_the_answer_and_a_build_without_it_says_what_to_install(
    models: Path, tmp_path: Path
) -> None:
    folder = lay_down(tmp_path / "made", models / "table.keras")
    built = archive.build(folder, tmp_path)
    python = environment_without(tmp_path / "environment", ("keras", "h5py"))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'handlers'}"}
    (tmp_path / "row.json").write_text("[0.1, 0.2, 0.3, 0.4]")
    ran = subprocess.run(
        [python, "-m", "torchmar", "run", built.path, tmp_path / "row.json"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    built_without = subprocess.run(
        [python, "-m", "torchmar", "build", folder, "--store", tmp_path / "other"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert built_without.returncode == 1
    assert "keras, h5py are not installed" in built_without.stderr
    assert "pip install keras h5py" in built_without.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lambda.keras", "it has a Lambda layer, whose code would run"),
        ("lambda.h5", "it has a Lambda layer, whose code would run"),
        ("custom.keras", "it has 'Doubled', which is not Keras' own"),
        ("stateful.keras", r"\(LSTM\) is stateful"),
        ("only.weights.h5", "it has weights and no model"),
    ],
)
def test_what_cannot_be_converted_is_rejected_with_the_reason(
    models: Path, tmp_path: Path, name: str, message: str
) -> None:
    folder = lay_down(tmp_path / "made", models / name)
    with pytest.raises(ArchiveError, match=message) as caught:
        archive.build(folder, tmp_path)
    assert caught.value.hint
    assert list(tmp_path.glob("*.mar")) == []
    (finding,) = checks.check(folder)
    assert finding.code.name == "MAR207"


def test_what_has_one_answer_for_a_batch_gets_one_row_at_a_time(models: Path, tmp_path: Path) -> None:
    converted = converting.convert(*recipe.read(lay_down(tmp_path / "made", models / "per_batch.keras")))
    assert converted is not None
    assert converted.notes == ("for one row at a time",)


def test_a_handler_that_has_nothing_of_torchmars_gets_the_file_itself(models: Path, tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "made", models / "lambda.keras", "handler.py")
    (folder / "handler.py").write_text("def handle(rows, context): return rows\n")
    with archive.Archive(archive.build(folder, tmp_path).path) as opened:
        assert opened.manifest.model.serialized_file == "lambda.keras"


def test_new_begins_with_a_keras_model(models: Path, tmp_path: Path) -> None:
    created = scaffolding.create("made", tmp_path / "archives", weights=models / "pictures.keras")
    assert created.kind == "image-classifier"
    read, _ = recipe.read(created.folder)
    assert (read.weights, read.config.handler["resize"]) == ("pictures.keras", [16, 16])  # type: ignore[union-attr, index]
    built = archive.build(created.folder, tmp_path / "store")
    assert sample_check.run_samples(built.path).problems == ()
