"""The built-in server answers as TorchServe does, but for the differences that are documented: archives."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import pretrained, strange_archives
from tests.support.outcomes import mismatches
from tests.support.paths import ROOT, SAMPLES
from torchmar import archive, recipe
from torchmar.parity import EnginePair, engine_pair
from torchmar.parity.cases import JSON, TEXT, Case

# All archives take minutes: TORCHMAR_ALL_ARCHIVES=1 compares them.
FEW = ("clinic", "digits", "guard", "iris", "page", "speech", "topics", "vit")
SLOW = ("page",)  # a second for an answer: its last two samples are compared, and the requests below
# The sample of many requests is the first: of five seconds of speech, it would take a fifth of a second of each.
LAST = {"speech": "samples/speech.wav"}
ALL = sorted(path.parent.name for path in (ROOT / "archives").glob("*/archive.yaml"))


@pytest.fixture(scope="module")
def pair() -> Iterator[EnginePair]:
    with engine_pair() as running:
        yield running


def case(name: str, body: bytes = b"", **headers: str) -> Case:
    sent = {**TEXT, **{key.replace("_", "-"): value for key, value in headers.items()}}
    return Case(name, "POST", "/predictions/{name}", body or name.encode(), sent)


MODELS: dict[str, tuple[Callable[[Path], Path], tuple[Case, ...]]] = {
    # First, while the metrics of the servers are its own alone.
    "measures": (
        strange_archives.measures,
        (case("once"), case("twice"), Case("what was measured", "GET", "/metrics", api="metrics")),
    ),
    "function": (strange_archives.function, (case("given"),)),
    "adds": (
        strange_archives.adds,
        (
            Case("numbers", "POST", "/predictions/{name}", b"[1, 2]", JSON),
            Case("numbers explained", "POST", "/explanations/{name}", b"[1, 2]", JSON),
        ),
    ),
    "staged": (
        strange_archives.staged,
        (
            Case("numbers", "POST", "/predictions/{name}", b"[1, 2]", JSON),
            Case("a text", "POST", "/predictions/{name}", b'["a"]', JSON),
            Case("numbers explained", "POST", "/explanations/{name}", b"[1, 2]", JSON),
        ),
    ),
    "eager": (strange_archives.eager, (Case("numbers", "POST", "/predictions/{name}", b"[1, 2, 3]", JSON),)),
    "scripted": (strange_archives.scripted, (Case("numbers", "POST", "/predictions/{name}", b"[1, 2, 3]", JSON),)),
    "stream": (
        strange_archives.stream,
        tuple(case(name) for name in ("three", "none", "typed", "breaks", "three again", "dies", "three at last")),
    ),
    "hanging": (strange_archives.hanging, (case("answers"), case("hangs"), case("answers again"))),
    "moods": (
        strange_archives.moods,
        tuple(case(name, X_Given="yes") for name in strange_archives.MOOD_NAMES),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_an_archive_of_another_tool_gives_the_same_answers(pair: EnginePair, name: str, tmp_path: Path) -> None:
    write, cases = MODELS[name]
    corners = name not in ("hanging", "moods", "stream")
    assert mismatches(pair.archive(write(tmp_path), corners=corners, more=cases)) == []


def picture(name: str) -> Case:
    content = (ROOT / "archives" / name).read_bytes()
    return Case("a picture", "POST", "/predictions/{name}", content, {"Content-Type": "{type}", "Accept": "image/png"})


def chunk(name: str, final: bool) -> Case:
    content = base64.b64encode((ROOT / "archives" / name).read_bytes()).decode()
    body = json.dumps({"audio": {"b64": content}, "state": "", "final": final, "probabilities": True}).encode()
    return Case(f"a chunk of a stream, final: {final}", "POST", "/predictions/{name}", body, JSON)


MORE = {
    "page": (picture("page/samples/scan.png"),),
    "speech": (
        picture("speech/samples/speech.wav"),
        chunk("speech/samples/speech.wav", False),
        chunk("speech/samples/speech.wav", True),
    ),
}


@pytest.mark.parametrize("name", ALL if os.environ.get("TORCHMAR_ALL_ARCHIVES") else FEW)
def test_an_archive_of_this_repository_gives_the_same_answers(
    pair: EnginePair, name: str, tmp_path: Path, weights: None
) -> None:
    path = pretrained.build(name, tmp_path / "store")
    if name in SLOW or name in LAST:
        written, folder = recipe.read(ROOT / "archives" / name)
        samples = sorted(written.samples, key=lambda sample: sample.input == LAST.get(name, ""))
        written = written.model_copy(update={"samples": samples[-2:] if name in SLOW else samples})
        path = archive.pack(archive.collect_members(written, folder), path).path
    assert mismatches(pair.archive(path, corners=name not in SLOW, more=MORE.get(name, ()))) == []


def test_torchserves_own_image_handler_gives_the_same_answers(pair: EnginePair, tmp_path: Path) -> None:
    if not importlib.util.find_spec("torchvision"):
        pytest.skip("torchvision is not installed")
    image = (SAMPLES / "seven.png").read_bytes()
    more = (Case("image", "POST", "/predictions/{name}", image, {"Content-Type": "image/png"}),)
    assert mismatches(pair.archive(strange_archives.images(tmp_path), more=more)) == []


@pytest.mark.parametrize("name", strange_archives.ODD_MANIFESTS)
def test_an_archive_with_an_odd_manifest_is_registered_or_rejected_as_by_torchserve(
    pair: EnginePair, name: str, tmp_path: Path
) -> None:
    assert mismatches(pair.archive(strange_archives.odd(tmp_path, name), corners=False)) == []
