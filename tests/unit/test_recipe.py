"""torchmar.recipe reads archive.yaml strictly and names every problem with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.support.paths import DIGITS
from torchmar import recipe
from torchmar.errors import RecipeError

GOOD = """\
name: digits
version: "1.0"
handler: image_classifier
"""


def problems(text: str) -> list[tuple[int, str]]:
    with pytest.raises(RecipeError) as caught:
        recipe.parse(text)
    return [(problem.line, problem.show()) for problem in caught.value.problems]


@pytest.mark.usefixtures("weights")
def test_the_digits_recipe_is_read() -> None:
    read, folder = recipe.read(DIGITS)
    assert folder == DIGITS
    assert (read.name, read.version) == ("digits", "1.0")
    assert read.labels == [str(digit) for digit in range(10)]
    assert read.config.batchSize == 8
    assert len(read.samples) == 11


@pytest.mark.parametrize(
    ("more", "line", "message"),
    [
        ("wieghts: x", 4, "no key is called 'wieghts'; did you mean 'weights'?"),
        ("config:\n  batch_size: 8", 5, "no key is called 'batch_size'; did you mean 'batchSize'?"),
        ("config:\n  batchSize: 0", 5, "greater than 0"),
        ("config:\n  batchSize: '8'", 5, "valid integer"),
        ("config:\n  minWorkers: 1", 4, "set both minWorkers and maxWorkers"),
        ("config: {minWorkers: 2, maxWorkers: 1}", 4, "less than minWorkers"),
        ("config:\n  stages: {inference: 2}", 5, "neither preprocess nor postprocess is given"),
        ("config:\n  stages: {preprocess: 1, postprocess: 0}", 5, "greater than 0"),
        ("config:\n  deviceType: tpu", 5, "'cpu' or 'gpu'"),
        ("samples:\n  - input: a.png\n  - {}", 6, "exactly one of input and json"),
        ("samples:\n  - input: ../a.png", 5, "without '..'"),
        ("samples:\n  - input: a.png\n    expct: 1", 6, "did you mean 'expect'?"),
        ("files:\n  MAR-INF/x: y", 5, "MAR-INF belongs to the archive"),
        ("files:\n  /etc/x: y", 5, "relative"),
        ("labels: 7", 4, "labels are a list"),
        ("labels: {cat: 0}", 4, "labels are a list"),
        ("name: other", 4, "given twice"),
        ("description: [1]", 4, "valid string"),
    ],
)
def test_a_problem_has_its_line(more: str, line: int, message: str) -> None:
    (problem,) = problems(GOOD + more + "\n")
    assert problem[0] == line
    assert message in problem[1]


def test_a_version_without_quotes_is_rejected_as_it_was_written() -> None:
    assert problems(GOOD.replace('"1.0"', "1.10")) == [
        (2, 'archive.yaml:2: version: write the version in quotes: "1.10"')
    ]


def test_all_problems_are_reported_at_once_in_the_order_of_their_lines() -> None:
    listed = problems("name: a/b\nversion: 1\nhandlr: x\nconfig:\n  maxBatchDelay: -1\n  batchsize: 2\n")
    assert [line for line, _ in listed] == sorted(line for line, _ in listed)
    assert len(listed) == 6  # name, version, handlr, no handler, maxBatchDelay, batchsize


@pytest.mark.parametrize("text", ["", "[]", "a: [", "a: b: c", "\x00", "- x", "when: 2026-13-45"])
def test_files_that_are_no_recipes_are_rejected(text: str) -> None:
    assert problems(text)


def test_a_section_of_the_handlers_own_passes_through_in_order() -> None:
    read = recipe.parse(GOOD + "config:\n  maxBatchDelay: 5\n  mine: {b: 1, a: [2]}\n  batchSize: 2\n")
    assert yaml.safe_load(read.config.to_yaml()) == {"batchSize": 2, "maxBatchDelay": 5, "mine": {"b": 1, "a": [2]}}


def test_missing_files_are_problems_of_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "archive.yaml").write_text(
        'name: a\nversion: "1"\nhandler: h.py\nweights: w.pt\ngenerated_by: train.py\n'
        "files: {x: y}\nsamples: [{input: s}]\n"
    )
    with pytest.raises(RecipeError) as caught:
        recipe.read(tmp_path)
    assert [(p.line, p.place) for p in caught.value.problems] == [
        (3, "handler"),
        (4, "weights"),
        (6, "files.x"),
        (7, "samples.0.input"),
    ]
    assert caught.value.problems[1].hint == f"{tmp_path}/train.py makes it"


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        ("torchmar_handlers.image_clasifier", "torchmar has no handler"),
        ("torchmar_handlers.heatmap", "torchmar has no handler"),
        ("imageclassifier", "no handler is called"),
        ("missing.py:handle", "there is no file"),
    ],
)
def test_a_missing_handler_is_reported(tmp_path: Path, handler: str, message: str) -> None:
    (tmp_path / "archive.yaml").write_text(f'name: a\nversion: "1"\nhandler: {handler}\n')
    with pytest.raises(RecipeError, match=message):
        recipe.read(tmp_path / "archive.yaml")


def test_a_missing_recipe_is_an_error_without_a_traceback(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="does not exist"):
        recipe.read(tmp_path / "nothing.yaml")


def test_an_archive_in_the_place_of_a_recipe_is_named_as_no_text(tmp_path: Path) -> None:
    file = tmp_path / "made-1.0.mar"
    file.write_bytes(b"PK\x03\x04\xc3\x28")
    with pytest.raises(RecipeError, match=r"is no text in UTF-8, which YAML is \(a recipe is a file called"):
        recipe.read(file)


def test_the_schema_names_every_key_and_is_json() -> None:
    document = json.loads(json.dumps(recipe.schema()))
    assert set(document["properties"]) == set(recipe.Recipe.model_fields)
    assert document["additionalProperties"] is False
    assert "batchSize" in document["$defs"]["ServerConfig"]["properties"]
