"""Weights in another format answer as their source in a fresh process, or are not written."""

from __future__ import annotations

import importlib.util
import json
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
np = pytest.importorskip("numpy")

from tests.support.command import torchmar  # noqa: E402
from torchmar.errors import TorchmarError  # noqa: E402
from torchmar.weight_export import TARGETS, export_weights, session  # noqa: E402

# Not imported, which takes a second in each process that collects the tests.
pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("onnxscript", "openvino"))), reason="needs the extra export"
)

NET = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.places = nn.Embedding(20, 8), nn.Embedding(16, 8)
            self.head = nn.Linear(8, 3)

        def forward(self, ids, mask):
            states = self.words(ids) + self.places.weight[: ids.shape[1]]
            return self.head((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
"""
BRANCH = """
    from torch import nn

    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            if x.sum() > 0:
                return self.layer(x)
            return -x
"""
# The compilation takes many seconds: test_handlers_weights.py has its answers.
ALL = tuple(to for to in TARGETS if to != "aoti")
TORCHSCRIPT = ("torchscript-trace", "torchscript-script")
# What each format becomes; the others are rejected, since it is that already, or has no code of torch.
MATRIX = {
    "state.pt": ALL,
    "net.safetensors": ("torchscript-script",),  # read as state.pt
    "script.pt": ("export", "onnx", "openvino"),
    "net.pt2": (*TORCHSCRIPT, "onnx", "openvino"),
    "net.onnx": ("openvino",),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model of two inputs in all formats that are read, and an example."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("models")
    (folder / "exported_net.py").write_text(textwrap.dedent(NET))
    spec = importlib.util.spec_from_file_location("exported_net", folder / "exported_net.py")
    assert spec and spec.loader
    module = sys.modules["exported_net"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    net = module.Net().eval()
    example = (torch.randint(0, 20, (2, 4)), torch.ones(2, 4))
    np.savez(folder / "example.npz", ids=example[0].numpy(), mask=example[1].numpy())
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("seq", max=16)}
    torch.save(net.state_dict(), folder / "state.pt")
    save_file(net.state_dict(), folder / "net.safetensors")
    torch.jit.script(net).save(folder / "script.pt")
    program = torch.export.export(net, example, dynamic_shapes=(sizes, sizes))
    torch.export.save(program, folder / "net.pt2")
    axes = {name: {0: "batch", 1: "seq"} for name in ("ids", "mask")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            example,
            folder / "net.onnx",
            dynamo=False,  # the newer exporter takes seconds
            dynamic_axes=axes,
            input_names=list(axes),
        )
    return folder


def model_file(folder: Path, name: str) -> Path | None:
    return folder / "exported_net.py" if name in ("state.pt", "net.safetensors") else None


@pytest.mark.parametrize("name", MATRIX)
def test_each_format_becomes_the_others_with_the_same_answers(folder: Path, tmp_path: Path, name: str) -> None:
    file = model_file(folder, name)
    job: dict[str, Any] = {
        "folder": str(folder),
        "weights": name,
        "model_file": file and file.name,
        "options": {},
        "examples": [str(folder / "example.npz")],
        "calls": None,
        "dynamic": ["batch,seq"],
        "opset": None,
        "rewrite": False,
    }
    targets = MATRIX[name] if name == "net.safetensors" else ALL
    files = {to: tmp_path / f"{to}{TARGETS[to]}" for to in targets}
    attempts = session.attempt(name, job, files, tmp_path)
    works = {to for to, made in attempts.made.items() if "message" not in made}
    assert works == set(MATRIX[name]), attempts.made
    for to in MATRIX[name]:
        made = attempts.made[to]
        assert made["difference"] < 1e-5
        assert made["sizes"]["batch"] == [1, 2, 3, 4, 5]
        assert {1, 2, 3, 4, 5, 8} <= set(made["sizes"]["seq"])
    assert [tensor["shape"] for tensor in attempts.described["inputs"]] == [["batch", "seq"]] * 2


def test_the_command_writes_what_answers_the_same_and_shows_it(folder: Path, tmp_path: Path) -> None:
    arguments = ("--model-file", folder / "exported_net.py", "--example", folder / "example.npz")
    ran = torchmar(
        "export-weights", folder / "state.pt", *arguments, "--to", "export", "--dynamic", "batch,seq", cwd=tmp_path
    )
    assert "state.pt2" in ran.stdout
    assert "ids int64 [batch, seq], mask float32 [batch, seq]" in ran.stdout
    assert "seq 1 to 16" in ran.stdout
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt2"]


def test_a_trace_that_depends_on_its_example_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "branch.py").write_text(textwrap.dedent(BRANCH))
    torch.save({"layer.weight": torch.eye(3), "layer.bias": torch.zeros(3)}, tmp_path / "branch.pt")
    np.save(tmp_path / "x.npy", np.ones((2, 3), "float32"))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(TorchmarError) as raised:
        export_weights(
            tmp_path / "branch.pt",
            "torchscript-trace",
            model_file=tmp_path / "branch.py",
            examples=[tmp_path / "x.npy"],
            output=tmp_path / "traced.pt",
        )
    assert "Converting a tensor to a Python boolean at branch.py:10 (if x.sum() > 0:)" in raised.value.message
    assert "tried, and the answers are the same: --to torchscript-script" in raised.value.hint
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "onxx"}, "no format is called 'onxx'"),
        ({"model": "missing.pt"}, "there is no .*missing.pt"),
        ({"model": "."}, "is a folder with neither a recipe nor a SavedModel"),
        ({"model_file": "missing.py"}, "there is no model file"),
        ({"examples": ["missing.npy"]}, "there is no example"),
        ({"output": "."}, "is a folder"),
        ({"output": "nowhere/net.onnx"}, "there is no folder"),
        ({"output": "net.bin", "to": "openvino"}, "is a file .xml"),
        ({"to": "export", "opset": 20}, "--opset is for ONNX only"),
        ({"model": "net.onnx", "output": "net.onnx"}, "is the model itself"),
    ],
)
def test_mistakes_are_found_before_a_process_is_started(folder: Path, options: dict[str, Any], message: str) -> None:
    given = {"model": "state.pt", "to": "onnx", "model_file": "exported_net.py", "output": "out.onnx", **options}
    arguments: dict[str, Any] = {key: folder / value for key, value in given.items() if key in ("model", "output")}
    if given["model"].endswith(".onnx") or given["model"] == ".":
        given["model_file"] = None
    arguments["model_file"] = given["model_file"] and folder / given["model_file"]
    arguments["examples"] = [folder / name for name in given.get("examples", ())]
    with pytest.raises(TorchmarError, match=message):
        export_weights(to=given["to"], opset=given.get("opset"), **arguments)
    assert not (folder / "out.onnx").exists()


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        ({"examples": []}, "shapes of the inputs .ids, mask. are not known from the weights", "--example x.npy"),
        ({"model_file": None}, "it has tensors and no code", ""),
        ({"examples": ["one.npy"]}, "has 1 input, and the model takes ids, mask", "np.savez"),
        ({"examples": ["named.npz"]}, "has the input 'image', and the model takes ids, mask", ""),
        (
            {"examples": ["rows.json"]},
            "the model does not take the example .ids int64 .4., mask float32 .4..",
            "x.None.",
        ),
        ({"examples": ["photo.png"]}, "in no format of an example", "name the recipe or the archive"),
        ({"dynamic": ["width:batch"]}, "the model has no input 'width'", ""),
    ],
)
def test_mistakes_in_examples_have_a_remedy(
    folder: Path, tmp_path: Path, change: dict[str, Any], message: str, hint: str
) -> None:
    np.save(tmp_path / "one.npy", np.ones((2, 4), "int64"))
    np.savez(tmp_path / "named.npz", image=np.ones((2, 4)))
    (tmp_path / "rows.json").write_text(json.dumps({"ids": [1, 2, 3, 4], "mask": [1.0, 1.0, 1.0, 1.0]}))
    (tmp_path / "photo.png").write_bytes(b"\x89PNG")
    given: dict[str, Any] = {"examples": [folder / "example.npz"], "model_file": folder / "exported_net.py", **change}
    given["examples"] = [tmp_path / name if isinstance(name, str) else name for name in given["examples"]]
    with pytest.raises(TorchmarError, match=message) as raised:
        export_weights(folder / "state.pt", "onnx", output=tmp_path / "out.onnx", **given)
    assert hint.replace(".", "") in raised.value.hint.replace(".", "").replace("[", "").replace("]", "")
    assert not (tmp_path / "out.onnx").exists()
