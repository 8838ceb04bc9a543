"""The documented JSON Schema of reports is that of the code, and reports of real measurements follow it."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from tests.support import bench_reports
from tests.support.known_server import Behaviour, running
from tests.support.paths import ROOT
from torchmar.connection import Endpoint
from torchmar.exchange import Request
from torchmar.load import expectations, results
from torchmar.load.html_report import html
from torchmar.load.measuring import StepSpec, measure
from torchmar.load.results import Limit, Report
from torchmar.load.target import Target
from torchmar.load.workload import Case, Workload

FILE = ROOT / "docs" / "bench-report.schema.json"
SCHEMA = json.loads(FILE.read_text(encoding="utf-8"))
WORKLOAD = Workload("inputs", tuple(Case(f"{name}.txt", Request(name.encode(), "text/plain")) for name in "abc"))


@pytest.fixture(scope="module")
def measured() -> Report:
    """Return a report of an open and a closed loop on a server with errors and wrong answers."""
    steps = []
    with running(Behaviour(delay_s=0.001, error_every=50, wrong_every=30)) as server:
        target = Target(endpoint=Endpoint(inference=server.address, tokens={}), model="known")
        expected = expectations.gather(target, WORKLOAD)
        for spec in (
            StepSpec(rate=200.0, warmup_s=0.2, duration_s=2.0),
            StepSpec(kind="closed", connections=2, warmup_s=0.2, duration_s=1.0),
            StepSpec(kind="replay", times=(0.0, 0.1, 0.15), duration_s=0.3),
        ):
            steps.append(measure(target, WORKLOAD, expected, spec))
    limit = Limit(rate=200.0, interval=(200.0, 210.0), reason="requests in flight grow")
    return replace(bench_reports.report(*steps), limit=limit)


def test_the_documented_schema_is_that_of_the_code() -> None:
    # Keys may be added; then docs/bench-report.schema.json is written again. A key that changes its meaning, its type
    # or its name needs another version in results.SCHEMA.
    schema = copy.deepcopy(SCHEMA)
    assert schema.pop("$schema") == "https://json-schema.org/draft/2020-12/schema"
    assert schema == results.json_schema()
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_a_report_of_a_measurement_follows_the_documented_schema(measured: Report) -> None:
    document = json.loads(json.dumps(results.document(measured)))
    jsonschema.validate(document, SCHEMA)
    step = document["steps"][0]
    assert step["wrong_answers"] > 0
    assert step["errors"]
    assert step["windows"]
    assert step["histogram"]["count"] == step["sent"] - sum(failure["count"] for failure in step["errors"])
    assert document["steps"][1]["rate"] is None


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "torchmar-bench/2"},
        {"steps": [{"kind": "open"}]},
        {"created": 5},
        {"limit": {"rate": "fast"}},
    ],
)
def test_other_documents_do_not_follow_it(measured: Report, change: dict[str, Any]) -> None:
    document = {**json.loads(json.dumps(results.document(measured))), **change}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, SCHEMA)


def test_a_report_of_a_measurement_is_drawn(measured: Report) -> None:
    # Other programs may have made it invalid, whose latency is not drawn.
    text = html(replace(measured, steps=tuple(replace(step, valid=True) for step in measured.steps)))
    assert "wrong answers at 200/s" in text
    assert "status 503" in text
    assert "200/s: latency" in text
