"""Variants of an archive's weights are made, held to the original's answers, timed, and one is chosen."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.wheels import lock_of, write_wheel
from torchmar import archive
from torchmar.errors import TorchmarError
from torchmar.optimizing.measuring import Measurements
from torchmar.optimizing.process import processor
from torchmar.optimizing.results import Row, Verdict
from torchmar.optimizing.session import Optimization, Optimizer
from torchmar.optimizing.settings import Settings
from torchmar.worker.venvs import folder as venvs

pytest.importorskip("torch")

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.head = nn.Linear(128, 4)

    def forward(self, pixels, factor):
        scores = self.head(self.layers(pixels)) * factor
        return {"scores": scores, "factor": factor, "positive": scores > 0}
"""
MATRIX = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(64, 64)

    def forward(self, row):
        return self.head(row)
"""
INPUTS = [{"name": "pixels", "shape": [1, None, 8]}, {"name": "factor", "shape": [1]}]


def recipe(folder: Path, code: str = NET, **keys: object) -> Path:
    """Write the recipe of a model with two inputs by name, one of them of any height, and a mapping as output."""
    folder.mkdir()
    document = {
        "name": "made",
        "version": "1.0",
        "handler": "torchmar_handlers.tensors",
        "model_file": "model.py",
        "config": {"handler": {"inputs": INPUTS, "threads": 1, "warm_up": False}},
        **keys,
    }
    (folder / "archive.yaml").write_text(json.dumps(document))
    (folder / "model.py").write_text(code)
    return folder


class Silent:
    """An observer that keeps the rows and the warnings."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.warnings: list[str] = []

    def on_step(self, text: str) -> None:
        pass

    def on_warning(self, text: str) -> None:
        self.warnings.append(text)

    def on_row(self, row: Row, baseline: Row, number: int, total: int) -> None:
        self.rows.append(row)


def optimize(path: Path, folder: Path, data: Path | None, *variants: str) -> tuple[Optimization, Silent]:
    observer = Silent()
    folder.mkdir()
    settings = Settings(data=data, batch_sizes=(1, 4), variants=variants)
    return Optimizer(path, settings, folder, observer).run(), observer


def row_of(optimization: tuple[Optimization, Silent], variant: str) -> Row:
    return next(row for row in optimization[0].report.rows if row.variant == variant)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of requests of two heights, one of which the model rejects."""
    import random

    source, folder = random.Random(0), tmp_path_factory.mktemp("data")
    for number in range(90):
        height = 6 if number % 2 else 9
        pixels = [[[source.gauss(0, 1) for _ in range(8)] for _ in range(height)]]
        (folder / f"{number:02}.json").write_text(json.dumps({"pixels": pixels, "factor": [source.random() + 1]}))
    (folder / "bad.json").write_text('{"pixels": 3}')
    return folder


@pytest.fixture(scope="module")
def optimization(tmp_path_factory: pytest.TempPathFactory, data: Path) -> tuple[Optimization, Silent]:
    folder = tmp_path_factory.mktemp("optimizing")
    path = archive.build(recipe(folder / "recipe"), folder).path
    return optimize(path, folder / "work", data, "bfloat16", "openvino", "cuda-graphs")


def test_variants_with_the_originals_answers_pass(optimization: tuple[Optimization, Silent]) -> None:
    """They have its names of inputs and outputs, and take inputs of every height, as it does."""
    row = row_of(optimization, "openvino")
    assert row.verdict in (Verdict.CHOSEN, Verdict.SLOWER), row
    assert row.agreement is not None
    assert row.agreement.relative_error < 1e-3
    assert [timing.batch_size for timing in row.timings] == [1, 4]
    assert row.options == {"weights": "optimized/model.xml"}


def test_a_variant_without_files_is_the_original_with_options(optimization: tuple[Optimization, Silent]) -> None:
    row = row_of(optimization, "bfloat16")
    assert row.agreement is not None
    assert row.agreement.relative_error > 1e-4
    assert row.options == {"dtype": "bfloat16", "channels_last": True}


@pytest.mark.skipif(not processor.needs("bfloat16"), reason="this processor does not compute in bfloat16")
def test_compiled_bfloat16_needs_the_processor_that_it_was_compiled_for(tmp_path: Path) -> None:
    keys = {"config": {"handler": {"inputs": [{"name": "row", "shape": [64]}], "threads": 1, "warm_up": False}}}
    path = archive.build(recipe(tmp_path / "recipe", code=MATRIX, **keys), tmp_path).path
    (tmp_path / "data").mkdir()
    for number in range(60):
        row = [(number * place) % 7 - 3 for place in range(64)]
        (tmp_path / "data" / f"{number:02}.json").write_text(json.dumps({"row": row}))
    made = optimize(path, tmp_path / "work", tmp_path / "data", "export-aoti-bfloat16")
    row = row_of(made, "export-aoti-bfloat16")
    assert row.agreement is not None, row
    assert 1e-4 < row.agreement.relative_error < 0.02
    assert row.options == {"weights": "optimized/model.pt2"}
    assert set(row.needs) >= {*processor.needs("bfloat16"), *processor.all_of(["amx_bf16", "amx_tile"])}


@pytest.mark.parametrize(("layers", "timed"), [("matrices", True), ("many matrices", False), ("convolutions", False)])
def test_products_of_few_sizes_are_compiled_in_several_ways(layers: str, timed: bool) -> None:
    """Each size takes ten seconds, and convolutions are compiled in one way only."""
    import torch

    from torchmar.optimizing.process import aoti

    sizes = range(4, 20) if layers == "many matrices" else (4, 8)
    parts = [torch.nn.Linear(before, after) for before, after in pairwise(sizes)]
    if layers == "convolutions":
        parts.insert(0, torch.nn.Conv1d(4, 4, 1))
    program = torch.export.export(torch.nn.Sequential(*parts), (torch.ones(4, 4),))
    assert aoti.settings(program).get("max_autotune", False) == timed


def test_what_this_machine_has_not_is_skipped_with_the_reason(optimization: tuple[Optimization, Silent]) -> None:
    row = optimization[0].report.rows[-1]
    assert (row.variant, row.verdict) == ("cuda-graphs", Verdict.SKIPPED)
    assert "GPU" in row.reason


def test_files_are_there_to_be_written_into_the_recipe(optimization: tuple[Optimization, Silent]) -> None:
    files = optimization[0].files
    assert [file.name for file in files["openvino"]] == ["model.xml", "model.bin"]
    assert all(file.is_file() for names in files.values() for file in names)
    assert files["bfloat16"] == ()


def test_calibration_inputs_judge_nothing(optimization: tuple[Optimization, Silent]) -> None:
    report = optimization[0].report
    assert report.calibration_inputs == 22
    assert report.inputs == 68


def test_a_request_without_an_answer_is_left_out_with_a_warning(optimization: tuple[Optimization, Silent]) -> None:
    (warning,) = optimization[1].warnings
    assert warning.startswith("bad.json is left out: the original answers it with status 400")


def test_an_archive_with_a_runtime_is_optimised_in_its_environment(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There, torchmar finds none of the packages that it requires elsewhere."""
    pytest.importorskip("uv")
    # The code of the first measurement, in one more process that imports torch.
    monkeypatch.setattr(Measurements, "measure_original_again", lambda self: None)
    monkeypatch.setenv(venvs.VARIABLE, str(tmp_path / "venvs"))
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    runtime = {"python": version, "requirements": "lock.txt", "wheels": "wheels", "server_packages": True}
    made = recipe(tmp_path / "recipe", runtime=runtime)
    (made / "model.py").write_text(f"import tiny\n{NET}")
    absent = 'raise ImportError("not in this environment")\n'
    wheels = [write_wheel(made / "wheels", name, "9.0", code) for name, code in (("tiny", ""), ("pydantic", absent))]
    (made / "lock.txt").write_text(lock_of(*wheels))
    optimized = optimize(archive.build(made, tmp_path).path, tmp_path / "work", data, "torchscript-frozen")
    row = row_of(optimized, "torchscript-frozen")
    assert row.verdict in (Verdict.CHOSEN, Verdict.SLOWER), row


