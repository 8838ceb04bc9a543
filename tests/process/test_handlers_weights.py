"""torchmar_handlers.weights loads every format to a module that answers as the model did that was saved."""

from __future__ import annotations

import importlib.util
import io
import itertools
import json
import logging
import os
import pickle
import platform
import re
import signal
import subprocess
import sys
import textwrap
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
np = pytest.importorskip("numpy")
onnx_package = pytest.importorskip("onnx")

from torchmar.weight_export import session  # noqa: E402
from torchmar_handlers import weights  # noqa: E402
from torchmar_handlers.weights import LoadError, machine, onnx_runtime, openvino_ir  # noqa: E402

CPU = torch.device("cpu")

NET = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)
            self.norm = nn.BatchNorm2d(8)
            self.head = nn.Linear(8, 4)

        def forward(self, image):
            return self.head(torch.relu(self.norm(self.conv(image))).mean((2, 3)))
"""
POOL = """
    from torch import nn

    class Pool(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 4)

        def forward(self, image):
            return {"scores": self.head(image.mean((2, 3))), "first": image[:, 0, 0]}
"""
PROGRAMS = ("net.pt", "frozen.ts", "net.pt2", "old.pt2", "net.onnx", "net.xml")  # have their code in them
TENSORS = ("net.safetensors", "model.safetensors.index.json", "state.pt", "legacy.pth")  # need a model file
MODEL_FILE = "test_handlers_weights_net.py"  # of these tensors; Python caches it by this name
_count = itertools.count()


def images(rows: int) -> Any:
    return torch.randn(rows, 3, 8, 8, generator=torch.Generator().manual_seed(rows))


def module(folder: Path, source: str) -> str:
    """Write a model file; Python caches modules by name, so each has one of its own."""
    name = f"model_{next(_count)}.py"
    (folder / name).write_text(textwrap.dedent(source))
    return name


def make(folder: Path, source: str) -> Any:
    """Return an instance of the class in ``source``, with the same weights every time."""
    file = folder / module(folder, source)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec and spec.loader
    model_module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(model_module)
    classes = [value for value in vars(model_module).values() if isinstance(value, type)]
    torch.manual_seed(0)
    return classes[0]().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model in every format, fixed.* for batches of two only."""
    from safetensors.torch import save_file
    from torch._export.serde.serialize import serialize

    folder = tmp_path_factory.mktemp("saved")
    net = make(folder, NET)
    net.norm.running_mean.normal_()
    state = net.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.script(net)
        script.save(str(folder / "net.pt"))
        torch.jit.freeze(script).save(str(folder / "frozen.ts"))
        torch.save(state, folder / "state.pt")
        torch.save(state, folder / "legacy.pth", _use_new_zipfile_serialization=False)
        save_file(state, folder / "net.safetensors")
        heads = {name: tensor for name, tensor in state.items() if name.startswith("head")}
        save_file(heads, folder / "model-1.safetensors")
        save_file({name: state[name] for name in state if name not in heads}, folder / "model-2.safetensors")
        shards = {name: f"model-{1 if name in heads else 2}.safetensors" for name in state}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
        batch = {0: torch.export.Dim("batch")}
        program = torch.export.export(net, (images(2),), dynamic_shapes=(batch,))
        torch.export.save(program, folder / "net.pt2")
        torch.export.save(torch.export.export(net, (images(2),)), folder / "fixed.pt2")
        old = serialize(program)  # as torch.export.save wrote it up to torch 2.6
        with zipfile.ZipFile(folder / "old.pt2", "w") as archive:
            archive.writestr("version", "8.8")
            archive.writestr("serialized_exported_program.json", old.exported_program)
            for part in ("state_dict", "constants", "example_inputs"):
                archive.writestr(f"serialized_{part}.pt", getattr(old, part))
        torch.onnx.export(
            net,
            (images(2),),
            folder / "net.onnx",
            dynamo=True,
            dynamic_shapes=(batch,),
            input_names=["image"],
            output_names=["scores"],
            external_data=False,
            verbose=False,
        )
    exported = onnx_package.load(folder / "net.onnx")
    for port in (*exported.graph.input, *exported.graph.output):
        port.type.tensor_type.shape.dim[0].dim_value = 2
    del exported.graph.value_info[:]  # of batches of any size
    external = {"save_as_external_data": True, "location": "fixed.onnx.data", "size_threshold": 256}
    onnx_package.save(exported, folder / "fixed.onnx", **external)
    openvino = openvino_ir.imported()
    for name in ("net", "fixed"):
        model = openvino_ir.shared_core().read_model(folder / f"{name}.onnx")
        openvino.save_model(model, folder / f"{name}.xml", compress_to_fp16=False)
    (folder / MODEL_FILE).write_text(textwrap.dedent(NET))
    return folder


