"""torchmar bench compare: a table, JSON, and an exit code for scripts."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import bench_reports
from tests.support.command import torchmar
from tests.support.paths import ROOT
from torchmar.load import results
from torchmar.load.results import Failure, Report, Step


def step(rate: float, p99: float = 25.0) -> Step:
    base = bench_reports.step(rate, p99)
    assert base.latency_ms
    latency = replace(base.latency_ms, p50_interval=(19.9, 20.1), p95_interval=(22.9, 23.1))
    latency = replace(latency, p99_interval=(p99 - 0.1, p99 + 0.1))
    return replace(base, sent=2000, throughput=rate, throughput_interval=(rate * 0.99, rate * 1.01), latency_ms=latency)


OLD = bench_reports.report(step(50), step(100), step(200))


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    """Return a folder with the report ``old.json`` and some to compare it with."""
    failing = replace(step(100), errors=(Failure(kind="timeout", count=100, example="seven.png: timeout"),))
    invalid = replace(step(200), valid=False, invalid_reasons=("sends were late (p99 14 ms)",))
    for name, report in {
        "old": OLD,
        "same": OLD,
        "slow": bench_reports.report(step(50), step(100), step(200, p99=31.0)),
        "spoiled": bench_reports.report(step(50), failing, invalid, step(400)),
        "elsewhere": replace(OLD, machine=replace(OLD.machine, cores=64)),
        "others": bench_reports.report(step(7)),
    }.items():
        results.write(report, tmp_path / f"{name}.json")
    return tmp_path


def figures(**values: tuple[float, float]) -> Report:
    """Return a report of one step: of each figure its value, and half of the width of its interval."""
    base = bench_reports.step(200)
    bounds = {name: (value - half, value + half) for name, (value, half) in values.items()}
    throughput = values.pop("throughput")[0]
    assert base.latency_ms
    latency = replace(base.latency_ms, **{name: value for name, (value, _) in values.items()})
    latency = replace(latency, **{f"{name}_interval": bounds[name] for name in values})
    return bench_reports.report(
        replace(base, throughput=throughput, throughput_interval=bounds["throughput"], latency_ms=latency)
    )


def test_the_documentation_shows_what_is_printed(tmp_path: Path) -> None:
    before = figures(throughput=(200, 1.3), p50=(8.12, 0.1), p95=(14.9, 0.3), p99=(21.5, 0.6))
    after = figures(throughput=(200, 1.2), p50=(8.2, 0.1), p95=(15.6, 0.3), p99=(25.8, 0.8))
    results.write(before, tmp_path / "before.json")
    results.write(after, tmp_path / "after.json")
    page = (ROOT / "docs" / "how-to" / "measure.md").read_text(encoding="utf-8")
    command, shown = re.findall(r"\$ torchmar (bench compare .*)\n((?:.*\n)*?)\$ echo", page)[0]
    assert torchmar(*command.split(), cwd=tmp_path, code=1).stdout == shown


def test_equal_reports_pass(reports: Path) -> None:
    text = torchmar("bench", "compare", "old.json", "same.json", cwd=reports).stdout
    assert text.splitlines()[-1] == "passed: no figure is shown to be worse by more than 5 %"
    assert text.count(" same") == 12


def test_a_regression_exits_with_1_and_is_named_last(reports: Path) -> None:
    text = torchmar("bench", "compare", "old.json", "slow.json", cwd=reports, code=1).stdout
    assert text.splitlines()[-1] == "failed: worse by more than 5 %: p99 ms at 200/s"
    (line,) = [line for line in text.splitlines() if "regression" in line]
    assert line.split() == ["p99", "ms", "25.0", "31.0", "1.240", "1.234", "–", "1.246", "regression"]
    torchmar("bench", "compare", "old.json", "slow.json", "--max-regression", "25%", cwd=reports)


def test_invalid_steps_are_refused_with_their_reason(reports: Path) -> None:
    text = torchmar("bench", "compare", "old.json", "spoiled.json", cwd=reports, code=1).stdout
    assert "200/s is not compared: the new one is not valid: sends were late (p99 14 ms)" in text
    assert "only now: 400/s" in text
    assert text.splitlines()[-1] == "failed: worse by more than 5 %: failed at 100/s; not compared: 200/s"


def test_the_table_fits_into_80_columns(reports: Path) -> None:
    text = torchmar("bench", "compare", "old.json", "spoiled.json", cwd=reports, code=1).stdout
    assert max(map(len, text.partition("\n\n")[0].splitlines())) <= 80


def test_json_has_every_figure(reports: Path) -> None:
    ran = torchmar("bench", "compare", "old.json", "spoiled.json", "--json", cwd=reports, code=1)
    document = json.loads(ran.stdout)
    assert not document["passed"]
    assert [step["label"] for step in document["steps"]] == ["50/s", "100/s", "200/s"]
    changes = {change["figure"]: change for change in document["steps"][1]["changes"]}
    assert set(changes) == {"answers/s", "p50 ms", "p95 ms", "p99 ms", "failed"}
    assert changes["p50 ms"]["ratio"]["value"] == 1
    assert changes["failed"]["verdict"] == "regression"
    assert document["steps"][2]["refused"]


def test_other_machines_are_compared_only_if_that_is_allowed(reports: Path) -> None:
    ran = torchmar("bench", "compare", "old.json", "elsewhere.json", cwd=reports, code=1)
    assert not ran.stdout
    assert "not comparable: the machines differ: a processor with 2 cores, a processor with 64 cores" in ran.stderr
    assert "--allow-different" in ran.stderr
    text = torchmar("bench", "compare", "old.json", "elsewhere.json", "--allow-different", cwd=reports).stdout
    assert text.startswith("the machines differ: ")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("old.json", "none.json"), 1, "none.json cannot be read: No such file or directory"),
        (("old.json", "text.json"), 1, "text.json is not a report of torchmar bench"),
        (
            ("old.json", "others.json"),
            1,
            "have no step in common: old.json has 50/s, 100/s, 200/s; others.json has 7/s",
        ),
        (("old.json", "same.json", "--max-regression", "much"), 2, "'much' is no share: 5%, or 0.05"),
        (("old.json",), 2, "Missing argument 'NEW.json'"),
    ],
)
def test_wrong_use_is_an_error_without_a_traceback(
    reports: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    (reports / "text.json").write_text("[]")
    error = torchmar("bench", "compare", *arguments, cwd=reports, code=code).stderr
    assert message in " ".join(error.replace("│", " ").split())
    assert "Traceback" not in error
