"""torchmar.parity reports every difference between two responses but those that have to differ."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.command import torchmar
from torchmar.parity import KnownDifference, documented
from torchmar.parity.engine_client import RawResponse
from torchmar.parity.responses import Mismatch, mismatches


def response(body: bytes = b"", status: int = 200, reason: str = "OK", **headers: str) -> RawResponse:
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
        (response(b"a"), response(b"a"), []),
        (response(b"a"), response(b"b"), ["body"]),
        (response(b'{"a": 1, "b": 2.0}'), response(b'{\n "b": 2.0005,\n "a": 1}'), []),
        (response(b"[0.5]"), response(b"[0.502]"), ["body"]),
        (response(b"[1]"), response(b"[1.0]"), ["body"]),
        (response(b"[100000000000000000001]"), response(b"[100000000000000000002]"), ["body"]),
        (response(b"[1, 2]"), response(b"[1]"), ["body"]),
        (response(b'{"a": null}'), response(b"{}"), ["body"]),
        (response(b"[true]"), response(b"[1]"), ["body"]),
        (response(b"[NaN]"), response(b"[NaN]"), []),
        (response(b'["2026-01-01T00:00:00.123+00:00"]'), response(b'["2026-01-01T00:00:01Z"]'), []),
        (response(b'["2026-01-01T00:00:00"]'), response(b'["2026-01-01T00:00:01"]'), ["body"]),
        (response(b"\xff\x00"), response(b"\xff\x01"), ["body"]),
        (response(status=404, reason="Not Found"), response(status=400, reason="Bad Request"), ["status"]),
        (response(), response(reason="Fine"), ["reason"]),
        (response(reason=""), response(), []),
        (response(content_type="text/plain"), response(), ["content type"]),
        (response(x_one="1", content_length="3"), response(x_one="2", content_length="4"), ["x-one"]),
        (
            response(x_request_id="9b2c5f0e-0000-4000-8000-000000000000"),
            response(x_request_id="9b2c5f0e-0000-4000-8000-111111111111"),
            [],
        ),
        (response(x_request_id="9b2c5f0e-0000-4000-8000-000000000000"), response(x_request_id="7"), ["x-request-id"]),
        (response(DESCRIBED % (9000, 1, 2)), response(DESCRIBED % (9001, 3, 4)), []),
        (response(b'{"id": 1}'), response(b'{"id": 2}'), ["body"]),
        (response(METRICS % (b"ts_queue_latency", 100)), response(METRICS % (b"ts_queue_latency", 200)), []),
        (response(METRICS % (b"ts_queue_latency", 100)), response(METRICS % (b"ts_queue", 100)), ["body"]),
    ],
)
def test_expected_differences_are_left_out_and_others_are_reported(
    first: RawResponse, second: RawResponse, aspects: list[str]
) -> None:
    assert [mismatch.aspect for mismatch in mismatches("m/case", first, second, 1e-3)] == aspects


def test_of_a_large_body_the_part_that_differs_is_shown() -> None:
    first, second = (json.dumps({"same": "x" * 1000, "a": {"same": 1, "b": number}}).encode() for number in (1, 2))
    (mismatch,) = mismatches("m/case", response(first), response(second), 1e-3)
    assert (mismatch.first, mismatch.second) == ("{'a': {'b': 1}}", "{'a': {'b': 2}}")


def test_a_documented_difference_matches_only_its_own_cases() -> None:
    meant = KnownDifference(
        id="code",
        what="no model",
        torchserve="400",
        builtin="404",
        reason="it is gone",
        cases="m/no .*",
        aspects="status",
        first="400",
        second="404",
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


def test_where_replicas_run_is_a_documented_difference_between_the_built_in_server_and_a_cluster() -> None:
    one, none = "{'node': '10.0.0.2 (a1)', 'device': 'cpu'}", "{}"
    where = Mismatch("m/describe", "body", f"[{{'workers': [{none}, {none}]}}]", f"[{{'workers': [{one}, {one}]}}]")
    assert (known := documented(where, ("builtin", "ray"))) and known.id == "replicas"
    assert not documented(where, ("torchserve", "builtin"))
    assert not documented(replace(where, second=where.second.replace("}]", ", 'gpu': True}]")), ("builtin", "ray"))


def test_one_server_is_like_itself(digits: Path, tmp_path: Path) -> None:
    ran = torchmar("parity", digits, "--engines", "builtin,builtin", cwd=tmp_path)
    heading, _, *rows = [line.split() for line in ran.stdout.splitlines()]
    assert heading == ["archive", "cases", "equal", "documented", "different"]
    assert [row[0] for row in rows] == ["protocol", "digits"]
    for _, cases, equal, *others in rows:
        assert int(cases) == int(equal) > 100
        assert others == ["0", "0"]
    assert max(map(len, ran.stdout.splitlines())) <= 80


def test_anything_but_two_known_engines_is_a_mistake_in_the_command_line(tmp_path: Path) -> None:
    for engines in ("torchserve", "torchserve,triton", "torchserve,builtin,builtin"):
        assert "name two of" in torchmar("parity", "--engines", engines, cwd=tmp_path, code=2).stderr