@pytest.fixture
def load(saved: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def load(
        name: str | None,
        options: Mapping[str, Any] | None = None,
        *,
        folder: Path = saved,
        model_file: str | None = None,
        device: Any = CPU,
        pt2: Any = None,
    ) -> Any:
        monkeypatch.syspath_prepend(folder)
        model_file = MODEL_FILE if model_file is None and name in TENSORS else model_file
        return weights.load(folder, name, model_file, device, options or {}, threads=1, pt2=pt2)

    return load


@pytest.fixture(scope="module")
def net(saved: Path) -> Any:
    model = make(saved, NET)
    model.load_state_dict(torch.load(saved / "state.pt"))
    return model


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("name", PROGRAMS + TENSORS)
def test_every_format_gives_the_same_answers(load: Callable[..., Any], net: Any, name: str, rows: int) -> None:
    model = load(name)
    with torch.inference_mode():
        answer = model(images(rows))
        named = model(**{weights.input_names(model)[0]: images(rows)})
    torch.testing.assert_close(answer, net(images(rows)), atol=1e-5, rtol=0)
    torch.testing.assert_close(named, answer)
    assert isinstance(model, torch.nn.Module)
    assert not model.training and not model.eval().training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert weights.input_names(model) == ("image",)
    assert weights.output_names(model) == (("scores",) if name.endswith((".onnx", ".xml")) else ())
    assert weights.fixed_rows(model) is None
    assert weights.dtype(model) == torch.float32


@pytest.mark.parametrize("name", ["fixed.pt2", "fixed.onnx", "fixed.xml"])
def test_the_error_of_a_fixed_batch_size_names_it(load: Callable[..., Any], net: Any, name: str) -> None:
    model = load(name)
    assert weights.fixed_rows(model) == 2
    assert weights.inputs(model) == (weights.Input("image", torch.float32, (2, 3, 8, 8)),)
    torch.testing.assert_close(model(images(2)), net(images(2)), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"'image' has the shape \(3, 3, 8, 8\), and the model takes \(2, 3, 8, 8\)"):
        model(images(3))


def test_the_content_counts_and_not_the_suffix(load: Callable[..., Any], saved: Path, tmp_path: Path, net: Any) -> None:
    model_file = module(tmp_path, NET)
    for name in (*PROGRAMS, "net.safetensors", "state.pt", "legacy.pth"):
        (tmp_path / "weights.any").write_bytes((saved / name).read_bytes())
        (tmp_path / "weights.bin").write_bytes((saved / "net.bin").read_bytes())  # of OpenVINO
        model = load("weights.any", folder=tmp_path, model_file=model_file if name in TENSORS else None)
        torch.testing.assert_close(model(images(2)), net(images(2)), atol=1e-5, rtol=0)


def test_a_model_file_alone_is_a_model(load: Callable[..., Any], tmp_path: Path) -> None:
    source = """
        import torch

        class Twice(torch.nn.Module):
            def forward(self, number, times: int = 2):
                return [number * times]
    """
    model = load(None, folder=tmp_path, model_file=module(tmp_path, source))
    assert model(torch.ones(1)) == [torch.tensor([2.0])]
    assert weights.input_names(model) == ("number", "times")


# Exported programs that take and return more than one tensor

SEVERAL = """
    import torch

    class Several(torch.nn.Module):
        def forward(self, one, other, *, mask):
            return {"sum": one + other, "masked": [one * mask]}
"""


def test_an_exported_program_takes_inputs_by_position_or_by_name(load: Callable[..., Any], tmp_path: Path) -> None:
    batch = {0: torch.export.Dim("batch")}
    given = [torch.rand(2, 3) for _ in range(3)]  # one tensor given thrice would be exported as one input
    shapes = {"one": batch, "other": batch, "mask": batch}
    program = torch.export.export(
        make(tmp_path, SEVERAL), (given[0], given[1]), {"mask": given[2]}, dynamic_shapes=shapes
    )
    torch.export.save(program, tmp_path / "several.pt2")
    model = load("several.pt2", folder=tmp_path)
    assert weights.input_names(model) == ("one", "other", "mask")
    assert weights.output_names(model) == ("sum", "masked")
    one, other, mask = (torch.full((4, 3), number) for number in (1.0, 2.0, 3.0))
    for args, kwargs in (
        ((one, other, mask), {}),
        ((one,), {"mask": mask, "other": other}),
        ((), {"mask": mask, "other": other, "one": one}),
    ):
        answer = model(*args, **kwargs)
        assert answer["sum"].tolist() == (one + other).tolist()
        assert answer["masked"][0].tolist() == mask.tolist()
    for args, kwargs, message in (
        ((one, other), {}, "2 inputs were given; the model takes 3: one, other, mask"),
        ((one, other, mask, mask), {}, "4 inputs were given"),
        ((one, other), {"masks": mask}, "'masks' is unknown"),
        ((one, other, mask), {"one": one}, "'one' is given twice"),
    ):
        with pytest.raises(TypeError, match=message):
            model(*args, **kwargs)


LISTED = """
    import torch

    class Listed(torch.nn.Module):
        def forward(self, pair):
            return pair[0] + 2 * pair[1]
"""

COUNTING = """
    import torch

    class Counting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, numbers):
            self.calls += 1
            return numbers + self.calls
"""

BRANCHING = """
    import torch

    class Branching(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))

        def forward(self, numbers):
            return torch.cond(numbers.sum() > 0, lambda x: self.layers[0](x), lambda x: x - 1, (numbers,))
"""


@pytest.mark.parametrize(("source", "arguments"), [(LISTED, [[1.0, 2.0]]), (COUNTING, [1.0]), (BRANCHING, [1.0])])
def test_programs_of_all_kinds_give_the_same_answers_as_their_modules(
    load: Callable[..., Any], tmp_path: Path, source: str, arguments: list[Any]
) -> None:
    example = [
        [torch.full((2, 3), number) for number in value] if isinstance(value, list) else torch.full((2, 3), value)
        for value in arguments
    ]
    module = make(tmp_path, source)
    torch.export.save(torch.export.export(module, tuple(example)), tmp_path / "program.pt2")
    model = load("program.pt2", folder=tmp_path)
    for _ in range(3):
        torch.testing.assert_close(model(*example), module(*example))
    torch.testing.assert_close(
        dict(model.named_buffers()).get("module.calls"), dict(module.named_buffers()).get("calls")
    )


def test_the_sizes_for_which_a_program_was_exported_are_enforced(load: Callable[..., Any], tmp_path: Path) -> None:
    batch = torch.export.Dim("batch", min=2, max=4)
    given = [torch.rand(2, 3) for _ in range(3)]
    program = torch.export.export(
        make(tmp_path, SEVERAL),
        (given[0], given[1]),
        {"mask": given[2]},
        dynamic_shapes={name: {0: batch} for name in ("one", "other", "mask")},
    )
    torch.export.save(program, tmp_path / "bounded.pt2")
    model = load("bounded.pt2", folder=tmp_path)
    assert model(*[torch.ones(4, 3)] * 3)["sum"].tolist() == [[2.0] * 3] * 4
    with pytest.raises((AssertionError, RuntimeError), match=r"<= 4"):
        model(*[torch.ones(5, 3)] * 3)
    with pytest.raises((AssertionError, RuntimeError), match=r"one|other"):
        model(torch.ones(3, 3), torch.ones(4, 3), torch.ones(4, 3))


def test_a_program_exported_in_training_mode_is_reported(
    load: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    program = torch.export.export(make(tmp_path, NET).train(), (images(2),))
    torch.export.save(program, tmp_path / "trained.pt2")
    load("trained.pt2", folder=tmp_path)
    assert "trained.pt2 was exported in training mode" in caplog.text
    caplog.clear()
    load("net.pt2")
    assert not caplog.text


# ONNX


@pytest.fixture
def onnx(tmp_path: Path) -> Callable[..., str]:
    """Return a function that writes an ONNX model: nodes as ``op(inputs)output``, inputs and outputs by type."""
    from onnx import TensorProto, helper, save

    def onnx(nodes: list[str], inputs: Mapping[str, str], outputs: Mapping[str, str]) -> str:
        def values(types: Mapping[str, str]) -> list[Any]:
            return [
                helper.make_tensor_value_info(name, getattr(TensorProto, kind), ["rows", 2])
                for name, kind in types.items()
            ]

        parts = [re.fullmatch(r"(\w+)\((.*)\)(\w+)", node) for node in nodes]
        node_list = [helper.make_node(part[1], part[2].split(","), [part[3]]) for part in parts if part]
        graph = helper.make_graph(node_list, "graph", values(inputs), values(outputs))
        opsets = [helper.make_opsetid("", 18)]
        save(helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "model.onnx")
        return "model.onnx"

    return onnx


@pytest.mark.parametrize("bound", [False, True])
def test_onnx_outputs_are_tensors_by_order(
    load: Callable[..., Any], onnx: Callable[..., str], tmp_path: Path, bound: bool
) -> None:
    name = onnx(["Add(a,b)sum", "Less(a,b)less"], {"a": "FLOAT", "b": "FLOAT"}, {"sum": "FLOAT", "less": "BOOL"})
    model = load(name, folder=tmp_path)
    # What runs on a GPU, on the memory of the CPU.
    model = onnx_runtime.Onnx(model._session, model._inputs, CPU, bound=bound)
    assert weights.output_names(model) == ("sum", "less")
    answers = [model(torch.full((3, 2), float(number)), b=torch.ones(2, 3).T) for number in range(50)]
    for number, (total, less) in enumerate(answers):
        assert total.tolist() == [[number + 1.0] * 2] * 3
        assert less.tolist() == [[number < 1] * 2] * 3
        assert less.dtype == torch.bool


@pytest.mark.parametrize(
    ("kind", "given", "cast"),
    [
        ("FLOAT", torch.float64, True),
        ("FLOAT", torch.float16, True),
        ("FLOAT", torch.int64, True),
        ("FLOAT16", torch.float32, True),
        ("INT64", torch.int32, True),
        ("INT32", torch.int64, True),
        ("INT64", torch.uint8, True),
        ("INT64", torch.bool, True),
        ("INT64", torch.float32, False),
        ("BOOL", torch.int64, False),
    ],
)
def test_onnx_inputs_are_cast_where_nothing_is_lost(
    load: Callable[..., Any], onnx: Callable[..., str], tmp_path: Path, kind: str, given: Any, cast: bool
) -> None:
    model = load(onnx(["Identity(x)y"], {"x": kind}, {"y": kind}), folder=tmp_path)
    if cast:
        assert model(torch.ones(1, 2, dtype=given)).tolist() == [[1, 1]]
    else:
        with pytest.raises(TypeError, match=f"input 'x' takes {kind.lower()}.*, which {given}".replace("torch.", "")):
            model(torch.ones(1, 2, dtype=given))


def test_whole_numbers_that_do_not_fit_are_rejected(
    load: Callable[..., Any], onnx: Callable[..., str], tmp_path: Path
) -> None:
    model = load(onnx(["Identity(x)y"], {"x": "INT32"}, {"y": "INT32"}), folder=tmp_path)
    with pytest.raises(TypeError, match="int32, which int64 cannot"):
        model(torch.tensor([[1, 2**40]]))


def test_onnx_answers_share_their_memory_with_onnx_runtime(load: Callable[..., Any]) -> None:
    model = load("net.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer = model(images(2).requires_grad_())
    assert not answer.requires_grad
    answer += 1  # it is the caller's own
    assert not torch.equal(answer, model(images(2)))


def test_onnx_runtime_has_the_configured_threads(load: Callable[..., Any]) -> None:
    options = load("net.onnx")._session.get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.spin_duration_us") == "50"
    assert load("net.onnx", {"providers": ["CPUExecutionProvider"]})._session.get_providers() == [
        "CPUExecutionProvider"
    ]


def test_onnx_without_its_external_tensors_is_rejected(load: Callable[..., Any], saved: Path, tmp_path: Path) -> None:
    (tmp_path / "fixed.onnx").write_bytes((saved / "fixed.onnx").read_bytes())
    with pytest.raises(LoadError, match=r"lacks a file of its tensors.*fixed\.onnx\.data"):
        load("fixed.onnx", folder=tmp_path)


# OpenVINO


@pytest.fixture(scope="module")
def engines(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Return the home folder of a new process that loads models of ONNX Runtime and OpenVINO, and its output."""
    code = """
import pathlib, signal, sys, torch
from torchmar_handlers.weights import onnx_runtime, openvino_ir
folder, device = pathlib.Path(sys.argv[1]), torch.device("cpu")
onnx_runtime.load(folder / "net.onnx", device, 1)
assert openvino_ir.imported().Core().available_devices
from openvino import convert_model
print([name for name in sys.modules if name.startswith("openvino_telemetry") and sys.modules[name]])
models = [openvino_ir.load(folder / "net.xml", device, 1) for _ in range(2)]
del models[0], models[0]  # in the order in which they were loaded
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""
    home = tmp_path_factory.mktemp("home")
    hidden = ("ORT_DISABLE_TELEMETRY", "CI", "XDG_CACHE_HOME")  # in CI ONNX Runtime sends nothing anyway
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, saved]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return home, ran.stdout.splitlines()


def test_onnx_runtime_sends_no_statistics(engines: tuple[Path, list[str]]) -> None:
    # With its statistics on, it makes a device id and a queue of events below the cache when it is loaded.
    assert not list(engines[0].rglob("*onnxruntime*"))


@pytest.fixture
def ir(tmp_path: Path) -> Callable[..., str]:
    """Return a function that saves a model of OpenVINO: of its outputs and parameters."""

    def ir(outputs: Any, parameters: Any) -> str:
        openvino = openvino_ir.imported()
        openvino.save_model(openvino.Model(outputs, parameters, "made"), tmp_path / "model.xml", compress_to_fp16=False)
        return "model.xml"

    return ir


def test_openvino_is_imported_without_the_package_that_sends_statistics(engines: tuple[Path, list[str]]) -> None:
    assert engines[1][0] == "[]"


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="signals are those of POSIX")
def test_a_process_outlives_a_signal_after_its_models_of_openvino(engines: tuple[Path, list[str]]) -> None:
    assert engines[1][1:] == ["interrupted"]


def test_openvino_computes_in_float32_unless_the_option_dtype_says_otherwise(load: Callable[..., Any]) -> None:
    precisions = {
        dtype: str(load("net.xml", options)._request.get_compiled_model().get_property("INFERENCE_PRECISION_HINT"))
        for dtype, options in {"": {}, "float32": {"dtype": "float32"}, "bfloat16": {"dtype": "bfloat16"}}.items()
    }
    assert "float32" in precisions[""] and "float32" in precisions["float32"]
    assert "bfloat16" in precisions["bfloat16"]
    compiled = load("net.xml")._request.get_compiled_model()
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert compiled.get_property("ENABLE_CPU_PINNING") is False


def test_openvino_has_names_types_and_dimensions_of_any_size(
    load: Callable[..., Any], ir: Callable[..., str], tmp_path: Path
) -> None:
    openvino = openvino_ir.imported()
    ops = openvino.opset13
    ids, scale = ops.parameter([-1, 3], openvino.Type.i64, "ids"), ops.parameter([-1, 1], openvino.Type.f32, "scale")
    ids.output(0).set_names({"ids"})
    scale.output(0).set_names({"scale"})
    scaled = ops.multiply(ops.convert(ids, "f32"), scale)
    scaled.output(0).set_names({"scaled", "scaled_with_a_longer_name"})
    short = ops.convert(scale, "bf16")
    short.output(0).set_names({"short"})
    model = load(ir([scaled, ids, short], [ids, scale]), folder=tmp_path)
    assert weights.inputs(model) == (
        weights.Input("ids", torch.int64, (None, 3)),
        weights.Input("scale", torch.float32, (None, 1)),
    )
    assert weights.output_names(model)[0] == "scaled"
    assert weights.output_names(model)[2] == "short"
    given, factor = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[0.5], [2.0]])
    first, same, short = model(scale=factor, ids=given)
    torch.testing.assert_close(first, given * factor)
    assert torch.equal(same, given)
    torch.testing.assert_close(short, factor)  # bfloat16, which NumPy does not have
    kept = first.clone()
    model(given * 2, factor)
    assert torch.equal(first, kept), "an answer is not overwritten by the next"


