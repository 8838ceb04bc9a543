"""Models of other frameworks are named; model files without a usable class are found."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from torchmar import archive, checks, manifest
from torchmar.checks import Composed, Finding, check_content
from torchmar.checks.imports import IMPORTED_BY_WORKER
from torchmar.errors import LoadError, WorkerError
from torchmar.worker import Worker


def keras() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name in ("metadata.json", "config.json", "model.weights.h5"):
            file.writestr(name, b"{}")
    return stream.getvalue()


def found(members: dict[str, bytes], handler: str = "image_classifier", **model: str) -> list[Finding]:
    document = {"modelName": "m", "modelVersion": "1", "handler": handler, **model}
    members = {"MAR-INF/MANIFEST.json": json.dumps({"model": document}).encode(), **members}
    return check_content(Composed(members))


OTHERS = {
    "Keras": ("model.keras", keras(), "a Keras model"),
    "HDF5": ("model.h5", b"\x89HDF\r\n\x1a\n" + bytes(100), "as Keras saves models"),
    "TensorFlow Lite": ("model.tflite", b"\x1c\0\0\0TFL3" + bytes(100), "a TensorFlow Lite model"),
    "SavedModel": ("saved_model.pb", b"\x08\x01\x12\x99\x02" + b"\xff" * 50, "the graph of a TensorFlow SavedModel"),
    "a frozen graph": ("graph.pb", b"\n\x10\n\x05input\x12\x0bPlaceholder" + b"\xff" * 50, "a TensorFlow graph"),
    "TensorRT": ("model.engine", b"ftrt" + bytes(100), "a TensorRT engine"),
    "TensorRT by its name": ("model.plan", b"\xe0\x91\xff" * 40, "a TensorRT engine"),
}


@pytest.mark.parametrize(("name", "content", "what"), OTHERS.values(), ids=OTHERS)
def test_a_model_of_another_framework_is_named_with_a_remedy(name: str, content: bytes, what: str) -> None:
    errors = [finding for finding in found({name: content}, serializedFile=name) if finding.severity == "error"]
    assert [what in error.cause for error in errors] == [True], errors
    assert "handler of your own" in errors[0].remedy
    own = found({name: content, "h.py": b"def handle(rows, context): return rows\n"}, "h.py", serializedFile=name)
    assert [finding for finding in own if finding.severity == "error"] == []


def test_a_folder_that_is_a_saved_model_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01")
    (finding,) = checks.check(tmp_path)
    assert "is a TensorFlow SavedModel" in finding.cause
    assert "name its folder as weights: in a recipe" in finding.remedy


CONFIG = b"_base_ = ['a.py']\nmodel = dict(type='FasterRCNN')\ndata = dict(samples_per_gpu=2)\n"
MODELS = {
    "a class": (
        "net.py",
        b"class Net(__import__('torch').nn.Linear):\n    def __init__(self, n=2): super().__init__(n, 2)\n",
        "",
    ),
    "a constructor with parameters": (
        "net.py",
        b"class Net(__import__('torch').nn.Linear):\n    def __init__(self, n): super().__init__(n, 2)\n",
        "its __init__ requires n",
    ),
    "a keyword without default": (
        "net.py",
        b"class Net(__import__('torch').nn.Linear):\n    def __init__(self, *, n): super().__init__(n, 2)\n",
        "its __init__ requires n",
    ),
    "a name with dots": (
        "my.net.py",
        b"class Net(__import__('torch').nn.Linear):\n    def __init__(self): super().__init__(2, 2)\n",
        "TorchServe imports my in place of my.net.py",
    ),
    "a configuration of OpenMMLab": ("config.py", CONFIG, "is a configuration in Python"),
}


@pytest.mark.process
@pytest.mark.parametrize(("name", "source", "cause"), MODELS.values(), ids=MODELS)
def test_a_model_file_has_an_error_exactly_where_torchserves_base_handler_fails(
    tmp_path: Path, name: str, source: bytes, cause: str
) -> None:
    import torch

    stream = io.BytesIO()
    torch.save(torch.nn.Linear(2, 2).state_dict(), stream)
    members = {name: source, "w.pt": stream.getvalue()}
    errors = [
        finding
        for finding in found(members, "base_handler", serializedFile="w.pt", modelFile=name)
        if finding.severity == "error"
    ]
    assert [cause in error.cause for error in errors] == [True] * bool(cause), errors
    model = manifest.Model(
        model_name="m", model_version="1", handler="base_handler", serialized_file="w.pt", model_file=name
    )
    packed = archive.pack({**members, manifest.PATH: manifest.Manifest(model=model).to_json()}, tmp_path / "m.mar").path
    try:
        with Worker(packed):
            loaded = True
    except (LoadError, WorkerError):
        loaded = False
    assert loaded is not bool(cause)


def test_a_configuration_of_openmmlab_is_no_error_with_the_handler_of_its_tools() -> None:
    members = {"config.py": CONFIG, "w.pth": b"", "mmdet_handler.py": b"def handle(rows, context): return rows\n"}
    errors = found(members, "mmdet_handler.py", serializedFile="w.pth", modelFile="config.py")
    assert [error.code.name for error in errors if error.severity == "error"] == []


@pytest.mark.process
@pytest.mark.parametrize(
    ("names", "error"),
    [(["json"], True), (["logging"], True), (["statistics", "sched"], False)],
    ids=["json", "logging", "others"],
)
def test_a_module_with_the_name_of_one_of_pythons_is_an_error_where_the_worker_imports_pythons_before_the_handler(
    tmp_path: Path, names: list[str], error: bool
) -> None:
    members = {f"{name}.py": b"mine = 1\n" for name in names}
    source = "".join(f"from {name} import mine\n" for name in names) + "def handle(rows, context): return rows\n"
    members["h.py"] = source.encode()
    severities = [finding.severity for finding in found(members, "h.py") if finding.code.name == "MAR304"]
    assert severities == ["error" if error else "warning"] * len(names)
    for file, content in members.items():
        (tmp_path / file).write_bytes(content)
    # As TorchServe starts a worker: the archive's folder is on the path before Python imports anything.
    code = (
        "import sys, ts.model_service_worker\nfrom ts.model_loader import TsModelLoader\n"
        "print(*{name.partition('.')[0] for name in sys.modules})\n"
        "TsModelLoader().load('m', sys.argv[1], 'h.py', None, 1, None)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (ran.returncode != 0) is error, ran.stderr
    assert error or set(ran.stdout.split()) >= IMPORTED_BY_WORKER
