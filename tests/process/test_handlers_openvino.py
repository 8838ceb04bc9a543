"""Archives with models of OpenVINO: packed with their weights, checked, answered and explained in a worker."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from tests.support import tensorflow_models
from tests.support.paths import ROOT
from torchmar import archive, checks, sample_check, scaffolding
from torchmar.exchange import Request
from torchmar.worker import Worker
from torchmar_handlers.weights import openvino_ir

KNOWN = tensorflow_models.answers()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with ``named.xml`` and ``named.bin``, as users have them: of a model that TensorFlow saved."""
    folder = tmp_path_factory.mktemp("openvino")
    openvino = openvino_ir.imported()
    model = openvino_ir.shared_core().read_model(tensorflow_models.FOLDER / "named")
    openvino.save_model(model, folder / "named.xml", compress_to_fp16=False)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """Return the folder of a recipe of this model."""
    project = tmp_path / "named"
    project.mkdir()
    for file in saved.iterdir():
        shutil.copy(file, project)
    (project / "requirements.txt").write_text("openvino==2026.4.1\n")
    return project


def recipe(folder: Path, **keys: Any) -> Path:
    document = {"name": "named", "version": "1.0", "handler": "torchmar_handlers.tensors", "weights": "named.xml"}
    document |= {"requirements": "requirements.txt", "config": {"responseTimeout": 60}, **keys}
    (folder / "archive.yaml").write_text(json.dumps(document))
    return folder


def rows() -> list[dict[str, Any]]:
    return [
        {"image": image.tolist(), "temperature": temperature.tolist()}
        for image, temperature in zip(KNOWN["images"], KNOWN["temperature"], strict=True)
    ]


def test_the_file_of_the_weights_is_packed_and_the_answers_are_those_of_the_model(folder: Path, tmp_path: Path) -> None:
    sample = {"json": rows()[0], "expect": {"digit": int(KNOWN["digit"][0])}}
    built = archive.build(recipe(folder, samples=[sample]), tmp_path)
    with archive.Archive(built.path) as opened:
        assert {"named.xml", "named.bin"} <= {member.name for member in opened.members}
    assert checks.check(built.path) == []
    assert sample_check.run_samples(built.path).problems == ()
    with Worker(built.path) as worker:
        got = worker.predict_batch([Request(json.dumps(row).encode(), "application/json") for row in rows()])
        (wrong,) = worker.predict_batch([Request(b'{"image": [[1]], "temperature": [1]}', "application/json")])
    assert [one.status for one in got] == [200] * len(got)
    scores = [json.loads(one.body)["scores"] for one in got]
    np.testing.assert_allclose(scores, KNOWN["scores"], rtol=1e-4, atol=1e-4)
    assert [json.loads(one.body)["digit"] for one in got] == KNOWN["digit"].tolist()
    assert wrong.status == 400
    assert b"8, 8, 1" in wrong.body


def test_an_archive_without_the_file_of_the_weights_has_a_finding(folder: Path) -> None:
    (folder / "named.bin").unlink()
    (finding,) = checks.check(recipe(folder))
    assert (finding.code.name, finding.severity) == ("MAR406", "error")
    assert "named.xml keeps tensors in named.bin, which is not in the archive" in finding.cause


def test_a_server_needs_openvino_unless_the_archive_lists_it(folder: Path) -> None:
    (finding,) = checks.check(recipe(folder, requirements=None))
    assert (finding.code.name, finding.severity) == ("MAR408", "warning")
    assert checks.check(recipe(folder, requirements=None, handler="handler.py")) != []
    (folder / "handler.py").write_text("def handle(rows, context): return rows\n")
    assert checks.check(recipe(folder, requirements=None, handler="handler.py")) == []


def test_an_image_classifier_answers_and_is_explained_without_gradients(tmp_path: Path) -> None:
    from PIL import Image

    project = tmp_path / "project"
    project.mkdir()
    openvino = openvino_ir.imported()
    ops = openvino.opset13
    image = ops.parameter([-1, 1, 8, 8], openvino.Type.f32, "image")
    flat = ops.reshape(image, ops.constant([0, 64]), special_zero=True)
    half = np.zeros((64, 2), np.float32)
    half[:32, 0] = half[32:, 1] = 1
    openvino.save_model(
        openvino.Model([ops.matmul(flat, ops.constant(half), False, False)], [image]), project / "h.xml"
    )
    options = {"mode": "L", "resize": [8, 8], "mean": [0.0], "std": [1.0]}
    keys = {"weights": "h.xml", "labels": ["top", "bottom"], "config": {"handler": options, "responseTimeout": 60}}
    (project / "requirements.txt").write_text("openvino==2026.4.1\n")
    built = archive.build(recipe(project, handler="torchmar_handlers.image_classifier", **keys), tmp_path)
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:4] = 255
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    with Worker(built.path) as worker:
        (answer,) = worker.predict_batch([Request(stream.getvalue())])
        (explained,) = worker.predict_batch([Request(stream.getvalue(), explain=True)])
    assert next(iter(json.loads(answer.body))) == "top"
    assert explained.status == 200, explained.body
    document = json.loads(explained.body)
    attributions = np.asarray(document["attributions"]).reshape(8, 8)
    assert attributions[:4].sum() > abs(attributions[4:]).sum()


def test_new_begins_with_a_model_of_openvino(saved: Path, tmp_path: Path) -> None:
    created = scaffolding.create("made", tmp_path / "archives", weights=saved / "named.xml")
    assert {"named.xml", "named.bin", "archive.yaml"} <= set(created.files)
    assert [(one.name, one.dtype, one.shape) for one in created.inputs] == [
        ("image", "float32", (8, 8, 1)),
        ("temperature", "float32", (1,)),
    ]


def test_a_worker_imports_openvino_only_for_its_models() -> None:
    code = (
        "import sys\nfrom importlib.util import find_spec\n"
        "from torchmar.worker.process import optional_imports\noptional_imports.leave_out()\n"
        "import ts.torch_handler.base_handler\n"
        "print(sorted(name for name in sys.modules if name.partition('.')[0] == 'openvino'))\n"
        "import openvino\nprint(sys.modules['openvino_telemetry'], bool(find_spec('openvino.torch')))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout.splitlines() == ["[]", "None True"], ran.stderr
