"""``torchmar bench NAME`` on a server of known behaviour."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.command import torchmar
from tests.support.known_server import Behaviour, running
from torchmar.load import results

_QUICK = ("--duration", "1", "--warmup", "0.2", "--arrivals", "constant")


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    folder = tmp_path / "inputs"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.txt").write_text(name)
    return folder


def _bench(server: str, inputs: Path, *options: str, code: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command; whether a step is valid, and with that the exit code, depends on the machine's other load."""
    command = [sys.executable, "-m", "torchmar", "bench", "known", "--address", server, "--requests", str(inputs)]
    env = {**os.environ, "COLUMNS": "80"}
    ran = subprocess.run([*command, *options], cwd=inputs.parent, capture_output=True, text=True, timeout=120, env=env)
    assert ran.returncode in ((0, 1) if code is None else (code,)), ran.stdout + ran.stderr
    assert "Traceback" not in ran.stderr
    return ran


def test_steps_are_measured_at_each_rate_and_reported_as_json_and_as_a_page(inputs: Path) -> None:
    with running() as server:
        ran = _bench(server.address, inputs, "--rate", "20,40", *_QUICK, "--json", "-o", "r.json", "--html", "r.html")
    report = results.parse(json.loads(ran.stdout))
    assert report == results.read(inputs.parent / "r.json")
    assert [(step.kind, step.rate, step.sent, step.completed) for step in report.steps] == [
        ("open", 20.0, 20, 20),
        ("open", 40.0, 40, 40),
    ]
    assert report.complete
    assert (report.requests.count, report.requests.compared) == (2, 2)
    assert report.target.local
    assert all(step.processes is not None and step.processes.count == 1 for step in report.steps)
    assert (ran.returncode == 0) == all(step.valid for step in report.steps)
    assert "<svg" in (inputs.parent / "r.html").read_text()


def test_the_table_names_steps_and_withholds_the_figures_of_invalid_ones(inputs: Path) -> None:
    with running() as server:
        ran = _bench(server.address, inputs, "--connections", "2", *_QUICK)
    assert "2 requests of 1 bytes" in ran.stdout
    assert "closed loop; latency in ms from sending" in ran.stdout
    row, *_ = [line for line in ran.stdout.splitlines() if line.startswith("2 connections")]  # remarks follow
    assert ("invalid" in row) == (ran.returncode == 1)
    assert len(row) <= 100


def test_a_busy_neighbour_makes_a_run_invalid(inputs: Path) -> None:
    loop = "while True: pass"
    neighbours = [subprocess.Popen([sys.executable, "-c", loop]) for _ in range(len(os.sched_getaffinity(0)))]
    try:
        with running() as server:
            ran = _bench(server.address, inputs, "--rate", "20", *_QUICK, code=1)
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()
    assert "other programs used" in ran.stdout
    assert "invalid" in ran.stdout


def test_wrong_answers_and_errors_are_shown_and_wrong_answers_are_a_failure(inputs: Path) -> None:
    with running(Behaviour(delay_s=0, wrong_every=10, error_every=25)) as server:
        ran = _bench(server.address, inputs, "--rate", "100", *_QUICK, code=1)
    assert "answers differ, such as" in ran.stdout
    assert "status 503, such as" in ran.stdout


def test_the_limit_of_a_server_with_one_worker_is_found(inputs: Path) -> None:
    with running(Behaviour(delay_s=0.02, workers=1)) as server:  # at most 50 a second
        ran = _bench(
            server.address, inputs, "--find-limit", "--rate", "30", "--duration", "4", "--warmup", "0", "--json"
        )
    report = results.parse(json.loads(ran.stdout))
    assert report.limit is not None
    if report.limit.rate is None:  # other programs use the cores
        assert not any(step.valid for step in report.steps[-3:]), report.limit.reason
    else:
        assert 40 < report.limit.rate <= 55
    assert all(window.in_flight >= 0 for step in report.steps for window in step.windows)


def test_a_path_of_a_server_with_another_api_is_measured(inputs: Path) -> None:
    with running() as server:
        ran = _bench(server.address, inputs, "--rate", "20", "--path", "/predictions/another", *_QUICK, "--json")
        wrong = torchmar(
            "bench", "m", "--requests", inputs, "--rate", "1", "--path", "predictions", cwd=inputs.parent, code=2
        )
    (step,) = results.parse(json.loads(ran.stdout)).steps
    assert (step.completed, step.errors) == (20, ())
    assert "begins with /" in wrong.stderr


def test_an_access_log_is_replayed(inputs: Path) -> None:
    lines = [
        f'2026-11-29T12:00:00,{number * 90:03} - /127.0.0.1:4 "POST /predictions/known HTTP/1.1" 200 0'
        for number in range(10)
    ]
    (inputs.parent / "access.log").write_text("\n".join(lines))
    with running() as server:
        ran = _bench(server.address, inputs, "--replay", "access.log", "--json")
    (step,) = results.parse(json.loads(ran.stdout)).steps
    assert (step.kind, step.sent, step.completed) == ("replay", 10, 10)


