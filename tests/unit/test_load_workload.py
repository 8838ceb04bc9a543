"""The requests of a measurement, from files and recipes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.paths import ROOT
from torchmar.errors import TorchmarError
from torchmar.load import workload


def test_a_recipe_gives_its_samples_with_their_expected_answers() -> None:
    read = workload.read(ROOT / "archives" / "digits")
    assert [case.name for case in read.cases if case.sample is None] == []
    zero = next(case for case in read.cases if case.name == "zero.png")
    assert zero.request.content_type == "image/png"
    assert zero.sample is not None
    assert zero.sample.expect is not None
    assert read.mean_bytes > 0


def test_samples_with_explanations_are_apart() -> None:
    assert all(case.request.explain for case in workload.read(ROOT / "archives" / "digits", explain=True).cases)
    assert not any(case.request.explain for case in workload.read(ROOT / "archives" / "digits").cases)


def test_a_folder_of_samples_has_the_expected_answers_of_the_recipe_above_it() -> None:
    read = workload.read(ROOT / "archives" / "digits" / "samples")
    assert len(read.cases) == 10
    assert sum(case.sample is not None for case in read.cases) > 0


def test_a_file_and_a_folder_of_other_files_have_none(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text("[1]")
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / ".hidden").write_text("")
    read = workload.read(tmp_path)
    assert [(case.name, case.request.content_type) for case in read.cases] == [
        ("a.txt", "text/plain"),
        ("b.json", "application/json"),
    ]
    assert read.mean_bytes == 3
    assert [case.sample for case in read.cases] == [None, None]
    assert [case.name for case in workload.read(tmp_path / "b.json").cases] == ["b.json"]


def test_a_sample_of_json_is_a_request(tmp_path: Path) -> None:
    (tmp_path / "archive.yaml").write_text(
        'name: a\nversion: "1.0"\nhandler: handler.py\nsamples:\n- json: {a: 1}\n  expect: {b: 2}\n'
    )
    (case,) = workload.read(tmp_path).cases
    assert (case.request.body, case.request.content_type, case.name) == (b'{"a": 1}', "application/json", "sample 1")


@pytest.mark.parametrize("name", ["none", "empty"])
def test_no_requests_are_an_error_that_names_the_path(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    message = "does not exist" if name == "none" else "has no requests for predictions"
    with pytest.raises(TorchmarError, match=f"{name} {message}") as error:
        workload.read(tmp_path / name)
    assert error.value.hint
