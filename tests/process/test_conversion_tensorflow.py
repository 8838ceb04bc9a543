"""Models of TensorFlow are converted when the archive is built, and answer as TensorFlow does, without it."""

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

from tests import oracles
from tests.support import tensorflow_models
from tests.support.environments import environment_without
from tests.support.paths import ROOT
from torchmar import archive, checks, recipe, sample_check, scaffolding
from torchmar.conversion import converting, tflite_signature
from torchmar.errors import ArchiveError, RecipeError
from torchmar.exchange import Request
from torchmar.worker import Worker

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="needs pip install 'torchmar[openvino]'"
)

TENSORS = "torchmar_handlers.tensors"
IMAGES = "torchmar_handlers.image_classifier"
PIXELS = {"mode": "L", "resize": [8, 8], "mean": [0.0], "std": [1.0], "topk": 10}
KNOWN = tensorflow_models.answers()


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


def lay_down(folder: Path, model: str, handler: str = TENSORS, **keys: object) -> Path:
    folder.mkdir(parents=True)
    source = tensorflow_models.FOLDER / model
    if source.is_dir():
        shutil.copytree(source, folder / model)
    else:
        shutil.copy(source, folder)
    document = {"name": "made", "version": "1.0", "handler": handler, "weights": model, **keys}
    (folder / "archive.yaml").write_text(json.dumps(document))
    return folder


def answers(built: Path, *bodies: object) -> list[object]:
    with Worker(built) as worker:
        got = worker.predict_batch([Request(json.dumps(body).encode(), "application/json") for body in bodies])
    assert [one.status for one in got] == [200] * len(bodies), got
    return [json.loads(one.body) for one in got]


@pytest.mark.parametrize(
    ("model", "given", "expected", "tolerance"),
    [
        ("digits", "images", "digits", 1e-5),
        ("digits.tflite", "images", "lite", 1e-5),
        ("digits_int8.tflite", "bytes", "int8", 2.0),  # of 255
    ],
)
def test_an_archive_of_a_tensorflow_model_answers_as_tensorflow_does(
    tmp_path: Path, model: str, given: str, expected: str, tolerance: float
) -> None:
    built = archive.build(lay_down(tmp_path / "made", model), tmp_path)
    got = answers(built.path, *KNOWN[given].tolist())
    np.testing.assert_allclose(np.asarray(got), KNOWN[expected].astype(float), atol=tolerance)
    assert np.asarray(got).argmax(1).tolist() == KNOWN["labels"].tolist()
    with archive.Archive(built.path) as opened:
        names = {member.name for member in opened.members}
        assert opened.manifest.model.serialized_file == f"{Path(model).stem}.xml"
    assert f"{Path(model).stem}.bin" in names
    assert not any("saved_model" in name or "tflite" in name for name in names)


def test_inputs_and_outputs_have_the_names_of_the_signature(tmp_path: Path) -> None:
    built = archive.build(lay_down(tmp_path / "made", "named"), tmp_path)
    rows = [
        {"image": image.tolist(), "temperature": temperature.tolist()}
        for image, temperature in zip(KNOWN["images"], KNOWN["temperature"], strict=True)
    ]
    got = answers(built.path, *rows)
    np.testing.assert_allclose([one["scores"] for one in got], KNOWN["scores"], rtol=1e-4, atol=1e-4)  # type: ignore[index]
    assert [one["digit"] for one in got] == KNOWN["digit"].tolist()  # type: ignore[index]
    # TensorFlow Lite has names of tensors, too, which differ; clients send those of the signature.
    assert tflite_signature.names(tensorflow_models.FOLDER / "digits.tflite") == {
        "serving_default_image:0": "image",
        "StatefulPartitionedCall_1:0": "output_0",
    }


@pytest.mark.parametrize("size", [0, 3, 8, 100, 3000])
def test_a_damaged_tensorflow_lite_file_has_no_names_and_is_rejected(tmp_path: Path, size: int) -> None:
    folder = lay_down(tmp_path / "made", "digits.tflite")
    file = folder / "digits.tflite"
    file.write_bytes(file.read_bytes()[:size])
    assert tflite_signature.names(file) == {}
    if size >= 8:
        with pytest.raises(ArchiveError, match=r"digits\.tflite cannot be converted: "):
            archive.build(folder, tmp_path)


@pytest.mark.parametrize("model", ["digits", "digits.tflite"])
def test_an_image_gets_the_probabilities_of_the_model_and_an_explanation(tmp_path: Path, model: str) -> None:
    from PIL import Image

    folder = lay_down(tmp_path / "made", model, IMAGES, config={"handler": PIXELS})
    built = archive.build(folder, tmp_path)
    assert "channels first" in built.converted
    assert "without its last softmax, which the handler computes" in built.converted
    pixels = np.round(KNOWN["images"][0, :, :, 0] * 255).astype("uint8")
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    with Worker(built.path) as worker:
        (answer,) = worker.predict_batch([Request(stream.getvalue())])
        (explained,) = worker.predict_batch([Request(stream.getvalue(), explain=True)])
    expected = {str(index): float(value) for index, value in enumerate(KNOWN["digits"][0])}
    assert json.loads(answer.body) == pytest.approx(expected, abs=5e-3)  # the image has 256 levels
    assert explained.status == 200, explained.body
    assert np.asarray(json.loads(explained.body)["attributions"]).size == 64


