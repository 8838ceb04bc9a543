"""Reports beside an archive and in it, as the tables of the console; files of another form are no error."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.support import bench_reports
from tests.support.packing import pack_handler
from torchmar.load import results as load_results
from torchmar.load.results import Machine
from torchmar.optimized_section import PROOF
from torchmar.optimizing.results import Agreement, Report, Row, Timing, Verdict
from torchmar.parity import Outcome
from torchmar.server.api.console import reports
from torchmar.server.api_error import ApiError

MACHINE = Machine(processor="a processor", cores=2, flags=(), system="Linux", python="3.11")


def optimization() -> Report:
    def row(variant: str, verdict: Verdict, seconds: float) -> Row:
        timing = Timing(batch_size=1, seconds=seconds, interval=(seconds, seconds), runs=9)
        agreement = Agreement(inputs=8, labels=1.0, cosine=1.0, relative_error=0.0, worst_input="a")
        return Row(
            variant=variant, title=variant, verdict=verdict, reason="why", timings=(timing,), agreement=agreement
        )

    return Report(
        name="net",
        version="1.0",
        archive="0" * 64,
        original={},
        created="2026-11-29T12:00:00Z",
        machine=MACHINE,
        threads=1,
        batch_sizes=(1,),
        requirements=(),
        inputs=8,
        calibration_inputs=0,
        rows=(row("baseline", Verdict.BASELINE, 0.01), row("int8", Verdict.CHOSEN, 0.002)),
        packages={},
        seconds=1.0,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    disk = {PROOF: optimization().to_json()}
    return pack_handler(tmp_path / "store", name="m", disk=disk, files={PROOF: PROOF})


def test_the_proof_of_an_optimisation_is_a_table(path: Path) -> None:
    (report,) = reports.listed(path)
    assert (report["name"], report["kind"], report["machine"]) == ("", "optimize", "a processor")
    assert report["sentences"][0] == "int8 is chosen: why."
    assert report["rows"][1] == ["int8", "chosen", "2 ms", "5.00 times", "100.0%", "why"]


def test_files_beside_the_archive_belong_to_it_by_their_names(path: Path) -> None:
    measured = bench_reports.report(bench_reports.step())
    parity = [{"name": "m", "cases": 9, "equal": 9, "documented": {}, "different": []}]
    assert parity[0].keys() >= {"name", "cases", "equal", "different"} <= set(Outcome.__dataclass_fields__)
    files: dict[str, Any] = {
        "m-1.0.bench.json": load_results.document(measured),
        "m-1.0.bench.html": "<p>",
        "m-1.0.other.html": "<p>",
        "m-1.0.parity.json": parity,
        "m-1.0.1.json": {},  # of version 1.0.1
        "m-1.0.1.bench.json": {},
        "m-1.0.broken.json": {"schema": "torchmar-bench/1", "steps": [{"rate": "<b>"}]},
    }
    for name, content in files.items():
        (path.parent / name).write_text(content if isinstance(content, str) else json.dumps(content))
    known = {report["name"]: report for report in reports.listed(path)}
    assert list(known) == ["", "m-1.0.bench.json", "m-1.0.broken.json", "m-1.0.parity.json", "m-1.0.other.html"]
    bench = known["m-1.0.bench.json"]
    assert (bench["kind"], bench["page"]) == ("bench", "m-1.0.bench.html")
    assert bench["rows"] == [["100/s", "0.2/s", "20 ms", "23 ms", "25 ms", "0", "valid"]]
    assert known["m-1.0.parity.json"]["rows"] == [["m", "9", "9", "0", "0"]]
    assert known["m-1.0.broken.json"]["error"] and not known["m-1.0.broken.json"]["rows"]
    assert reports.page(path, "m-1.0.bench.html") == b"<p>"
    for name in ("m-1.0.bench.json", "../m-1.0.bench.html", "none.html"):
        with pytest.raises(ApiError):
            reports.page(path, name)


def test_a_tuning_is_a_table(path: Path) -> None:
    setting = {"workers": 2, "threads": 1, "batch_size": 4, "delay_ms": 0, "preprocess": 0, "postprocess": 0}
    trial = {"setting": setting, "rate": 50.0, "latency": 0.02, "throughput": 50.0, "failed": 0.0}
    document = {
        "schema": "torchmar-tuning/1",
        "created": "2026-11-29T12:00:00+00:00",
        "machine": asdict(MACHINE),
        "target": {"statistic": "p99", "seconds": 0.03},
        "chosen": trial,
        "reasons": ["It is the best."],
        "trials": [trial],
    }
    (path.parent / "m-1.0.tuning.json").write_text(json.dumps(document))
    report = reports.listed(path)[1]
    assert report["sentences"] == [
        "2 workers, 1 thread, batch of 4 is chosen for a p99 of at most 30 ms.",
        "It is the best.",
    ]
    assert report["rows"] == [["2 workers, 1 thread, batch of 4", "50/s", "20 ms", "50/s", "0.0%"]]
