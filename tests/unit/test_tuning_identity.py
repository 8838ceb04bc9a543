"""torchmar.tuning.identity: what a tuning that continues has to have in common with the one before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torchmar.exchange import Request
from torchmar.load import machine_use
from torchmar.tuning.identity import identity
from torchmar.tuning.options import TuningOptions
from torchmar.tuning.target import Objective, Question, parse_target
from torchmar.tuning.tuned_archive import TunedArchive

ARCHIVE = TunedArchive(
    path=Path("m-1.0.mar"),
    name="m",
    version="1.0",
    digest="d",
    queue_size=100,
    has_stages=False,
    has_threads=False,
    carries_handlers=True,
)
QUESTION = Question(target=parse_target("p99<50ms"), objective=Objective.LATENCY, rate=10.0)
OPTIONS = TuningOptions(engine="ray", seconds=60.0, head="10.0.0.2:6379")


def of(
    archive: TunedArchive = ARCHIVE,
    question: Question = QUESTION,
    options: TuningOptions = OPTIONS,
    body: bytes = b"x",
) -> dict[str, Any]:
    return identity(archive, [Request(body, "text/plain")], question, options, machine_use.describe())


def test_a_tuning_continues_with_another_budget_of_the_same_file_elsewhere() -> None:
    moved = replace(ARCHIVE, path=Path("elsewhere.mar"))
    assert of() == of(moved, options=replace(OPTIONS, seconds=90.0, trial_seconds=5.0, most_trials=3))


def test_a_tuning_of_anything_else_is_another() -> None:
    different = [
        of(replace(ARCHIVE, digest="e")),
        of(question=replace(QUESTION, rate=20.0)),
        of(question=replace(QUESTION, memory=1)),
        of(options=replace(OPTIONS, engine="builtin")),
        of(options=replace(OPTIONS, head="10.0.0.3:6379")),
        of(body=b"y"),
    ]
    assert all(other != of() for other in different)
