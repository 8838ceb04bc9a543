"""torchmar.deployment.ab_comparison accepts a version only if it is proven to be as good as the previous one."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.servers import KilledTorchServe, write_config
from torchmar.deployment import ab_comparison, smoke_test
from torchmar.deployment.ab_comparison import Comparison, Interval
from torchmar.engines.torchserve import TorchServe
from torchmar.errors import TorchmarError
from torchmar.exchange import Request, Response

Make = Callable[..., Path]

# What it answers, and how long it takes, is in the configuration of each version.
MODEL = """
import time

class Model:
    def initialize(self, context):
        self.config = context.model_yaml_config["handler"]

    def handle(self, rows, context):
        time.sleep(self.config["seconds"])
        return [{"score": row["body"]["x"] + self.config["more"]} for row in rows]
"""
PROBES = [smoke_test.Probe(str(x), Request(b'{"x": %d}' % x, "application/json")) for x in range(8)]
VERSIONS = {"1.0": (0.004, 0.0), "1.1": (0.004, 0.0), "1.2": (0.004, 0.004), "1.3": (0.15, 0.0)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    """Run a real TorchServe that serves nothing yet."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "model_store").mkdir()
    with KilledTorchServe(write_config(folder), folder / "model_store", folder / "run") as running:
        yield running


@pytest.fixture
def registered(server: TorchServe, make: Make) -> TorchServe:
    """Register versions that are alike, answer a little otherwise, or take so long that it shows on a busy machine."""
    if "m" not in list(server.management.names()):
        for version, (seconds, more) in VERSIONS.items():
            config = {"minWorkers": 1, "maxWorkers": 1, "handler": {"seconds": seconds, "more": more}}
            make(MODEL, name="m", version=version, config=config, store=server.model_store)
            server.management.register(f"m-{version}.mar")
    return server


def compare(
    server: TorchServe,
    new: str,
    answers: str = "exact",
    bound: float = 1.0,
    probes: list[smoke_test.Probe] = PROBES,
    **more: float,
) -> Comparison:
    agree = ab_comparison.agreement(answers)
    return ab_comparison.compare(server.server, "m", "1.0", new, probes, agree, repeat=6, max_regression=bound, **more)  # type: ignore[arg-type]


def test_a_version_with_the_same_answers_passes(registered: TorchServe) -> None:
    comparison = compare(registered, "1.1")
    assert comparison.verdict == "pass"
    assert comparison.differences == ()
    assert [len(took) for took in comparison.milliseconds] == [48, 48]
    assert comparison.ratio.low <= comparison.ratio.value <= comparison.ratio.high


def test_a_version_that_takes_much_longer_is_slower(registered: TorchServe) -> None:
    comparison = compare(registered, "1.3", probes=PROBES[:4])
    assert comparison.verdict == "slower"
    assert comparison.ratio.low > 2


def test_a_version_with_other_answers_fails_unless_that_is_allowed(registered: TorchServe, tmp_path: Path) -> None:
    comparison = compare(registered, "1.2")
    assert comparison.verdict == "answers differ"
    assert len(comparison.differences) == len(PROBES)
    assert comparison.differences[0] == "0: score is 0.004, not 0.0 within 0.0"
    assert compare(registered, "1.2", "0.01").verdict == "pass"
    assert compare(registered, "1.2", max_differences=1.0).verdict == "pass"
    judge = tmp_path / "judge.py"
    judge.write_text(
        "import json\n"
        "def whole(old, new):\n"
        "    return round(json.loads(old.body)['score']) == round(json.loads(new.body)['score'])\n"
        "def never(old, new):\n    return 'I do not like it'\n"
        "def fails(old, new):\n    raise ValueError('x')\n"
    )
    assert compare(registered, "1.2", f"{judge}:whole").verdict == "pass"
    assert compare(registered, "1.1", f"{judge}:never").differences[0] == "0: I do not like it"
    with pytest.raises(TorchmarError, match=r"judge\.py:fails failed: ValueError: x"):
        compare(registered, "1.1", f"{judge}:fails")


def test_an_error_of_one_version_is_a_different_answer(registered: TorchServe) -> None:
    bad_probes = [smoke_test.Probe("bad", Request(b'{"y": 1}', "application/json"))]
    agree = ab_comparison.agreement("exact")
    comparison = ab_comparison.compare(
        registered.server, "m", "1.0", "1.1", bad_probes, agree, repeat=2, max_regression=9
    )
    assert comparison.differences == ()  # both refuse
    both = [*bad_probes, *PROBES]
    missing = ab_comparison.compare(registered.server, "m", "1.0", "9.9", both, agree, repeat=1, max_regression=9)
    assert missing.verdict == "answers differ"
    assert "status 404, not 503" in missing.differences[0]


