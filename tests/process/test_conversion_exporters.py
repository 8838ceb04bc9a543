"""Exporters write models that answer as before, and name the operation and the line of what they cannot export."""

from __future__ import annotations

import importlib.util
import itertools
import textwrap
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torchmar.conversion import exporters  # noqa: E402
from torchmar.conversion.exporters import dimensions, program  # noqa: E402
from torchmar.conversion.exporters.model import in_float32, sized, traceable  # noqa: E402
from torchmar.conversion.process import Rejected  # noqa: E402
from torchmar_handlers import weights  # noqa: E402

# Not imported, which takes a second in each process that collects the tests.
pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("onnxscript", "openvino"))), reason="needs the extra export"
)

CPU = torch.device("cpu")
WORDS = """
    import torch
    from torch import nn

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.places = nn.Embedding(20, 8), nn.Embedding(16, 8)
            self.head = nn.Linear(8, 3)

        def forward(self, ids, mask):
            states = self.words(ids) + self.places.weight[: ids.shape[1]]
            summed = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            return {"scores": self.head(summed), "length": mask.sum(1)}
"""
IMAGES = """
    from torch import nn

    class Images(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 2)

        def forward(self, image):
            return self.head(self.norm(self.conv(image)).relu().mean((2, 3)))
"""
BRANCH = """
    from torch import nn

    class Branch(nn.Module):
        def forward(self, x):
            if x.sum() > 0:
                return x * 2
            return -x
"""
_count = itertools.count()


def made(folder: Path, text: str) -> Any:
    """Return an instance of the class in a module of its own, with the same weights every time."""
    file = folder / f"made_{next(_count)}.py"
    file.write_text(textwrap.dedent(text))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    classes = [value for value in vars(module).values() if isinstance(value, type) and value.__module__ == file.stem]
    return classes[0]().eval()


def answers(path: Path, *inputs: Any) -> Any:
    return weights.load(path.parent, path.name, None, CPU, {}, threads=1)(*inputs)


@pytest.mark.parametrize("layout", ["float32", "bfloat16", "channels-last"])
@pytest.mark.parametrize(
    ("to", "name"),
    [
        ("torchscript-trace", "net.pt"),
        ("torchscript-script", "net.pt"),
        ("export", "net.pt2"),
        ("onnx", "net.onnx"),
        ("openvino", "net.xml"),
    ],
)
def test_each_format_answers_as_the_model(tmp_path: Path, to: str, name: str, layout: str) -> None:
    model = made(tmp_path, IMAGES)
    images = torch.randn(2, 3, 8, 8)
    if layout == "bfloat16":
        model, images = model.bfloat16(), images.bfloat16()
    if layout == "channels-last":
        model = model.to(memory_format=torch.channels_last)
    exporters.EXPORTERS[to](model, (images,), ({0: "batch", 2: "height", 3: "width"},), tmp_path / name)
    for shape in ((1, 3, 8, 8), (5, 3, 12, 9)):
        given = torch.randn(shape).to(images.dtype)
        with torch.no_grad():
            expected = model(given).float()
        tolerance = 5e-2 if layout == "bfloat16" else 1e-5
        torch.testing.assert_close(answers(tmp_path / name, given).float(), expected, rtol=tolerance, atol=tolerance)


def test_dimensions_have_names_and_the_bounds_of_the_model(tmp_path: Path) -> None:
    import onnx

    model = made(tmp_path, WORDS)
    example = (torch.ones(1, 1, dtype=torch.int64), torch.ones(1, 1))
    axes = dimensions.parse(["batch,seq"], ["ids", "mask"], example)
    assert program.bounds(program.export_program(model, example, axes), axes)["seq"] == (1, 16, 1)
    exporters.to_onnx(model, example, axes, tmp_path / "words.onnx")
    graph = onnx.load(tmp_path / "words.onnx").graph
    shapes = {
        port.name: [size.dim_param or size.dim_value for size in port.type.tensor_type.shape.dim]
        for port in (*graph.input, *graph.output)
    }
    assert shapes == {"ids": ["batch", "seq"], "mask": ["batch", "seq"], "scores": ["batch", 3], "length": ["batch"]}
    assert not any(node.metadata_props for node in graph.node), "no paths of this machine"


def test_a_branch_on_values_is_found_in_a_trace(tmp_path: Path) -> None:
    model = made(tmp_path, BRANCH)
    with pytest.raises(
        Rejected, match=r"depend on its example: Converting a tensor to a Python boolean at .*\.py:6 \(if x"
    ):
        exporters.to_torchscript_trace(model, (torch.ones(2, 3),), ({0: "batch"},), tmp_path / "net.pt")
    assert not (tmp_path / "net.pt").exists()
    exporters.to_torchscript_script(model, (torch.ones(2, 3),), ({0: "batch"},), tmp_path / "net.pt")
    torch.testing.assert_close(answers(tmp_path / "net.pt", -torch.ones(4, 3)), torch.ones(4, 3))


@pytest.mark.parametrize("to", ["export", "onnx"])
def test_a_branch_on_values_is_named_with_its_line(tmp_path: Path, to: str) -> None:
    with pytest.raises(
        Rejected, match=r"depends on the values of its input, at .*made_\d+\.py:6 \(if x\.sum\(\) > 0:\)"
    ):
        exporters.EXPORTERS[to](made(tmp_path, BRANCH), (torch.ones(2, 3),), ({0: "batch"},), tmp_path / "net")


