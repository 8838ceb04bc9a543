"""Editing of YAML with its comments."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from torchmar.errors import TorchmarError
from torchmar.yaml_editing import REMOVED, edit

RECIPE = """\
# The recipe.
name: made # a name
version: "1.0"

config: # becomes the archive's model-config.yaml
  minWorkers: 1
  batchSize: 16 # requests
  maxBatchDelay: 5 # milliseconds
  handler:
    topk: 3
    # a comment at the end of the section

# Samples.
samples:
  - {json: [1, 2], expect: 1}
"""


def test_values_change_and_comments_stay() -> None:
    text = edit(RECIPE, {("config", "batchSize"): 4, ("config", "minWorkers"): 2}, "archive.yaml")
    assert text == RECIPE.replace("minWorkers: 1", "minWorkers: 2").replace("batchSize: 16", "batchSize: 4")


def test_new_keys_are_added_at_the_end_of_their_section() -> None:
    text = edit(RECIPE, {("config", "handler", "threads"): 1, ("config", "maxWorkers"): 2}, "archive.yaml")
    assert "    topk: 3\n    threads: 1\n  maxWorkers: 2\n" in text
    assert "# a comment at the end of the section" in text
    assert text.index("maxWorkers") < text.index("# Samples.")


def test_sections_that_are_missing_are_added() -> None:
    text = edit(RECIPE, {("files", "tuning.json"): "tuning.json"}, "archive.yaml")
    assert text == RECIPE + "files:\n  tuning.json: tuning.json\n"


def test_a_key_is_removed_with_its_line() -> None:
    text = edit(RECIPE, {("config", "maxBatchDelay"): REMOVED, ("config", "stages"): REMOVED}, "archive.yaml")
    assert text == RECIPE.replace("  maxBatchDelay: 5 # milliseconds\n", "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {"config": {"batchSize": 8}}),
        ("# nothing yet\n", {"config": {"batchSize": 8}}),
        ("config: {minWorkers: 1}\n", {"config": {"minWorkers": 1, "batchSize": 8}}),
        ("config: {}\nname: x\n", {"config": {"batchSize": 8}, "name": "x"}),
        ("config: # nothing\nname: x\n", {"config": {"batchSize": 8}, "name": "x"}),
        ("name: x", {"name": "x", "config": {"batchSize": 8}}),
        ("config:\n  batchSize: {a: 1}\n", {"config": {"batchSize": 8}}),
    ],
)
def test_other_layouts(text: str, expected: dict[str, Any]) -> None:
    assert yaml.safe_load(edit(text, {("config", "batchSize"): 8}, "archive.yaml")) == expected


def test_mappings_are_written_in_one_line() -> None:
    stages = {"preprocess": 1, "inference": 2}
    text = edit(RECIPE, {("config", "stages"): stages}, "archive.yaml")
    assert "  stages: {preprocess: 1, inference: 2}\n" in text
    assert yaml.safe_load(edit(text, {("config", "stages"): REMOVED}, "x")) == yaml.safe_load(RECIPE)


@pytest.mark.parametrize("text", ["config: &a {batchSize: 1}\nother: *a\n", "config: [1, 2]\n", "- 1\n"])
def test_what_cannot_be_edited_is_an_error_with_the_values(text: str) -> None:
    with pytest.raises(TorchmarError, match=r"archive\.yaml") as caught:
        edit(text, {("config", "batchSize"): 8}, "archive.yaml")
    assert "config.batchSize: 8" in caught.value.hint
