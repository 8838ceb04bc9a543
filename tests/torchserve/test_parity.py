"""torchmar.parity finds every difference between two servers, and between ours and TorchServe only those meant."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.support import strange_archives
from tests.support.command import torchmar
from tests.support.paths import ROOT
from torchmar import archive
from torchmar.parity import KnownDifference, compare
from torchmar.parity.cases import JSON, TEXT, Case
from torchmar.parity.comparing import Outcome
from torchmar.parity.engine_client import RawResponse
from torchmar.parity.responses import Mismatch, deviations

# All archives take minutes: TORCHMAR_ALL_ARCHIVES=1 asks for them.
FEW = ("digits", "iris", "topics")
ALL = sorted(path.parent.name for path in (ROOT / "archives").glob("*/archive.yaml"))


def show(outcomes: Iterable[Outcome]) -> list[str]:
    return [
        f"{one.case}: {one.aspect}: {one.first!r}, not {one.second!r}"
        for outcome in outcomes
        for one in outcome.different
    ]


def said(body: bytes = b"", status: int = 200, reason: str = "OK", **headers: str) -> RawResponse:
    return RawResponse(status, reason, {name.replace("_", "-"): value for name, value in headers.items()}, body)


DESCRIBED = b'[{"modelName": "m", "workers": [{"id": "%d", "startTime": "%d", "pid": %d, "gpu": false}]}]'
METRICS = b"""# HELP ts_inference_requests_total Requests
# TYPE ts_inference_requests_total counter
ts_inference_requests_total{model_name="m",} 3
%s{model_name="m",} %d
"""


@pytest.mark.parametrize(
    ("first", "second", "aspects"),
    [
        (said(b"a"), said(b"a"), []),
        (said(b"a"), said(b"b"), ["body"]),
        (said(b'{"a": 1, "b": 2.0}'), said(b'{\n "b": 2.0005,\n "a": 1}'), []),
        (said(b"[0.5]"), said(b"[0.502]"), ["body"]),
        (said(b"[1]"), said(b"[1.0]"), ["body"]),
        (said(b"[100000000000000000001]"), said(b"[100000000000000000002]"), ["body"]),
        (said(b"[1, 2]"), said(b"[1]"), ["body"]),
        (said(b'{"a": null}'), said(b"{}"), ["body"]),
        (said(b"[true]"), said(b"[1]"), ["body"]),
        (said(b"[NaN]"), said(b"[NaN]"), []),
        (said(b"\xff\x00"), said(b"\xff\x01"), ["body"]),
        (said(status=404, reason="Not Found"), said(status=400, reason="Bad Request"), ["status"]),
        (said(), said(reason="Fine"), ["reason"]),
        (said(reason=""), said(), []),
        (said(content_type="text/plain"), said(), ["content type"]),
        (said(x_one="1", content_length="3"), said(x_one="2", content_length="4"), ["x-one"]),
        (
            said(x_request_id="9b2c5f0e-0000-4000-8000-000000000000"),
            said(x_request_id="9b2c5f0e-0000-4000-8000-111111111111"),
            [],
        ),
        (said(x_request_id="9b2c5f0e-0000-4000-8000-000000000000"), said(x_request_id="7"), ["x-request-id"]),
        (said(DESCRIBED % (9000, 1, 2)), said(DESCRIBED % (9001, 3, 4)), []),
        (said(b'{"id": 1}'), said(b'{"id": 2}'), ["body"]),
        (said(METRICS % (b"ts_queue_latency", 100)), said(METRICS % (b"ts_queue_latency", 200)), []),
        (said(METRICS % (b"ts_queue_latency", 100)), said(METRICS % (b"ts_queue", 100)), ["body"]),
    ],
)
def test_what_has_to_differ_is_left_out_and_all_else_is_told(
    first: RawResponse, second: RawResponse, aspects: list[str]
) -> None:
    assert [one.aspect for one in deviations("m/case", first, second, 1e-3)] == aspects


def test_of_a_large_body_the_part_that_differs_is_told() -> None:
    first, second = (json.dumps({"same": "x" * 1000, "a": {"same": 1, "b": number}}).encode() for number in (1, 2))
    (one,) = deviations("m/case", said(first), said(second), 1e-3)
    assert (one.first, one.second) == ("{'a': {'b': 1}}", "{'a': {'b': 2}}")


def test_a_difference_explains_what_it_is_about_and_nothing_else() -> None:
    meant = KnownDifference(
        "code", "no model", "400", "404", "it is gone", "m/no .*", "status", first="400", second="404"
    )
    assert meant.explains(Mismatch("m/no model", "status", "400", "404"))
    for other in (
        Mismatch("m/a model", "status", "400", "404"),
        Mismatch("other/m/no model", "status", "400", "404"),
        Mismatch("m/no model", "body", "400", "404"),
        Mismatch("m/no model", "status", "400", "500"),
        Mismatch("m/no model", "status", "200", "404"),
    ):
        assert not meant.explains(other)


def test_one_server_is_like_itself(digits: Path, tmp_path: Path) -> None:
    ran = torchmar("parity", digits, "--engines", "torchserve,torchserve", cwd=tmp_path)
    heading, _, *rows = [line.split() for line in ran.stdout.splitlines()]
    assert heading == ["archive", "cases", "equal", "documented", "different"]
    assert [row[0] for row in rows] == ["protocol", "digits"]
    for _, cases, equal, documented, different in rows:
        assert int(cases) == int(equal) > 100
        assert (documented, different) == ("0", "0")
    assert max(map(len, ran.stdout.splitlines())) <= 80


def test_engines_that_nobody_knows_are_a_mistake_in_the_command_line(tmp_path: Path) -> None:
    for engines in ("torchserve", "torchserve,triton", "torchserve,builtin,builtin"):
        assert "name two of" in torchmar("parity", "--engines", engines, cwd=tmp_path, code=2).stderr


def asked(name: str, body: bytes = b"", **more: str) -> Case:
    headers = {**TEXT, **{key.replace("_", "-"): value for key, value in more.items()}}
    return Case(name, "POST", "/predictions/{name}", body or name.encode(), headers)


def test_the_protocol_is_torchserves() -> None:
    assert show(compare([])) == []


@pytest.mark.parametrize("name", ALL if os.environ.get("TORCHMAR_ALL_ARCHIVES") else FEW)
def test_an_archive_of_ours_answers_alike(name: str, tmp_path: Path, weights: None) -> None:
    built = archive.build(ROOT / "archives" / name, tmp_path / "store").path
    assert show(compare([built], protocol=False)) == []


MODELS: dict[str, tuple[Callable[[Path], Path], tuple[Case, ...]]] = {
    "function": (strange_archives.function, (asked("asked"),)),
    "adds": (
        strange_archives.adds,
        (
            Case("numbers", "POST", "/predictions/{name}", b"[1, 2]", JSON),
            Case("numbers explained", "POST", "/explanations/{name}", b"[1, 2]", JSON),
        ),
    ),
    "eager": (strange_archives.eager, (Case("numbers", "POST", "/predictions/{name}", b"[1, 2, 3]", JSON),)),
    "scripted": (strange_archives.scripted, (Case("numbers", "POST", "/predictions/{name}", b"[1, 2, 3]", JSON),)),
    "stream": (
        strange_archives.stream,
        tuple(asked(name) for name in ("three", "none", "typed", "breaks", "three again", "dies", "three at last")),
    ),
    "measures": (
        strange_archives.measures,
        (asked("once"), asked("twice"), Case("what was measured", "GET", "/metrics", api="metrics")),
    ),
    "moods": (
        strange_archives.moods,
        tuple(asked(name, X_Asked="yes") for name in strange_archives.MOOD_NAMES),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_an_archive_of_others_answers_alike(name: str, tmp_path: Path) -> None:
    write, cases = MODELS[name]
    corners = name not in ("moods", "stream")
    assert show(compare([write(tmp_path)], protocol=False, corners=corners, more={name: cases})) == []


def test_torchserves_own_image_handler_answers_alike(tmp_path: Path) -> None:
    if not importlib.util.find_spec("torchvision"):
        pytest.skip("torchvision is not installed")
    image = (ROOT / "archives" / "digits" / "samples" / "seven.png").read_bytes()
    case = Case("image", "POST", "/predictions/{name}", image, {"Content-Type": "image/png"})
    assert show(compare([strange_archives.images(tmp_path)], protocol=False, more={"images": (case,)})) == []


@pytest.mark.parametrize(
    "config",
    [
        {"disable_token_authorization": "true"},
        {"enable_model_api": "false"},
        {"service_envelope": "json"},
        {"service_envelope": "kserve"},
        {"service_envelope": "kservev2"},
        {"metrics_mode": "log"},
    ],
    ids=lambda config: "=".join(*config.items()),
)
def test_a_configuration_changes_both_alike(config: dict[str, str]) -> None:
    assert show(compare([], config=config)) == []


@pytest.mark.parametrize("checked", ["true", "false"])
def test_what_does_not_load_is_told_alike(checked: str, tmp_path: Path) -> None:
    paths = [strange_archives.broken(tmp_path, name) for name in strange_archives.BROKEN]
    config = {"torchmar_check_archives": checked}
    assert show(compare(paths, protocol=False, corners=False, config=config)) == []


def test_what_is_hardly_an_archive_is_told_alike(tmp_path: Path) -> None:
    paths = [strange_archives.odd(tmp_path, name) for name in strange_archives.ODD_MANIFESTS]
    assert show(compare(paths, protocol=False, corners=False)) == []