def test_a_size_that_the_model_fixes_is_named(tmp_path: Path) -> None:
    model = made(
        tmp_path,
        """
        from torch import nn

        class Fixed(nn.Module):
            def forward(self, x):
                return x.reshape(3, 4) * 2
        """,
    )
    with pytest.raises(Rejected, match=r"the dimension batch cannot be of any size.* 3 "):
        exporters.to_export(model, (torch.ones(3, 4),), ({0: "batch"},), tmp_path / "net.pt2")
    exporters.to_export(model, (torch.ones(3, 4),), ({},), tmp_path / "net.pt2")


def test_an_operation_without_a_counterpart_in_onnx_is_named_with_its_line(tmp_path: Path) -> None:
    model = made(
        tmp_path,
        """
        import torch
        from torch import nn

        class Waves(nn.Module):
            def forward(self, x):
                return torch.special.bessel_j0(x) + 1
        """,
    )
    with pytest.raises(Rejected, match=r"the operation prims\.bessel_j0 at .*made_\d+\.py:7 \(return torch\."):
        exporters.to_onnx(model, (torch.ones(2, 3),), ({0: "batch"},), tmp_path / "net.onnx")


def test_torchscript_names_the_line_that_it_does_not_compile(tmp_path: Path) -> None:
    model = made(
        tmp_path,
        """
        from torch import nn

        class Lazy(nn.Module):
            def forward(self, x):
                yield x
        """,
    )
    with pytest.raises(Rejected, match=r"made_\d+\.py:6"):
        exporters.to_torchscript_script(model, (torch.ones(2),), ({},), tmp_path / "net.pt")


def test_torchscript_is_exported_with_dimensions_of_any_size(tmp_path: Path) -> None:
    scripted = torch.jit.script(made(tmp_path, IMAGES))
    exporters.to_export(scripted, (torch.randn(1, 3, 8, 8),), ({0: "batch"},), tmp_path / "net.pt2")
    given = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(answers(tmp_path / "net.pt2", given), scripted(given), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("to", ["torchscript-trace", "torchscript-script"])
def test_a_program_becomes_torchscript_with_its_dimensions_and_names(tmp_path: Path, to: str) -> None:
    model = made(tmp_path, WORDS)
    axes = ({0: "batch", 1: "seq"},) * 2
    exported = program.export_program(model, (torch.ones(2, 4, dtype=torch.int64), torch.ones(2, 4)), axes)
    exporters.EXPORTERS[to](exported, (), axes, tmp_path / "net.pt")
    given = torch.randint(0, 20, (5, 3)), torch.rand(5, 3)
    loaded = weights.load(tmp_path, "net.pt", None, CPU, {}, threads=1)
    assert weights.input_names(loaded) == ("ids", "mask")
    with torch.no_grad():
        torch.testing.assert_close(loaded(*given), dict(model(*given)))


def test_sizes_of_an_example_are_changed_together() -> None:
    axes = ({0: "batch", 1: "seq"}, {0: "batch"})
    example = (torch.arange(4).reshape(1, 4), torch.zeros(1, 7))
    assert [tuple(tensor.shape) for tensor in sized(example, axes, {"batch": 5, "seq": 2})] == [(5, 2), (5, 7)]
    assert [tuple(tensor.shape) for tensor in traceable(example, axes)] == [(3, 4), (3, 7)]


def test_bfloat16_weights_are_the_same_numbers_in_float32(tmp_path: Path) -> None:
    model = made(tmp_path, IMAGES).bfloat16()
    wider, (example,), converted = in_float32(model, (torch.ones(1, 3, 4, 4, dtype=torch.bfloat16),))
    assert converted
    assert example.dtype == torch.float32
    for name, tensor in model.state_dict().items():
        assert torch.equal(wider.state_dict()[name].to(tensor.dtype), tensor)


@pytest.mark.parametrize(
    ("texts", "axes"),
    [
        ([], ({0: "batch"}, {0: "batch"})),
        (["none"], ({}, {})),
        (["batch,seq"], ({0: "batch", 1: "seq"}, {0: "batch", 1: "seq"})),
        (["batch", "b:batch,_,width"], ({0: "batch"}, {0: "batch", 2: "width"})),
    ],
)
def test_names_of_dimensions(texts: list[str], axes: object) -> None:
    assert dimensions.parse(texts, ["a", "b"], (torch.ones(2, 3), torch.ones(2, 3, 4))) == axes


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["c:batch"], "no input 'c'"),
        (["batch,1"], "'1' is no name"),
        (["a,b,c,d"], "3 dimensions at the most"),
        (["x,y,z"], "the dimension y has the size 3 in a and 5 in b"),
        (["a:x,y,z"], "a has 2 dimensions"),
    ],
)
def test_wrong_names_of_dimensions(texts: list[str], message: str) -> None:
    with pytest.raises(Rejected, match=message):
        dimensions.parse(texts, ["a", "b"], (torch.ones(2, 3), torch.ones(2, 5, 4)))


def test_attention_with_a_mask_for_padding_is_written_as_onnxruntime_reads_it(tmp_path: Path) -> None:
    """Its Attention of opset 23 takes no mask that is the same for all queries."""

    class Padded(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

        def forward(self, states: Any, mask: Any) -> Any:
            return self.layer(states, src_key_padding_mask=mask == 0)

    model = Padded().eval()
    example = (torch.randn(2, 5, 8), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]))
    file = tmp_path / "padded.onnx"
    notes = exporters.to_onnx(model, example, ({0: "batch", 1: "seq"}, {0: "batch", 1: "seq"}), file)
    assert "opset 22" in notes
    loaded = weights.load(tmp_path, file.name, None, CPU, {}, threads=1)
    other = (torch.randn(3, 4, 8), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]))
    with torch.inference_mode():
        for inputs in (example, other):
            torch.testing.assert_close(loaded(*inputs), model(*inputs), atol=1e-5, rtol=1e-4)