def test_openvino_does_not_get_numbers_that_it_would_cut(
    load: Callable[..., Any], ir: Callable[..., str], tmp_path: Path
) -> None:
    openvino = openvino_ir.imported()
    ops = openvino.opset13
    wide = ops.parameter([-1], openvino.Type.i64, "wide")
    model = load(ir([ops.add(wide, ops.constant([1], openvino.Type.i64))], [wide]), folder=tmp_path)
    assert model(torch.tensor([2**31 - 2, -(2**31)])).tolist() == [2**31 - 1, -(2**31) + 1]
    with pytest.raises(ValueError, match="a number beyond int32, which OpenVINO computes with"):
        model(torch.tensor([2**40 + 5]))
    assert model(torch.empty(0, dtype=torch.int64)).tolist() == []


def test_a_model_of_openvino_with_a_state_begins_every_call_anew(
    load: Callable[..., Any], ir: Callable[..., str], tmp_path: Path
) -> None:
    openvino = openvino_ir.imported()
    ops = openvino.opset13
    step = ops.parameter([1], openvino.Type.f32, "step")
    before = ops.read_value(ops.constant([0.0], openvino.Type.f32), "total")
    total = ops.add(before, step)
    sink = ops.assign(total, "total")
    model = openvino.Model([ops.result(total)], [sink], [step], "made")
    openvino.save_model(model, tmp_path / "model.xml")
    loaded = load("model.xml", folder=tmp_path)
    assert [loaded(torch.ones(1)).item() for _ in range(3)] == [1.0, 1.0, 1.0]


