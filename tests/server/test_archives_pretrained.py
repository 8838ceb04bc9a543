"""The archives with downloaded weights answer every client, with what their models are known for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import pretrained
from tests.support.paths import ROOT
from tests.support.servers import write_config
from torchmar.engines.builtin import Builtin

IMAGENET, SENTENCES = ROOT / "archives" / "imagenet", ROOT / "archives" / "sentences"
CAT = IMAGENET / "samples" / "cat.jpg"
CATS = {"tabby", "tiger cat", "Egyptian cat"}
BEST = "Egyptian cat"


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory, weights: None) -> dict[str, Path]:
    store = tmp_path_factory.mktemp("pretrained") / "store"
    return {name: pretrained.build(name, store) for name in ("imagenet", "sentences")}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, archives: dict[str, Path]) -> Iterator[Builtin]:
    folder = tmp_path_factory.mktemp("server")
    with Builtin(write_config(folder), archives["imagenet"].parent, folder / "run") as running:
        for path in archives.values():
            running.load(path)
        yield running


def ask(server: Builtin, *arguments: object, code: int = 0) -> Any:
    """Return the answer of scripts/ask.py as JSON; its error, if it shall fail."""
    api = "management" if "--metadata" in arguments and "--protocol" not in arguments else "inference"
    grpc = getattr(server.server, f"grpc_{api}").removeprefix("grpc://")
    address = grpc if "GRPC" in arguments else getattr(server.server, api)
    command = [sys.executable, ROOT / "scripts" / "ask.py", *arguments, "--address", address]
    ran = subprocess.run(
        [*map(str, command), "--key-file", str(server.server.key_file)], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == code, ran.stderr
    return ran.stderr if code else json.loads(ran.stdout)


def test_a_cat_is_a_cat_over_every_protocol(server: Builtin) -> None:
    assert set(list(ask(server, "imagenet", CAT))[:3]) == CATS
    assert set(list(ask(server, "imagenet", CAT, "--format", "GRPC"))[:3]) == CATS
    for protocol in ("kserve-v1", "tensorflow"):
        (prediction,) = ask(server, "imagenet", CAT, "--protocol", protocol)["predictions"]
        assert BEST in (next(iter(prediction)), prediction.get("label"))
    outputs = ask(server, "imagenet", CAT, "--protocol", "kserve-v2")["outputs"]
    assert {output["name"]: output["data"] for output in outputs}["label"] == [BEST]
    for protocol in ("kserve-v2", "tensorflow"):
        assert ask(server, "imagenet", CAT, "--protocol", protocol, "--format", "GRPC")["label"] == [BEST]


def test_metadata_is_had_over_every_protocol(server: Builtin) -> None:
    assert ask(server, "imagenet", "--metadata")[0]["modelVersion"] == "1.0"
    assert ask(server, "imagenet", "--metadata", "--format", "GRPC")[0]["modelVersion"] == "1.0"
    assert ask(server, "imagenet", "--metadata", "--protocol", "kserve-v1")["name"] == "imagenet"
    for form in ("REST", "GRPC"):
        metadata = ask(server, "imagenet", "--metadata", "--protocol", "kserve-v2", "--format", form)
        assert [one["name"] for one in metadata["inputs"]] == ["image"]
        metadata = ask(server, "imagenet", "--metadata", "--protocol", "tensorflow", "--format", form)
        assert "serving_default" in json.dumps(metadata)


def test_no_image_is_refused_over_every_protocol(server: Builtin, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("no image")
    for protocol in ("torchserve", "kserve-v1", "kserve-v2", "tensorflow"):
        for form in ("REST", "GRPC") if protocol != "kserve-v1" else ("REST",):
            said = ask(server, "imagenet", text, "--protocol", protocol, "--format", form, code=1)
            assert "image" in said and said.startswith(("400: ", "INVALID_ARGUMENT: "))


def test_a_question_finds_its_paragraph(server: Builtin, tmp_path: Path) -> None:
    (tmp_path / ".torchmar").symlink_to(server.folder)
    (tmp_path / "page.md").write_text(
        "# Page\n\nBread is baked from flour, water and salt.\n\n```sh\nbake bread\n```\n\n"
        "The rollback makes the previous version\nthe default again.\n\nTrains to Vienna leave every hour.\n"
    )
    for question, line in (
        ("How do I undo a deployment?", "page.md:9  The rollback makes the previous version the default again."),
        ("When can I travel to Austria?", "page.md:12  Trains to Vienna leave every hour."),
        ("Which ingredients has a loaf?", "page.md:3  Bread is baked from flour, water and salt."),
    ):
        command = [sys.executable, SENTENCES / "similar.py", question, "page.md", "--count", "1"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.rstrip().endswith(line), ran.stdout
