"""torchmar.remote_console.changes finds what happened to the models of a server between two readings."""

from __future__ import annotations

from collections.abc import Sequence

from torchmar.engines.state import VersionState
from torchmar.engines.worker_log import Failure
from torchmar.management import ModelVersion, WorkerState
from torchmar.remote_console.changes import changes
from torchmar.remote_console.reader import Model


def version(number: str, pids: Sequence[int] = (1,), wanted: int = 1, failure: Failure | None = None) -> VersionState:
    workers = tuple(WorkerState(id=f"90{pid:02}", status="READY", pid=pid) for pid in pids)
    described = ModelVersion(
        name="m",
        version=number,
        url=f"m-{number}.mar",
        min_workers=wanted,
        max_workers=wanted,
        batch_size=1,
        max_batch_delay=100,
        response_timeout=120,
        workers=workers,
    )
    return VersionState(described, number == "1.0", 0, failure)


def between(before: Sequence[VersionState], now: Sequence[VersionState], default: str = "1.0") -> list[tuple[str, ...]]:
    models = [
        {"m": Model(chosen, tuple(states))} if states else {} for chosen, states in (("1.0", before), (default, now))
    ]
    return [(change.kind, change.version, change.worker, change.text) for change in changes(*models)]


def test_nothing_happens_to_a_model_that_stays_as_it_is() -> None:
    assert between([version("1.0")], [version("1.0")]) == []


def test_versions_come_and_go_and_the_default_moves() -> None:
    assert between([], [version("1.0")]) == [("registered", "1.0", "", "registered from m-1.0.mar")]
    assert between([version("1.0"), version("2.0")], [version("2.0")], "2.0") == [
        ("unregistered", "1.0", "", "unregistered")
    ]
    both = [version("1.0"), version("2.0")]
    assert between(both, both, "2.0") == [("default_switched", "2.0", "", "the default was switched from 1.0 to 2.0")]


def test_a_worker_that_is_gone_has_died_unless_the_version_was_scaled_down() -> None:
    two = version("1.0", (1, 2), wanted=2)
    assert between([two], [version("1.0", (1, 3), wanted=2)]) == [
        ("worker_started", "1.0", "9003", "loaded the model"),
        ("worker_died", "1.0", "9002", "ended while it served, and is started again"),
    ]
    assert between([two], [version("1.0", (1,), wanted=1)]) == [("scaled", "1.0", "", "scaled from 2 to 1 worker")]
    assert [kind for kind, *_ in between([two], [version("1.0", (), wanted=1)])] == ["scaled", "worker_died"]


def test_a_failure_is_an_event_once() -> None:
    trace = "Traceback (most recent call last):\n  File x\nValueError: weights are missing"
    failed = version("1.0", (), failure=Failure(1, trace))
    assert between([version("1.0", ())], [failed]) == [("load_failed", "1.0", "", "ValueError: weights are missing")]
    assert between([failed], [failed]) == []
