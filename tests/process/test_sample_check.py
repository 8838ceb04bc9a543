"""torchmar.sample_check holds an archive to its samples, alone, in full batches and among bad requests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from torchmar.errors import ArchiveError, LoadError
from torchmar.sample_check import run_samples

Make = Callable[..., Path]
SAMPLES = [{"json": number, "expect": 2 * number} for number in (1, 2, 3)]


def test_the_digits_keep_their_contract(digits: Path) -> None:
    report = run_samples(digits)
    assert report.problems == ()
    assert len(report.samples) == 11
    assert report.explains
    assert report.batch_size == 8
    assert set(report.bad_request_statuses) == {400}
    assert report.peak_memory > 50 << 20


HANDLERS = {
    "right": ("[2 * row['body'] if isinstance(row['body'], int) else 'no' for row in rows]", []),
    "wrong": ("[3 for row in rows]", ["json: the answer is 3, not 2 within 0.001", "json: the answer is 3, not 4"]),
    "right alone, wrong in a batch": (
        "[2 * (rows[0]['body'] if isinstance(rows[0]['body'], int) else 0)] * len(rows)",
        ["json, in a batch of 3: the answer is 2, not 4 within 0.001"],
    ),
    "right until a neighbour is bad": (
        "[2 * int(row['body']) for row in rows]",
        ["json, beside a bad request: status 503, not 200", "a bad request gets 503, not a 4xx"],
    ),
}


@pytest.mark.parametrize(("answer", "expected"), HANDLERS.values(), ids=HANDLERS)
def test_a_broken_contract_is_reported(make: Make, answer: str, expected: list[str]) -> None:
    code = f"import time\ntime.sleep(0.2)\ndef handle(rows, context):\n    return rows and {answer}"
    report = run_samples(make(code, samples=SAMPLES, config={"batchSize": 3, "responseTimeout": 60}))
    for text in expected:
        assert any(problem.startswith(text) for problem in report.problems), report.problems
    assert bool(report.problems) is bool(expected), report.problems
    assert report.load_seconds >= 0.2


def test_an_archive_without_samples_cannot_be_checked(make: Make) -> None:
    with pytest.raises(ArchiveError, match="has no samples"):
        run_samples(make())


def test_a_handler_that_does_not_load_shows_its_traceback(make: Make) -> None:
    with pytest.raises(LoadError) as caught:
        run_samples(make("raise ValueError('at import')", samples=SAMPLES))
    assert caught.value.traceback.splitlines()[-1] == "ValueError: at import"