def test_inputs_that_are_no_numbers_are_rejected(
    load: Callable[..., Any], ir: Callable[..., str], tmp_path: Path
) -> None:
    openvino = openvino_ir.imported()
    text = openvino.opset13.parameter([-1], openvino.Type.string, "text")
    with pytest.raises(LoadError, match=r"model.xml: the input '\w+' is string; a handler gives tensors of numbers"):
        load(ir([text], [text]), folder=tmp_path)


# AOTInductor, which takes many seconds to compile


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, session.Attempts]:
    """A model for batches and images of any size, as the command ``export-weights`` compiles it."""
    folder = tmp_path_factory.mktemp("compiled")
    torch.save(make(folder, POOL).state_dict(), folder / "state.pt")
    (folder / "pool.py").write_text(textwrap.dedent(POOL))
    np.save(folder / "images.npy", images(2).numpy())
    job = {
        "folder": str(folder),
        "weights": "state.pt",
        "model_file": "pool.py",
        "options": {},
        "examples": [str(folder / "images.npy")],
        "calls": None,
        "dynamic": ["batch,_,height,_"],
        "opset": None,
        "rewrite": False,
    }
    return folder, session.attempt("state.pt", job, {"aoti": folder / "any.pt2"}, folder)


def test_weights_are_compiled_for_all_sizes_that_the_model_takes(exported: tuple[Path, session.Attempts]) -> None:
    made = exported[1].made["aoti"]
    assert made["difference"] < 1e-5
    assert made["sizes"]["batch"] == [1, 2, 3, 4, 5]
    assert {1, 2, 3, 5, 8} <= set(made["sizes"]["height"])


@pytest.fixture(scope="module")
def compiled(exported: tuple[Path, session.Attempts]) -> Path:
    folder, _ = exported
    with zipfile.ZipFile(folder / "any.pt2") as archive, zipfile.ZipFile(folder / "two.pt2", "w") as two:
        library = next(name for name in archive.namelist() if name.endswith(".so"))
        (folder / "pool.so").write_bytes(archive.read(library))
        # What is compiled for two rows compares its first dimension as this does the others.
        fixed = 0
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith(".cpp"):
                content, count = re.subn(rb"\((\w+_size\[0\]) < 2\)", rb"(2 != \1)", content)
                fixed += count
            two.writestr(name, content)
        assert fixed == 1
    return folder


