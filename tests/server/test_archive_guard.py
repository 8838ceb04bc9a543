"""The archive guard: an application behind its model blocks attacks, and explanations mark the injection."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import pretrained
from tests.support.guarded_requests import check, sender
from tests.support.paths import ROOT
from tests.support.servers import write_config
from tests.support.wsgi import serving
from torchmar import sample_check
from torchmar.connection import Endpoint
from torchmar.engines.builtin import Builtin
from torchmar.guard import Guard, WsgiGuard, as_text
from torchmar.inference import InferenceClient

SAMPLES = ROOT / "archives" / "guard" / "samples"
UNION = "/products?id=7' UNION SELECT login, password FROM users--"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, weights: None) -> Path:
    return pretrained.build("guard", tmp_path_factory.mktemp("guard") / "store")


@pytest.fixture(scope="module")
def model(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    folder = tmp_path_factory.mktemp("server")
    with Builtin(write_config(folder), built.parent, folder / "run") as running:
        running.load(built)
        yield running.server


def test_samples_are_answered_alone_and_together(built: Path) -> None:
    assert sample_check.run_samples(built).problems == ()


def test_an_application_behind_the_model_blocks_attacks(model: Endpoint) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "application/octet-stream")])
        return [environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))]

    guard = Guard(model, time_limit_s=10, on_failure="block")
    with serving(WsgiGuard(application, guard)) as port:
        check(sender(port))
    guard.close()


@pytest.mark.parametrize(
    "target",
    [
        UNION.replace(" ", "+"),
        UNION.replace(" ", "%20").replace("'", "%27"),
        UNION.replace(" ", "%2520").replace("'", "%2527"),
        UNION.replace(" ", "/**/").replace("SELECT", "sElEcT"),
        UNION.replace(" ", "%0a"),
        UNION.replace("'", "&#39;").replace(" ", "%09"),
    ],
)
def test_an_attack_is_found_however_it_is_encoded(model: Endpoint, target: str) -> None:
    with InferenceClient(model) as client:
        assert client.predict("guard", as_text("GET", target))["attack"] > 0.9


def test_an_explanation_marks_the_characters_of_the_injection(model: Endpoint) -> None:
    text = (SAMPLES / "sql.txt").read_text()
    with InferenceClient(model) as client:
        answer = client.explain("guard", text)
        picture = client.explain("guard", text, accept="image/png")
    assert answer["label"] == "attack"
    tokens = sorted(answer["tokens"], key=lambda token: token["start"])
    assert all(token["text"] == text[token["start"] : token["end"]] for token in tokens)
    assert "%27" in [token["text"] for token in tokens]
    start, end = text.index("7%27"), text.index("\n")
    inside = sum(token["value"] for token in tokens if start <= token["start"] < end)
    outside = sum(token["value"] for token in tokens if not start <= token["start"] < end)
    assert inside > 2 * abs(outside)
    assert picture.startswith(b"\x89PNG")