def test_ctrl_c_reports_what_was_measured_and_marks_it_incomplete(inputs: Path) -> None:
    command = [sys.executable, "-m", "torchmar", "bench", "known", "--requests", str(inputs), "--json"]
    with running() as server:
        process = subprocess.Popen(
            [*command, "--address", server.address, "--rate", "20", "--duration", "20", "--warmup", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while server.counts()["right"] < 30:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    report = results.parse(json.loads(output))
    assert not report.complete
    (step,) = report.steps
    assert not step.complete
    assert 0 < step.duration_s < 20


def test_ctrl_c_before_anything_was_measured_reports_no_step(inputs: Path) -> None:
    command = [sys.executable, "-m", "torchmar", "bench", "known", "--requests", str(inputs)]
    with running() as server:
        process = subprocess.Popen(
            [*command, "--address", server.address, "--rate", "20", "--warmup", "30"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while server.counts()["right"] < 20:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    assert output.endswith("nothing was measured\n")


def test_a_server_that_ends_leaves_the_steps_before(inputs: Path) -> None:
    command = [sys.executable, "-m", "torchmar", "bench", "known", "--requests", str(inputs), "--json", *_QUICK]
    with running() as server:
        process = subprocess.Popen(
            [*command, "--address", server.address, "--rate", "20,21,22,23"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while server.counts()["right"] < 35:  # of the second step
            assert process.poll() is None
            time.sleep(0.05)
    output, errors = process.communicate(timeout=100)
    assert process.returncode == 1, errors
    assert errors.startswith(f"error: no inference API at {server.address}: connection refused")
    report = results.parse(json.loads(output))
    assert not report.complete
    assert [step.rate for step in report.steps] == [20.0, 21.0]
    assert report.steps[0].errors == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rate", "0"), "give numbers above 0"),
        (("--rate", "ten"), "give numbers above 0"),
        (("--connections", "1.5"), "give whole numbers above 0"),
        (("--rate", "1", "--output", "nowhere/report.json"), "there is no folder nowhere"),
        (("--rate", "1", "--html", "/"), "/ is a folder"),
        (("--rate", "1", "--connections", "1"), "give only one of --rate, --connections, --replay and --find-limit"),
    ],
)
def test_a_load_that_is_none_is_wrong_usage(inputs: Path, options: tuple[str, ...], message: str) -> None:
    ran = torchmar("bench", "known", "--requests", inputs, *options, cwd=inputs.parent, code=2)
    assert message in " ".join(ran.stderr.replace("│", " ").split())


def test_without_a_load_three_closed_loops_are_measured(inputs: Path) -> None:
    with running() as server:
        ran = _bench(server.address, inputs, "--duration", "0.5", "--warmup", "0", "--json")
    report = results.parse(json.loads(ran.stdout))
    assert [(step.kind, step.connections) for step in report.steps] == [("closed", 1), ("closed", 8), ("closed", 32)]


@pytest.mark.parametrize(("module", "protocol"), [("psutil", "torchserve"), ("hpack", "grpc")])
def test_a_missing_package_is_named_with_the_extra_that_has_it(inputs: Path, module: str, protocol: str) -> None:
    code = (
        f"import sys; sys.modules[{module!r}] = None; sys.argv[0] = 'torchmar'; from torchmar.cli import main; main()"
    )
    options = ("bench", "m", "--requests", "inputs", "--rate", "1", "--protocol", protocol)
    ran = subprocess.run([sys.executable, "-c", code, *options], cwd=inputs.parent, capture_output=True, text=True)
    assert ran.stderr == f"error: {module} is not installed\nhint: pip install 'torchmar[bench]'\n"
    assert ran.returncode == 1


def test_without_requests_server_or_model_there_is_a_clear_error(tmp_path: Path, inputs: Path) -> None:
    (tmp_path / "empty").mkdir()
    ran = torchmar("bench", "m", "--requests", "empty", "--rate", "1", cwd=tmp_path, code=1)
    assert ran.stderr.startswith("error: empty has no requests for predictions\nhint: ")
    ran = torchmar("bench", "m", "--requests", "none", "--rate", "1", cwd=tmp_path, code=1)
    assert ran.stderr.startswith("error: none does not exist")
    ran = torchmar(
        "bench", "m", "--requests", "inputs", "--rate", "1", "--address", "http://127.0.0.1:9", cwd=tmp_path, code=1
    )
    assert ran.stderr.startswith("error: no inference API at http://127.0.0.1:9: connection refused")
    with running() as server:
        address = f"{server.address}/nowhere"
        ran = torchmar("bench", "m", "--requests", "inputs", "--rate", "1", "--address", address, cwd=tmp_path, code=1)
    assert ran.stderr.startswith("error: ")
    assert "Traceback" not in ran.stderr
