"""Reports of load measurements as JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import bench_reports
from torchmar.errors import TorchmarError
from torchmar.load import results
from torchmar.load.results import Failure, Limit, ServerProcesses, ServerSplit


def test_a_report_is_the_same_after_it_was_written_and_read(tmp_path: Path) -> None:
    step = replace(
        bench_reports.step(),
        errors=(Failure(kind="status 503", count=2, example="one.png: Model digits has no worker"),),
        server=ServerSplit(queue_ms=1.5, batch_sizes={1: 3, 4: 2}),
        processes=ServerProcesses(count=3, cpu_cores=0.5, memory_bytes=1 << 30),
    )
    report = replace(
        bench_reports.report(step, bench_reports.step(rate=200)),
        limit=Limit(rate=150.0, interval=(150.0, 160.0), reason="requests in flight grow"),
    )
    file = tmp_path / "report.json"
    results.write(report, file)
    assert results.read(file) == report
    assert step.failed == 2
    assert json.loads(file.read_text())["schema"] == "torchmar-bench/1"


def test_pairs_of_numbers_are_on_one_line_and_texts_are_unchanged() -> None:
    step = replace(bench_reports.step(), wrong_answer="three.png: [\n 1,\n 2\n] is not [1, 2]")
    text = results.text(bench_reports.report(step))
    assert json.loads(text) == json.loads(json.dumps(results.document(bench_reports.report(step))))
    assert '"p50_interval": [19.5, 20.5],' in text
    assert "[5346, 2]" in text


def test_keys_of_later_versions_are_ignored() -> None:
    document = results.document(bench_reports.report(bench_reports.step()))
    document["later"] = 1
    document["steps"][0]["later"] = 1
    assert results.parse(document) == bench_reports.report(bench_reports.step())


def test_every_value_of_the_schema_has_a_description() -> None:
    schema = results.json_schema()
    for definition in [schema, *schema["$defs"].values()]:
        for name, value in definition["properties"].items():
            assert value.get("description"), f"{definition['title']}.{name}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a report of torchmar bench"),
        ("[]", "is not a report of torchmar bench"),
        ('{"schema": "torchmar-bench/2"}', "is not a report of torchmar bench"),
        ('{"schema": "torchmar-bench/1"}', "is not a valid report: created: Field required"),
    ],
)
def test_another_file_is_an_error_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "other.json"
    file.write_text(text)
    with pytest.raises(TorchmarError) as error:
        results.read(file)
    assert f"{file} {message}" in error.value.message


def test_a_missing_file_and_a_missing_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(TorchmarError, match="cannot be read: No such file"):
        results.read(tmp_path / "none.json")
    with pytest.raises(TorchmarError, match="cannot be written: No such file"):
        results.write(bench_reports.report(), tmp_path / "none" / "report.json")
