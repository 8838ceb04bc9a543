"""Archives whose answers from two engines are compared, and the requests for each."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from tests.support import pretrained, strange_archives
from tests.support.paths import ROOT
from torchmar import archive, recipe
from torchmar.parity import EnginePair, Outcome
from torchmar.parity.cases import JSON, TEXT, Case

# All archives take minutes: TORCHMAR_ALL_ARCHIVES=1 compares them.
FEW = ("clinic", "digits", "guard", "iris", "page", "speech", "topics", "vit")
SLOW = ("page",)  # seconds for an answer: only the last sample, without an image, and the requests below are compared
# The sample for many requests is the first: five seconds of speech would take a fifth of a second each.
LAST = {"speech": "samples/speech.wav"}
ALL = sorted(path.parent.name for path in (ROOT / "archives").glob("*/archive.yaml"))
COMPARED = ALL if os.environ.get("TORCHMAR_ALL_ARCHIVES") else FEW
# These get only their samples and own requests: digits, clinic, topics, scripted and the protocol's handler read
# requests alike.
READ_ALIKE = () if os.environ.get("TORCHMAR_ALL_ARCHIVES") else ("vit", "iris", "guard", "eager", "function")


def case(name: str, body: bytes = b"", **headers: str) -> Case:
    all_headers = {**TEXT, **{key.replace("_", "-"): value for key, value in headers.items()}}
    return Case(name, "POST", "/predictions/{name}", body or name.encode(), all_headers)


MODELS: dict[str, tuple[Callable[[Path], Path], tuple[Case, ...]]] = {
    # First, while the metrics of the servers are only its own.
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


def compare_model(pair: EnginePair, name: str, folder: Path) -> Outcome:
    """Compare the answers of one of `MODELS`, which is written to a folder."""
    write, cases = MODELS[name]
    return pair.archive(write(folder), corners=name not in ("hanging", "moods", "stream", *READ_ALIKE), more=cases)


def picture(name: str) -> Case:
    content = (ROOT / "archives" / name).read_bytes()
    return Case("a picture", "POST", "/predictions/{name}", content, {"Content-Type": "{type}", "Accept": "image/png"})


def line(accept: str, api: str = "predictions") -> Case:
    """Return a request with the first line of a page, which takes a third of the page's time."""
    content = io.BytesIO()
    with Image.open(ROOT / "archives" / "page" / "samples" / "scan.png") as page:
        page.crop((0, 0, page.width, 40)).save(content, "PNG")
    headers = {"Content-Type": "image/png", "Accept": accept}
    return Case(f"{api} of a line as {accept}", "POST", f"/{api}/{{name}}", content.getvalue(), headers)


def chunk(name: str, final: bool) -> Case:
    content = base64.b64encode((ROOT / "archives" / name).read_bytes()).decode()
    body = json.dumps({"audio": {"b64": content}, "state": "", "final": final, "probabilities": True}).encode()
    return Case(f"a chunk of a stream, final: {final}", "POST", "/predictions/{name}", body, JSON)


MORE = {
    "page": (line("application/json"), line("image/png"), line("image/png", "explanations")),
    "speech": (
        picture("speech/samples/speech.wav"),
        chunk("speech/samples/speech.wav", False),
        chunk("speech/samples/speech.wav", True),
    ),
}


def compare_archive(pair: EnginePair, name: str, folder: Path) -> Outcome:
    """Compare the answers of an archive of this repository, which is built in a folder."""
    path = pretrained.build(name, folder / "store")
    if name in SLOW or name in LAST:
        content, source = recipe.read(ROOT / "archives" / name)
        samples = sorted(content.samples, key=lambda sample: sample.input == LAST.get(name, ""))
        content = content.model_copy(update={"samples": samples[-1:] if name in SLOW else samples})
        path = archive.pack(archive.collect_members(content, source), path).path
    return pair.archive(path, corners=name not in (*SLOW, *READ_ALIKE), more=MORE.get(name, ()))