def test_aotinductor_answers_like_the_model(load: Callable[..., Any], compiled: Path) -> None:
    pool = make(compiled, POOL)
    export_config = {"export": {"aot_compile": True}}
    for name, pt2 in (("any.pt2", None), ("pool.so", export_config)):
        model = load(name, folder=compiled, pt2=pt2)
        assert not weights.differentiable(model)
        assert weights.fixed_rows(model) is None
        assert weights.input_names(model) == ()
        for rows in (1, 5, 40):
            expected = pool(images(rows))
            with torch.inference_mode():
                answer = model(images(rows))
                # Compiled code reads the memory as it was laid out when it was compiled.
                turned = model(images(rows).to(memory_format=torch.channels_last))
            for key in ("scores", "first"):
                torch.testing.assert_close(answer[key], expected[key], atol=1e-5, rtol=0)
                torch.testing.assert_close(turned[key], expected[key], atol=1e-5, rtol=0)
    with pytest.raises(LoadError, match=r"pool.so is a compiled library: set `pt2: \{export"):
        load("pool.so", folder=compiled)


def test_aotinductor_rejects_inputs_that_it_would_misread(load: Callable[..., Any], compiled: Path) -> None:
    model = load("any.pt2", folder=compiled)
    assert weights.output_names(model) == ("scores", "first")
    for wrong_input in (torch.ones(2, 3, 9, 9), torch.ones(3, 8, 8)):
        with pytest.raises(ValueError, match=r"input 0 has the shape .*\(\*, 3, \*, 8\)"):
            model(wrong_input)
    torch.testing.assert_close(model(images(3).double()), model(images(3)))
    model = load("two.pt2", folder=compiled)
    assert weights.fixed_rows(model) == 2
    with pytest.raises(ValueError, match=r"takes \(2, 3, \*, 8\)"):
        model(images(5))


