"""torchmar.server.telemetry.statistics counts as Triton's statistics extension has it."""

from __future__ import annotations

import time
from typing import Any

from torchmar.server.telemetry.statistics import Statistics


def test_nothing_is_counted_at_first() -> None:
    document = Statistics().document()
    assert (document["last_inference"], document["inference_count"], document["batch_stats"]) == (0, 0, [])


def test_requests_and_batches_are_counted_with_their_times() -> None:
    before = round(time.time() * 1000)
    statistics = Statistics()
    statistics.batch(2, [0.5, 1.0], 0.25)
    statistics.batch(2, [0.0, 0.0], 0.25)
    statistics.batch(1, [0.0], 1.0)
    for status in (200, 202, 400, 503):
        statistics.request(status, 2.0)
    document: dict[str, Any] = statistics.document()
    assert before <= document["last_inference"] <= round(time.time() * 1000)  # milliseconds
    # Every request of a batch takes as long as the batch.
    assert (document["inference_count"], document["execution_count"]) == (5, 3)
    times = {name: (batch["count"], batch["ns"]) for name, batch in document["inference_stats"].items()}
    assert times == {
        "success": (2, 4_000_000_000),
        "fail": (2, 4_000_000_000),
        "queue": (5, 1_500_000_000),
        "compute_input": (0, 0),
        "compute_infer": (5, 2_000_000_000),
        "compute_output": (0, 0),
    }
    batches = [(batch["batch_size"], batch["compute_infer"]) for batch in document["batch_stats"]]
    assert batches == [(1, {"count": 1, "ns": 1_000_000_000}), (2, {"count": 2, "ns": 500_000_000})]
