"""torchmar.archive.collecting turns a recipe into members, each on a path of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from torchmar.archive import Archive
from torchmar.errors import ArchiveError

Make = Callable[..., Path]


def names(path: Path) -> set[str]:
    with Archive(path) as archive:
        return {member.name for member in archive.members}


def test_everything_a_recipe_names_has_its_place(make: Make) -> None:
    path = make(
        disk={"w/model.pt": "w", "net.py": "", "req.txt": "", "s/in.json": "1"},
        weights="w/model.pt",
        model_file="net.py",
        requirements="req.txt",
        labels=["cat", "dog"],
        config={"batchSize": 4},
        samples=[{"input": "s/in.json", "expect": 1}],
    )
    with Archive(path) as archive:
        model = archive.manifest.model
        assert (model.handler, model.serialized_file, model.model_file) == ("handler.py", "model.pt", "net.py")
        assert (model.requirements_file, model.config_file) == ("req.txt", "model-config.yaml")
        assert json.loads(archive.read("index_to_name.json")) == {"0": "cat", "1": "dog"}
        assert archive.config == {"batchSize": 4}
        assert [sample.input for sample in archive.samples] == ["s/in.json"]
        assert archive.read("s/in.json") == b"1"


def test_folders_keep_their_tree_without_caches(make: Make) -> None:
    disk = {"data/a.txt": "", "data/sub/a.txt": "", "data/__pycache__/x.pyc": "", "data/.DS_Store": ""}
    disk["data/.ruff_cache/x"] = ""
    members = names(make(disk=disk, files={"in": "data", "one/renamed.txt": "data/a.txt"}))
    assert {"in/a.txt", "in/sub/a.txt", "one/renamed.txt"} <= members
    assert not [name for name in members if "cache" in name or ".DS_Store" in name]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"files": {"handler.py": "b/handler.py"}}, "handler.py and .*b/handler.py would both be handler.py"),
        ({"weights": "a/x.pt", "model_file": "b/x.pt"}, "a/x.pt and .*b/x.pt would both be x.pt"),
        ({"files": {"handler.py/x": "a/x.pt"}}, "both a file and a folder"),
        ({"labels": ["a"], "files": {"index_to_name.json": "a/x.pt"}}, "a generated file and .*a/x.pt would both be"),
    ],
)
def test_two_files_never_land_on_one_path_silently(make: Make, keys: dict[str, object], message: str) -> None:
    with pytest.raises(ArchiveError, match=message):
        make(disk={"a/x.pt": "a", "b/x.pt": "b", "b/handler.py": ""}, **keys)


@pytest.mark.parametrize(
    ("handler", "disk", "carried"),
    [
        ("import torchmar_handlers.base\ndef handle(rows, context): ...", {}, True),
        ("def handle(rows, context):\n    from torchmar_handlers import base", {}, True),
        ("from lib import helper\ndef handle(rows, context): ...", {"lib/helper.py": "import torchmar_handlers"}, True),
        ("import json\n# torchmar_handlers\ndef handle(rows, context): ...", {}, False),
    ],
)
def test_the_handlers_travel_whole_when_something_imports_them(
    make: Make, handler: str, disk: dict[str, str], carried: bool
) -> None:
    members = names(make(handler, disk=disk, files={"lib": "lib"} if disk else {}))
    assert ("torchmar_handlers/base.py" in members) is carried
    assert ("torchmar_handlers/__init__.py" in members) is carried


def test_a_handler_function_is_written_as_torchserves_loader_takes_it(make: Make) -> None:
    with Archive(make("def answer(rows, context): ...", handler="handler.py:answer")) as archive:
        assert archive.manifest.model.handler == "handler:answer"


@pytest.mark.parametrize("labels", ['["cat", "dog"]', '{"0": "cat", "1": "dog"}'])
def test_labels_may_be_a_json_file(make: Make, labels: str) -> None:
    with Archive(make(disk={"names.json": labels}, labels="names.json")) as archive:
        assert json.loads(archive.read("index_to_name.json")) == {"0": "cat", "1": "dog"}


def test_a_handler_that_is_no_python_is_rejected_with_file_and_line(make: Make) -> None:
    with pytest.raises(ArchiveError, match=r"handler\.py is not Python: .*line 1"):
        make("def handle(:")