def test_aotinductor_loads_without_a_compiler_and_names_missing_instructions(
    load: Callable[..., Any], compiled: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Torch finds the instructions of a processor by a dozen runs of a compiler, which servers need not have."""
    from torch._inductor.cpu_vec_isa import valid_vec_isa_list

    before = valid_vec_isa_list.cache_info()
    load("any.pt2", folder=compiled)
    assert valid_vec_isa_list.cache_info() == before
    assert not caplog.records
    monkeypatch.setenv(machine.MASK, "avx2 avx512f")
    load("any.pt2", folder=compiled)
    if platform.machine() == "x86_64":
        assert "and this processor has no avx" in caplog.text


@pytest.mark.skipif("amx_tile" not in machine.cpu_flags(), reason="this processor has no AMX")
def test_compiled_code_may_use_amx(compiled: Path) -> None:
    """The system ends a process that uses AMX without having asked for it; other libraries of this process have."""
    code = """
import ctypes, pathlib, sys, torch
from torchmar_handlers.weights import aotinductor
allowed = ctypes.c_uint64()
aotinductor.load(pathlib.Path(sys.argv[1]), torch.device("cpu"))
get_permission, arch_prctl, tile_data = 0x1022, 158, 1 << 18
assert ctypes.CDLL(None).syscall(arch_prctl, get_permission, ctypes.byref(allowed)) == 0
print(bool(allowed.value & tile_data))
"""
    command = [sys.executable, "-c", code, str(compiled / "any.pt2")]
    assert subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout == "True\n"


def edited(source: Path, target: Path, pattern: str, old: str, new: str) -> None:
    """Copy a zip file, with ``old`` replaced in the members whose names match."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as copy:
        for entry in archive.infolist():
            content = archive.read(entry)
            if re.search(pattern, entry.filename):
                assert old.encode() in content
                content = content.replace(old.encode(), new.encode())
            copy.writestr(entry.filename, content)


def test_a_program_for_another_device_is_rejected(
    load: Callable[..., Any], saved: Path, compiled: Path, tmp_path: Path
) -> None:
    edited(compiled / "any.pt2", tmp_path / "aoti.pt2", "_metadata", '"cpu"', '"cuda"')
    with pytest.raises(LoadError, match=r"compiled for cuda, and this worker runs on cpu.*deviceType: gpu"):
        load("aoti.pt2", folder=tmp_path)
    edited(saved / "net.pt2", tmp_path / "net.pt2", "models/", '"type": "cpu"', '"type": "cuda"')
    with pytest.raises(LoadError, match=r"net\.pt2 was exported on cuda, and this worker runs on the CPU"):
        load("net.pt2", folder=tmp_path)


def test_a_program_of_a_newer_torch_is_rejected(load: Callable[..., Any], saved: Path, tmp_path: Path) -> None:
    edited(saved / "net.pt2", tmp_path / "half.pt2", "models/", '"major": 8', '"major": 99')
    edited(tmp_path / "half.pt2", tmp_path / "net.pt2", "models/", torch.__version__, "9.9.0")
    with pytest.raises(LoadError, match=r"written by torch 9\.9\.0, and torch .* cannot load it: export it again"):
        load("net.pt2", folder=tmp_path)


def test_torchscript_that_names_a_gpu_is_reported(
    load: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class OnGpu(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image + torch.zeros(1, device="cuda:1")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(OnGpu()).save(str(tmp_path / "gpu.pt"))
    load("gpu.pt", folder=tmp_path)
    assert "gpu.pt: its code names the device cuda:1, and this worker runs on cpu" in caplog.text


# State dicts and safetensors


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
@pytest.mark.parametrize("name", [name for name in TENSORS if name != "legacy.pth"])
def test_tensors_are_mapped_and_not_copied(load: Callable[..., Any], name: str) -> None:
    model = load(name)
    mapped = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith((".safetensors", "state.pt")):
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            mapped.append(range(start, end))
    for tensor in model.state_dict().values():
        assert any(tensor.data_ptr() in place for place in mapped)


def test_a_pickle_is_not_run(load: Callable[..., Any], tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return open, (str(tmp_path / "ran"), "w")

    model_file = module(tmp_path, NET)
    for new in (True, False):
        torch.save({"head.bias": Evil()}, tmp_path / "evil.pt", _use_new_zipfile_serialization=new)
        with pytest.raises(LoadError, match=r"more than tensors \((io|_io)\.open\).*model\.state_dict\(\)"):
            load("evil.pt", folder=tmp_path, model_file=model_file)
    assert not (tmp_path / "ran").exists()


def test_a_tensor_that_is_used_twice_may_be_stored_once(load: Callable[..., Any], tmp_path: Path) -> None:
    from safetensors.torch import save_model

    source = """
        from torch import nn

        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.embedding = nn.Embedding(5, 3)
                self.head = nn.Linear(3, 5, bias=False)
                self.head.weight = self.embedding.weight

            def forward(self, ids):
                return self.head(self.embedding(ids))
    """
    tied = make(tmp_path, source)
    save_model(tied, str(tmp_path / "tied.safetensors"))
    model = load("tied.safetensors", folder=tmp_path, model_file=module(tmp_path, source))
    ids = torch.arange(5)
    torch.testing.assert_close(model(ids), tied(ids))


def test_weights_stay_as_they_are_stored(
    load: Callable[..., Any], net: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = {
        name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in net.state_dict().items()
    }
    torch.save(state, tmp_path / "half.pt")
    with caplog.at_level(logging.INFO):
        stored = load("half.pt", folder=tmp_path, model_file=module(tmp_path, NET))
    assert weights.dtype(stored) == torch.bfloat16
    assert "stored as torch.bfloat16" in caplog.text
    converted = load("half.pt", {"dtype": "float32"}, folder=tmp_path, model_file=module(tmp_path, NET))
    assert weights.dtype(converted) == torch.float32
    torch.testing.assert_close(converted(images(2)), net(images(2)), atol=1e-2, rtol=0)


def test_errors_inside_a_model_file_are_its_own(load: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        load(None, folder=tmp_path, model_file=module(tmp_path, "import no_such_package"))
    fails = "class Net:\n    def __init__(self):\n        raise ZeroDivisionError"
    with pytest.raises(ZeroDivisionError):
        load(None, folder=tmp_path, model_file=module(tmp_path, fails))


# What cannot be loaded


def _cut(name: str) -> Callable[[Path, Path], bytes]:
    return lambda saved, _: (saved / name).read_bytes()[: (saved / name).stat().st_size * 2 // 3]


def _bytes(content: bytes) -> Callable[[Path, Path], bytes]:
    return lambda saved, folder: content


def _saved(value: Callable[[Mapping[str, Any]], Any], legacy: bool = False) -> Callable[[Path, Path], bytes]:
    def write(saved: Path, folder: Path) -> bytes:
        stream = io.BytesIO()
        value_ = value(torch.load(saved / "state.pt"))
        torch.save(value_, stream, _use_new_zipfile_serialization=not legacy)
        return stream.getvalue()

    return write


def _plain_zip(saved: Path, folder: Path) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("readme.txt", "weights")
    return stream.getvalue()


def _copy(name: str) -> Callable[[Path, Path], bytes]:
    return lambda saved, _: (saved / name).read_bytes()


BAD_WEIGHTS = {
    "missing": (None, None, "weights: the archive has no such file"),
    "empty": (_bytes(b""), None, "weights is empty"),
    "git-lfs": (_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), None, "git lfs pull"),
    "web page": (_bytes(b"\n<!DOCTYPE html>\n<html>Sign in</html>"), None, "a web page: download the weights again"),
    "gzip": (_bytes(b"\x1f\x8b\x08" + bytes(50)), None, "a gzip file: unpack"),
    "TensorFlow Lite": (_bytes(b"\x1c\0\0\0TFL3" + bytes(50)), None, "TensorFlow Lite model: build the archive by"),
    "noise": (_bytes(b"\x00\xff" * 500), None, "in no format that can be loaded; those are TorchScript"),
    "JSON": (_bytes(b'{"a": 1}'), None, "a JSON file, and no index"),
    "zip": (_plain_zip, None, "a zip file that torch did not write"),
    "pickle": (_bytes(pickle.dumps({"a": 1})), NET, "a pickle that torch.save did not write"),
    "cut TorchScript": (_cut("net.pt"), None, "truncated or damaged"),
    "cut program": (_cut("net.pt2"), None, "truncated or damaged"),
    "cut state dict": (_cut("state.pt"), NET, "truncated or damaged"),
    "cut legacy": (_cut("legacy.pth"), NET, "truncated or damaged"),
    "cut safetensors": (_cut("net.safetensors"), NET, r"truncated safetensors file \(\d+ of \d+ bytes\)"),
    "cut ONNX": (_cut("net.onnx"), None, "is an ONNX model that ONNX Runtime .* cannot load: it is damaged"),
    "damaged safetensors": (_bytes(b"\x0a\0\0\0\0\0\0\0{broken...."), NET, "its header is damaged"),
    "state dict alone": (_copy("state.pt"), None, "it has tensors and no code; name the Python file"),
    "safetensors alone": (_copy("net.safetensors"), None, "a safetensors file: it has tensors and no code"),
    "TorchScript and model": (_copy("net.pt"), NET, r"a TorchScript archive, .* leave the model file \w+.py out"),
    "cut OpenVINO": (_cut("net.xml"), None, "is an OpenVINO model that OpenVINO .* cannot load: .* it is damaged"),
    "OpenVINO without weights": (_copy("net.xml"), None, "the archive lacks weights.bin, its weights"),
    "OpenVINO and model": (_copy("net.xml"), NET, "an OpenVINO model, which has its code in it: leave the model file"),
    "ONNX and model": (_copy("net.onnx"), NET, r"an ONNX model, which has its code in it: leave the model file"),
    "whole model": (
        _saved(lambda _: torch.nn.Linear(2, 2)),
        NET,
        r"more than tensors \(torch.nn.modules.linear.Linear\)",
    ),
    "whole legacy": (_saved(lambda _: torch.nn.ReLU(), True), NET, "more than tensors .* save the weights alone"),
    "a tensor": (_saved(lambda _: torch.ones(2)), NET, "holds a Tensor, not a state dict"),
    "a list": (_saved(lambda _: [1]), NET, "holds a list, not a state dict"),
    "checkpoint": (_saved(lambda state: {"net": state, "epoch": 3}), NET, "a checkpoint: save its 'net' alone"),
    "parallel": (
        _saved(lambda state: {f"module.{name}": value for name, value in state.items()}),
        NET,
        "missing conv.weight, .* and 4 more; unexpected module.conv.weight, .* and 4 more; .*DataParallel",
    ),
    "other keys": (
        _saved(lambda state: {**{k: v for k, v in state.items() if k != "head.bias"}, "extra": torch.ones(1)}),
        NET,
        "does not fit Net: missing head.bias; unexpected extra; the file and the class are not of the same model",
    ),
    "other shapes": (
        _saved(lambda state: {**state, "head.bias": torch.ones(7)}),
        NET,
        r"of another shape head.bias \(7,\) in the file and \(4,\) in the model",
    ),
    "missing shard": (_copy("model.safetensors.index.json"), NET, "lacks: model-1.safetensors, model-2.safetensors"),
}


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_weights_that_cannot_be_loaded_have_a_reason(
    load: Callable[..., Any], saved: Path, tmp_path: Path, case: str
) -> None:
    write, source, message = BAD_WEIGHTS[case]
    if write:
        (tmp_path / "weights").write_bytes(write(saved, tmp_path))
    with pytest.raises(LoadError, match=message) as caught:
        load("weights", folder=tmp_path, model_file=module(tmp_path, source) if source else None)
    assert "weights" in str(caught.value)
    assert "\n" not in str(caught.value)


BAD_MODEL_FILES = {
    "two classes": ("class A: pass\nclass B: pass", r"defines 2 classes \(A, B\).* move the others to a file"),
    "no class": ("from torch.nn import Linear", "defines no class, .* define it there"),
    "arguments": ("class Net:\n    def __init__(self, width): ...", r"Net cannot be made without arguments .*'width'"),
    "no module": ("class Net: pass", "Net is no torch.nn.Module"),
}


@pytest.mark.parametrize("case", BAD_MODEL_FILES)
def test_model_files_that_cannot_be_used_have_a_reason(load: Callable[..., Any], tmp_path: Path, case: str) -> None:
    source, message = BAD_MODEL_FILES[case]
    model_file = module(tmp_path, source)
    with pytest.raises(LoadError, match=message) as caught:
        load(None, folder=tmp_path, model_file=model_file)
    assert model_file in str(caught.value)


def test_a_model_file_of_a_name_that_is_taken_is_rejected(load: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text(textwrap.dedent(NET))
    with pytest.raises(LoadError, match=r"json.py: Python has another module of this name .*: rename the model file"):
        load(None, folder=tmp_path, model_file="json.py")
    with pytest.raises(LoadError, match=r"gone.py: the archive has no such model file"):
        load(None, folder=tmp_path, model_file="gone.py")
    with pytest.raises(LoadError, match="neither a serializedFile nor a modelFile"):
        load(None, folder=tmp_path)


@pytest.mark.parametrize(
    ("package", "name"), [("onnxruntime", "net.onnx"), ("openvino", "net.xml"), ("safetensors", "net.safetensors")]
)
def test_a_package_that_is_missing_is_named(
    load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, package: str, name: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # what Python itself does to forbid an import
    with pytest.raises(LoadError, match=f"{name} is an? .* is not installed: `pip install {package}`"):
        load(name)


# Gradients


@pytest.mark.parametrize("name", ["net.pt", "frozen.ts", "net.pt2", "old.pt2", "net.safetensors", "state.pt"])
def test_gradients_of_inputs_exist_in_every_call(load: Callable[..., Any], net: Any, name: str) -> None:
    model = load(name)
    assert weights.differentiable(model)
    for rows in (2, 2, 2, 2, 3, 3, 1):  # TorchScript's profiling executor compiles anew in the second and third
        with torch.inference_mode():
            model(images(rows))
        gradients = []
        for module in (model, net):
            batch = images(rows).requires_grad_()
            module(batch)[:, 1].sum().backward()
            gradients.append(batch.grad)
        torch.testing.assert_close(*gradients, atol=1e-5, rtol=0)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_quantized_model_has_no_gradients(load: Callable[..., Any], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        linear = torch.nn.Sequential(torch.nn.Linear(6, 4)).eval()
        quantized = torch.ao.quantization.quantize_dynamic(linear, {torch.nn.Linear})
        torch.jit.script(quantized).save(str(tmp_path / "quantized.pt"))
    model = load("quantized.pt", folder=tmp_path)
    assert model(torch.ones(1, 6)).shape == (1, 4)
    assert not weights.differentiable(model)


def test_formats_without_gradients_are_not_differentiable(load: Callable[..., Any]) -> None:
    assert not weights.differentiable(load("net.onnx"))
    assert not weights.differentiable(load("net.xml"))
    model = load("net.pt", {"optimize_for_inference": True})
    batch = images(2).requires_grad_()
    # Of what the machine has, it depends whether torch puts operators without derivatives in.
    assert weights.differentiable(model) == model(batch).requires_grad


# Options


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtype_converts_the_weights(load: Callable[..., Any], net: Any, name: str, dtype: str) -> None:
    model = load(name, {"dtype": dtype})
    wanted = getattr(torch, dtype)
    assert weights.dtype(model) == wanted
    answer = model(images(2).to(wanted))
    assert answer.dtype == wanted
    torch.testing.assert_close(answer.float(), net(images(2)), atol=5e-2, rtol=0)


def test_a_frozen_model_has_the_dtype_of_its_constants(load: Callable[..., Any]) -> None:
    assert weights.dtype(load("net.pt", {"dtype": "bfloat16", "freeze": True})) == torch.bfloat16


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
def test_channels_last_lays_out_the_weights(load: Callable[..., Any], net: Any, name: str) -> None:
    model = load(name, {"channels_last": True})
    assert model.conv.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(images(2)), net(images(2)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["net.pt", "frozen.ts"])
@pytest.mark.parametrize("option", ["freeze", "optimize_for_inference"])
def test_torchscript_is_frozen_on_request(load: Callable[..., Any], net: Any, name: str, option: str) -> None:
    model = load(name, {option: True})
    assert not model.state_dict()
    for _ in range(3):
        torch.testing.assert_close(model(images(2)), net(images(2)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["net.safetensors", "net.pt2"])
def test_compiled_models_answer_the_same(load: Callable[..., Any], net: Any, name: str) -> None:
    for options, pt2 in (
        ({"compile": {"backend": "aot_eager", "dynamic": True}}, None),
        ({}, "aot_eager"),
        ({}, {"backend": "eager"}),
        ({}, {"compile": {"enable": True, "backend": "eager", "fullgraph": True}}),
    ):
        model = load(name, options, pt2=pt2)
        assert compilation(model)
        for rows in (1, 5):
            batch = images(rows).requires_grad_()
            answer = model(batch)
            torch.testing.assert_close(answer.detach(), net(images(rows)), atol=1e-5, rtol=0)
            answer.sum().backward()
            assert batch.grad is not None
        assert weights.input_names(model) == ("image",)
        assert weights.differentiable(model) and not model.training
        assert weights.dtype(model) == torch.float32


def compilation(model: Any) -> bool:
    """Whether a module is compiled, as an eager model or within an exported program."""
    return bool(getattr(model, "_compiled", ()) or getattr(getattr(model, "module", None), "_compiled", ()))


def test_a_compiled_model_has_the_attributes_of_its_class(load: Callable[..., Any]) -> None:
    assert load("net.safetensors", {"compile": True}).conv.out_channels == 8


@pytest.mark.parametrize(
    ("options", "pt2"),
    [({"compile": False}, "eager"), ({}, {"compile": {"enable": False}}), ({}, {"export": {}}), ({}, None)],
)
def test_compiling_can_be_disabled(load: Callable[..., Any], options: Mapping[str, Any], pt2: Any) -> None:
    assert not compilation(load("net.safetensors", options, pt2=pt2))


def test_a_model_that_cannot_be_compiled_runs_eagerly_with_a_warning(
    load: Callable[..., Any], net: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def broken_compiler(graph: Any, inputs: Any) -> Any:
        raise OSError("no compiler here")

    torch._dynamo.register_backend(broken_compiler)
    for name, error in (("net.safetensors", RuntimeError), ("net.pt2", ValueError)):
        model = load(name, {"compile": {"backend": "broken_compiler"}})
        with pytest.raises(error, match="4, 8, 8"):
            model(torch.ones(2, 4, 8, 8))  # the model refuses it, which is no fault of the compiler
        assert compilation(model)
        assert "could not be compiled" not in caplog.text
        torch.testing.assert_close(model(images(2)), net(images(2)))
        assert f"{name} could not be compiled and runs as it is from now on" in caplog.text
        assert "no compiler here" in caplog.text
        assert not compilation(model)
        torch.testing.assert_close(model(images(5)), net(images(5)))
        caplog.clear()
    model = load("net.safetensors", pt2="no_such_backend")
    assert "net.safetensors could not be compiled and runs as it is" in caplog.text
    torch.testing.assert_close(model(images(2)), net(images(2)))
    caplog.clear()
    load("net.pt", pt2={"compile": {"enable": True}})
    assert "net.pt is a TorchScript archive, which torch.compile does not take" in caplog.text


BAD_OPTIONS = {
    "dtype": ("net.pt", {"dtype": "int8"}, None, "handler.dtype: 'int8' .* float32, float16, bfloat16"),
    "dtype list": ("net.pt", {"dtype": ["float16"]}, None, "handler.dtype"),
    "flag": ("net.pt", {"freeze": "yes"}, None, "handler.freeze: 'yes' .* true or false"),
    "compile": ("net.pt2", {"compile": "inductor"}, None, "handler.compile: 'inductor' .* a mapping of backend, mode"),
    "argument": ("net.pt2", {"compile": {"speed": 1}}, None, "handler.compile: 'speed' .* backend, mode, dynamic"),
    "dynamic": ("net.pt2", {"compile": {"dynamic": 1}}, None, "handler.compile.dynamic: 1 .* true or false"),
    "backend": ("net.pt2", {"compile": {"backend": "gcc"}}, None, "handler.compile.backend: 'gcc' .* inductor"),
    "mode": ("net.pt2", {"compile": {"mode": "fast"}}, None, "handler.compile.mode: 'fast' .* max-autotune"),
    "providers": ("net.onnx", {"providers": "CPU"}, None, "handler.providers: 'CPU' .* a list"),
    "provider": (
        "net.onnx",
        {"providers": ["Cpu"]},
        None,
        "handler.providers: 'Cpu' is none of .*CPUExecutionProvider",
    ),
    "providers of none": ("net.pt", {"providers": ["A"]}, None, "handler.providers: net.pt .* for ONNX models only"),
    "pt2": ("net.pt2", {}, 7, "pt2: 7 is neither"),
    "pt2.compile": ("net.pt2", {}, {"compile": True}, "pt2.compile: True is not a mapping"),
    "ONNX dtype": ("net.onnx", {"dtype": "float16"}, None, "handler.dtype: net.onnx is an ONNX model, which"),
    "program dtype": ("net.pt2", {"dtype": "bfloat16"}, None, "handler.dtype: net.pt2 is a torch.export program"),
    "frozen dtype": ("frozen.ts", {"dtype": "float16"}, None, "a TorchScript archive that is frozen, which"),
    "channels_last": ("net.onnx", {"channels_last": True}, None, "handler.channels_last: net.onnx is"),
    "freeze": ("net.safetensors", {"freeze": True}, None, "handler.freeze: net.safetensors .* for TorchScript only"),
    "optimize": ("net.pt2", {"optimize_for_inference": True}, None, "handler.optimize_for_inference: net.pt2"),
    "compiled TorchScript": ("net.pt", {"compile": True}, None, "handler.compile: net.pt .* for eager models"),
    "compiled OpenVINO": ("net.xml", {"compile": True}, None, "handler.compile: net.xml .* for eager models"),
    "OpenVINO providers": ("net.xml", {"providers": ["A"]}, None, "handler.providers: net.xml .* for ONNX models only"),
    "compiled ONNX": ("net.onnx", {"compile": True}, None, "handler.compile: net.onnx .* for eager models"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_options_that_cannot_be_used_have_a_reason(load: Callable[..., Any], case: str) -> None:
    name, options, pt2, message = BAD_OPTIONS[case]
    with pytest.raises(LoadError, match=message) as caught:
        load(name, options, pt2=pt2)
    assert str(caught.value).startswith("model-config.yaml: ")


def test_options_of_other_parts_are_left_alone(load: Callable[..., Any], net: Any) -> None:
    for name in ("net.pt", "net.onnx", "net.pt2", "net.xml"):
        model = load(name, {"topk": 3, "size": [32, 32], "dtype": "float32", "freeze": False})
        torch.testing.assert_close(model(images(2)), net(images(2)), atol=1e-5, rtol=0)


def test_torchs_warnings_about_torchscript_are_not_logged(load: Callable[..., Any]) -> None:
    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("always")
        load("net.pt", {"freeze": True, "optimize_for_inference": True})
    assert not [str(warning.message) for warning in recorded]
