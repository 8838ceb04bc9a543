"""The requests of an optimisation: samples that are to be answered, and the files of a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from torchmar.archive import Archive
from torchmar.errors import TorchmarError
from torchmar.optimizing import inputs, variants

SAMPLES = [{"json": 1}, {"json": 2, "explain": True}, {"json": 3, "status": 400}]


def test_samples_that_are_answered_and_files_of_subfolders_are_taken(make: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for name in ("b/2.json", "a/1.txt", ".hidden/3.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("7")
    with Archive(make(samples=SAMPLES)) as archive:
        read = inputs.read(archive, folder)
    assert [each.name for each in read] == ["sample 1", "a/1.txt", "b/2.json"]
    assert [each.request.content_type for each in read] == ["application/json", "text/plain", "application/json"]


def test_a_file_that_is_called_as_a_sample_is_an_input_of_its_own(make: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "sample 1").write_text("7")
    with Archive(make(samples=SAMPLES)) as archive:
        assert [each.name for each in inputs.read(archive, tmp_path / "sample 1")] == ["sample 1", "sample 1 (2)"]


def test_of_many_files_some_are_taken_evenly(
    make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "MOST", 3)
    data = tmp_path / "data"
    data.mkdir()
    for number in range(9):
        (data / f"{number}.json").write_text(str(number))
    with Archive(make()) as archive:
        assert [each.name for each in inputs.read(archive, data)] == ["0.json", "3.json", "6.json"]


@pytest.mark.parametrize("data", [None, "missing", "empty"])
def test_without_inputs_the_remedy_is_named(make: Callable[..., Path], tmp_path: Path, data: str | None) -> None:
    (tmp_path / "empty").mkdir()
    with Archive(make()) as archive, pytest.raises(TorchmarError) as caught:
        inputs.read(archive, None if data is None else tmp_path / data)
    assert "--data" in caught.value.hint


def test_an_unknown_variant_is_named_with_those_that_exist() -> None:
    with pytest.raises(TorchmarError, match="no variant is called 'openvino-int4'") as caught:
        variants.select(["openvino-int4"])
    assert "openvino-int8" in caught.value.hint


def test_selected_variants_have_the_baseline_before_them() -> None:
    assert [each.name for each in variants.select(["openvino", "bfloat16"])] == ["baseline", "bfloat16", "openvino"]


def test_a_variant_says_why_it_cannot_be_made_here() -> None:
    known = {variant.name: variant for variant in variants.CATALOGUE}
    assert "no GPU" in known["cuda-graphs"].unavailable(gpu=False, calibration=9)
    assert "deviceType: cpu" in known["openvino"].unavailable(gpu=True, calibration=9)
    assert known["bfloat16"].unavailable(gpu=False, calibration=0) == ""
    missing = variants.Variant(name="x", title="x", family="x", packages=("no_such_package",))
    assert missing.unavailable(gpu=False, calibration=9) == ""
    assert missing.unavailable(gpu=False, calibration=9, missing=["no_such_package"]) == (
        "no_such_package is not installed: pip install no_such_package"
    )
    assert missing.unavailable(gpu=False, calibration=9, missing=["no_such_package"], own=False) == (
        "no_such_package is not in the environment of the archive: add it to the runtime's requires, and run "
        "torchmar lock"
    )