def test_nothing_to_ask_is_no_evidence(registered: TorchServe) -> None:
    agree = ab_comparison.agreement("exact")
    with pytest.raises(TorchmarError, match="no request to compare with"):
        ab_comparison.compare(registered.server, "m", "1.0", "1.1", [], agree, repeat=1, max_regression=1)


def verdict(low: float, high: float, differences: int = 0) -> str:
    interval = Interval((low + high) / 2, low, high)
    return Comparison(
        old="1",
        new="2",
        milliseconds=((), ()),
        requests=9,
        differences=("x",) * differences,
        allowed=1,
        ratio=interval,
        max_regression=0.05,
    ).verdict


def test_only_proven_claims_pass() -> None:
    assert verdict(0.9, 1.05) == "pass"
    assert verdict(0.9, 1.06) == "undecided"
    assert verdict(1.06, 1.2) == "slower"
    assert verdict(0.9, 1.0, differences=1) == "pass"
    assert verdict(0.9, 1.0, differences=2) == "answers differ"


@pytest.mark.parametrize("ratio", [0.8, 1.0, 1.25])
def test_the_interval_contains_the_true_ratio_at_its_confidence_level(ratio: float) -> None:
    # Lognormal latencies, whose median is known; the pairs share what the machine does.
    drawn = random.Random(1)
    held = 0
    for _ in range(60):
        shared = [drawn.gauss(0, 0.2) for _ in range(60)]
        old = [math.exp(value + drawn.gauss(0, 0.3)) for value in shared]
        new = [ratio * math.exp(value + drawn.gauss(0, 0.3)) for value in shared]
        comparison = ab_comparison.ratio_of_medians(new, old, drawn, resamples=300)
        held += comparison.low <= ratio <= comparison.high
    assert held >= 51  # of 60; 95 % would be 57, and fewer than 51 come once in three hundred


def test_percentiles_are_values_that_were_measured() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [ab_comparison.percentile(values, share) for share in (0.0, 0.5, 0.9, 1.0)] == [1.0, 3.0, 5.0, 5.0]


@pytest.mark.parametrize(
    ("old", "new", "answers", "difference"),
    [
        (b"[1, 2]", b"[1,2]", "exact", ""),
        (b"[1, 2]", b"[1, 2.005]", "0.01", ""),
        (b"[1, 2]", b"[1, 2.05]", "0.01", "[1] is 2.05, not 2 within 0.01"),
        (b'{"a": 1}', b'{"a": 1, "b": 2}', "exact", "before, the answer has no 'b'"),
        (b'{"a": 1, "b": 2}', b'{"a": 1}', "exact", "the answer has no 'b'"),
        (b"\x89PNG1", b"\x89PNG2", "0.5", "5 bytes that differ from the 5 bytes before"),
        (b"null", b"null", "exact", ""),
        (b"null", b"3", "exact", "before, the answer is null, not 3"),
    ],
)
def test_answers_are_compared_as_json_or_byte_by_byte(old: bytes, new: bytes, answers: str, difference: str) -> None:
    assert ab_comparison.agreement(answers)(Response(200, old), Response(200, new)) == difference


def test_the_function_of_the_documentation_compares_labels(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python[^\n]*\n(.*?)```", (ROOT / "docs" / "how-to" / "deploy.md").read_text(), re.DOTALL)
    (tmp_path / "compare.py").write_text(code)
    label = ab_comparison.agreement(f"{tmp_path / 'compare.py'}:label")
    assert not label(Response(200, b'{"7": 0.97, "9": 0.01}'), Response(200, b'{"7": 0.8, "1": 0.1}'))
    assert label(Response(200, b'{"7": 0.97, "9": 0.01}'), Response(200, b'{"1": 0.8, "7": 0.1}')) == "1, not 7"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        *((text, f"'{text}' is no way to compare answers") for text in ("roughly", "-1", "nan", "inf")),
        ("no_such.py:f", r"no_such\.py"),
    ],
)
def test_a_way_to_compare_that_does_not_exist_is_an_error(text: str, reason: str) -> None:
    with pytest.raises(TorchmarError, match=reason):
        ab_comparison.agreement(text)