def test_a_model_that_returns_an_object_is_not_taken_for_one_that_agrees(tmp_path: Path) -> None:
    """Nothing in the object would be compared."""
    folder = recipe(
        tmp_path / "recipe", handler="handler.py", samples=[{"json": {"pixels": [[[0.5] * 8] * 6], "factor": [1]}}]
    )
    (folder / "model.py").write_text(
        NET.replace("import torch\n", "import torch\nfrom types import SimpleNamespace\n", 1)
        .replace("return {", "return SimpleNamespace(**{")
        .replace("> 0}", "> 0})")
    )
    (folder / "handler.py").write_text(
        "from torchmar_handlers.tensors import TensorHandler\n\n\nclass Handler(TensorHandler):\n"
        "    def _named(self, output):\n        return super()._named(vars(output))\n"
    )
    with pytest.raises(TorchmarError, match="Net returns a SimpleNamespace, which answers cannot be compared in"):
        optimize(archive.build(folder, tmp_path).path, tmp_path / "work", None, "bfloat16")


def test_numbers_of_an_output_are_compared_as_its_tensors_are() -> None:
    import torch

    from torchmar.optimizing.process import source

    output = {"scores": torch.ones(1), "length": 3, "loss": None, "more": (torch.zeros(2), [True])}
    assert [name for name, _ in source.flat(output)] == ["scores", "length", "more.0", "more.1.0"]
    assert source.incomparable(output) == ""
    assert source.incomparable({"scores": torch.ones(1), "text": ["a"]}) == "str"


def test_sizes_are_compared_with_rows_that_differ() -> None:
    """A variant that answers the first row for all of a batch would pass with equal ones."""
    import torch

    from torchmar.optimizing.process import source
    from torchmar.optimizing.process.captured import Captured
    from torchmar.optimizing.process.jobs import Weights

    inputs = [Captured(str(place), (torch.full((1, 3), float(place)),), {}) for place in range(3)]
    original = source.Source(
        weights=Weights(folder=".", serialized_file=None, model_file=None, options={}, threads=1),
        module=torch.nn.Linear(3, 1),
        path=None,
        kind="an eager model",
        input_names=("x",),
        output_names=(),
    )
    (rows,) = source.example_of(original, inputs).args
    assert rows[:, 0].tolist() == [0, 1]


def test_a_handler_whose_model_cannot_be_replaced_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "recipe"
    recipe(folder, handler="handler.py", samples=[{"json": 1}], config={})
    (folder / "handler.py").write_text("def handle(rows, context):\n    return [1 for row in rows or []]")
    path = archive.build(folder, tmp_path).path
    with pytest.raises(TorchmarError, match="the handler is a function"):
        optimize(path, tmp_path / "work", None, "openvino")
