"""Load on both engines, with their metrics and processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.paths import DIGITS
from tests.support.preloaded import environment_of_started
from tests.support.servers import on_both_engines
from torchmar.engines.engine import Engine
from torchmar.errors import NotFoundError
from torchmar.load import expectations, results, servers, workload
from torchmar.load.kinds import Protocol
from torchmar.load.measuring import StepSpec, measure
from torchmar.load.target import Target

_SPEC = StepSpec(rate=20, arrivals="constant", duration_s=1.5, warmup_s=1.0, timeout_s=60)


@on_both_engines
@pytest.mark.parametrize("protocol", ["torchserve", "kserve-v1", "grpc"])
def test_answers_under_load_are_those_that_the_samples_expect(server: Engine, protocol: Protocol) -> None:
    requests = workload.read(DIGITS)
    target = servers.running(Target(endpoint=server.server, model="digits", protocol=protocol), server.folder)
    assert (target.engine, target.version) == (server.name, "1.0")
    expected = expectations.gather(target, requests)
    assert expected.compared == len(requests.cases)
    step = measure(target, requests, expected, _SPEC)
    assert (step.sent, step.completed, step.errors, step.wrong_answers) == (30, 30, (), 0), step.wrong_answer
    assert step.client.other_load_cores is not None
    split = step.server
    assert split is not None
    if protocol == "grpc" and server.name == "torchserve":
        assert split.queue_ms is None  # TorchServe measures the latency of requests over REST only
    else:
        assert split.total_ms is not None
        assert split.queue_ms is not None
        assert split.total_ms >= split.queue_ms >= 0
    assert (split.batch_sizes is not None) == (server.name == "builtin")


@on_both_engines
def test_an_unknown_model_is_a_clear_error(server: Engine) -> None:
    with pytest.raises(NotFoundError, match="nothing"):
        servers.running(Target(endpoint=server.server, model="nothing"), server.folder)


@pytest.mark.parametrize("engine", ["builtin", "torchserve"])
def test_a_server_is_started_for_a_measurement_and_stopped_after_it(
    make: Callable[..., Path], tmp_path: Path, engine: str
) -> None:
    mar = make(samples=[{"json": {"data": "x"}, "expect": {"body": {"data": "x"}}}])
    (tmp_path / "config.properties").write_text("default_workers_per_model=1\n")  # which allows no registrations
    options = ("--engine", engine, "--archive", mar, "--rate", "10", "--duration", "1", "--warmup", "0.5")
    command = [sys.executable, "-m", "torchmar", "bench", *options, "--output", "report.json"]
    environment = environment_of_started()  # the processes of the server are measured: a forked one has another parent
    ran = subprocess.run(
        list(map(str, command)), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert ran.returncode in (0, 1), ran.stderr  # whether the step is valid depends on the machine's other load
    report = results.read(tmp_path / "report.json")
    assert (report.target.engine, report.target.model, report.target.model_version) == (engine, "made", "1.0")
    assert len(report.target.archive_digest) == 64
    (step,) = report.steps
    assert step.completed == step.sent > 0
    assert step.wrong_answers == 0
    assert step.processes is not None
    assert step.processes.count > 1
    assert step.processes.memory_bytes > 0
