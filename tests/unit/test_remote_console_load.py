"""torchmar.remote_console.load makes seconds of the history of two readings of TorchServe's metrics."""

from __future__ import annotations

from torchmar import metrics
from torchmar.engines.state import VersionState
from torchmar.management import JobQueue, ModelVersion
from torchmar.metrics import Reading
from torchmar.remote_console.load import tick
from torchmar.remote_console.reader import Model, Snapshot
from torchmar.server.telemetry.history import Workers

KEY = ("m", "1.0")


def snapshot(at: float, text: str | None) -> Snapshot:
    described = ModelVersion(
        name="m",
        version="1.0",
        url="m.mar",
        min_workers=2,
        max_workers=2,
        batch_size=1,
        max_batch_delay=100,
        response_timeout=120,
        workers=(),
        job_queue=JobQueue(3, 97),
    )
    return Snapshot(
        time=at,
        health="Healthy",
        models={"m": Model("1.0", (VersionState(described, True, 0, None),))},
        metrics=None if text is None else Reading(at, metrics.parse(text)),
        without_metrics="",
    )


def text(requests: int, failed: int = 0) -> str:
    labels = '{model_name="m",model_version="default",hostname="h"}'
    return (
        f"ts_inference_requests_total{labels} {requests}\n"
        f"ts_inference_latency_microseconds{labels} {requests * 8000}\n"
        f"ts_queue_latency_microseconds{labels} {requests * 500}\n"
        f'Requests5XX{{Level="Host",Hostname="h"}} {failed}\n'
    )


def test_requests_of_the_default_version_are_counted_with_their_mean_times() -> None:
    made = tick(snapshot(100, text(10)), snapshot(102, text(30, failed=4)), {})
    assert (made.time, made.seconds, made.total, made.failures) == (102, 2, Workers(0, 2, 3), {"5XX": 4})
    sample = made.samples[KEY]
    assert (sample.succeeded, sample.failures, sample.latency, sample.batches) == (20, None, None, None)
    assert round(sample.latency_seconds, 6) == 0.16 and round(sample.queue_seconds, 6) == 0.01
    assert made.changed == {KEY: Workers(0, 2, 3)}


def test_a_second_without_requests_has_no_sample_and_a_restarted_server_no_negative_count() -> None:
    assert tick(snapshot(100, text(10)), snapshot(101, text(10)), {KEY: Workers(0, 2, 3)}).samples == {}
    assert tick(snapshot(100, text(10)), snapshot(101, text(4)), {}).samples[KEY].succeeded == 4


def test_without_metrics_there_are_only_workers() -> None:
    made = tick(snapshot(100, text(10)), snapshot(101, None), {("gone", "1.0"): Workers(1, 1, 0)})
    assert made.samples == {} and made.failures == {}
    assert made.changed == {KEY: Workers(0, 2, 3), ("gone", "1.0"): Workers(0, 0, 0)}
