"""Workers wait for the threads of an operator for a short time only, unless the user sets how long."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from torchmar import openmp
from torchmar.exchange import Request
from torchmar.worker import Worker
from torchmar.worker.environment import worker_environment


def test_threads_that_wait_give_their_core_away_soon() -> None:
    environment = worker_environment({"PATH": "/bin"})
    assert environment["PATH"] == "/bin"
    assert environment.items() >= openmp.SHORT_WAIT.items()


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY"])
def test_the_users_wait_policy_is_kept(name: str) -> None:
    environment = worker_environment({name: "7"})
    assert {name: "7", "PYTHONUNBUFFERED": "1", "ORT_DISABLE_TELEMETRY": "1"} == environment


def test_onnx_runtime_sends_nothing_unless_the_user_wants_it() -> None:
    assert worker_environment({})["ORT_DISABLE_TELEMETRY"] == "1"
    assert worker_environment({"ORT_DISABLE_TELEMETRY": "0"})["ORT_DISABLE_TELEMETRY"] == "0"


@pytest.mark.process
def test_a_worker_process_has_it(make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    with Worker(make("import os\ndef handle(rows, context): return [os.environ['GOMP_SPINCOUNT']]")) as worker:
        (answer,) = worker.predict_batch([Request(b"")])
    assert answer.body.decode() == worker_environment({})["GOMP_SPINCOUNT"]