def test_answers_are_compared_with_tensorflows_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = lay_down(tmp_path / "made", "named", samples=[{"json": {"image": [[[1.0]] * 8] * 8, "temperature": [0]}}])
    without = converting.convert(*recipe.read(folder))
    assert without is not None
    assert without.notes == ("not compared with TensorFlow (tensorflow is not installed)",)
    python = oracles.python_of("tensorflow")
    (packages,) = python.parent.parent.glob("lib/python*/site-packages")
    monkeypatch.setenv("PYTHONPATH", str(packages))
    monkeypatch.setattr(sys, "path", [*sys.path, str(packages)])
    compared = converting.convert(*recipe.read(folder))
    assert compared is not None
    assert compared.notes[0].startswith("compared with TensorFlow 2.")
    assert (compared.random, compared.samples) == (2, 1)  # the sample divides by zero, as in TensorFlow
    assert 0 < compared.difference < 1e-5
    assert [file.read_bytes() for file in compared.files] == [file.read_bytes() for file in without.files]
    lite = converting.convert(*recipe.read(lay_down(tmp_path / "lite", "digits_int8.tflite")))
    assert lite is not None
    assert lite.notes[0].startswith("compared with TensorFlow Lite 2.")
    assert any("quantised" in note for note in lite.notes)


def test_the_same_model_gives_the_same_bytes_and_is_not_converted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = []
    for number in (1, 2):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache{number}"))
        folder = lay_down(tmp_path / f"project{number}" / "made", "digits")
        digests.append(archive.build(folder, tmp_path / f"store{number}").digest)
    assert digests[0] == digests[1]
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert archive.build(folder, tmp_path / "store2").unchanged
    assert archive.build(folder, tmp_path / "store2", force=True).digest == digests[1]
    variables = next((folder / "digits" / "variables").glob("*.data*"))
    variables.write_bytes(variables.read_bytes()[::-1])
    with pytest.raises(ArchiveError, match="ended with 1"):
        archive.build(folder, tmp_path / "store2")


def test_a_worker_without_tensorflow_and_keras_has_the_answer_and_a_build_without_openvino_says_what_to_install(
    tmp_path: Path,
) -> None:
    folder = lay_down(tmp_path / "made", "digits")
    built = archive.build(folder, tmp_path)
    python = environment_without(tmp_path / "environment", ("keras", "h5py", "tensorflow", "openvino_telemetry"))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'handlers'}"}
    (tmp_path / "row.json").write_text(json.dumps(KNOWN["images"][0].tolist()))
    command = ["-m", "torchmar", "run", built.path, tmp_path / "row.json"]
    ran = subprocess.run([python, *command], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    python = environment_without(tmp_path / "other", ("openvino",))
    command = ["-m", "torchmar", "build", folder, "--store", tmp_path / "elsewhere"]
    ran = subprocess.run([python, *command], env=environment, capture_output=True, text=True)
    assert ran.returncode == 1
    assert "is a TensorFlow model, which is converted when the archive is built, and openvino is not installed" in (
        " ".join(ran.stderr.split())
    )
    assert "pip install openvino; the server needs OpenVINO, too, and no TensorFlow" in " ".join(ran.stderr.split())


def test_what_cannot_be_converted_is_rejected_with_the_operation_that_stops_it(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "made", "examples")
    with pytest.raises(ArchiveError, match="has no conversion for its operations ParseExampleV2") as caught:
        archive.build(folder, tmp_path)
    assert "decode images and parse tf.Example messages before the request" in str(caught.value.hint)
    assert list(tmp_path.glob("*.mar")) == []
    (finding,) = checks.check(folder)
    assert finding.code.name == "MAR207"
    bytes_of_images = lay_down(tmp_path / "bytes", "digits_int8.tflite", IMAGES)
    with pytest.raises(ArchiveError, match="its input 'image' takes uint8, and handlers of images compute with floats"):
        archive.build(bytes_of_images, tmp_path)


def test_a_folder_is_weights_only_if_it_is_a_saved_model_and_the_handler_is_one_of_torchmars(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "made", "digits", "handler.py")
    (folder / "handler.py").write_text("def handle(rows, context): return rows\n")
    with pytest.raises(ArchiveError, match="is a folder, a SavedModel, and the handler handler"):
        archive.build(folder, tmp_path)
    (folder / "digits" / "saved_model.pb").unlink()
    with pytest.raises(RecipeError, match="there is no file"):
        archive.build(folder, tmp_path)


def test_new_begins_with_a_model_of_tensorflow(tmp_path: Path) -> None:
    created = scaffolding.create("made", tmp_path / "archives", weights=tensorflow_models.FOLDER / "digits")
    assert created.kind == "image-classifier"
    assert "digits/saved_model.pb" in created.files
    built = archive.build(created.folder, tmp_path / "store")
    assert sample_check.run_samples(built.path).problems == ()
    created = scaffolding.create("two", tmp_path / "archives", weights=tensorflow_models.FOLDER / "named")
    assert [one.name for one in created.inputs] == ["image", "temperature"]
    assert archive.build(created.folder, tmp_path / "store").path.is_file()
