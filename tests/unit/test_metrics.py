"""torchmar.metrics reads Prometheus' text, and computes the load from two samples of it."""

from __future__ import annotations

import math

import pytest

from torchmar.metrics import Reading, Sample, load, parse, quantile, rate

# As TorchServe 0.12.0 writes it, but for the numbers.
TEXT = """\
# HELP ts_inference_requests_total Torchserve prometheus counter metric with unit: Count
# TYPE ts_inference_requests_total counter
ts_inference_requests_total{{model_name="digits",model_version="default",hostname="vm",}} {requests}
ts_inference_requests_total{{model_name="digits",model_version="1.0",hostname="vm",}} {named}
ts_inference_latency_microseconds{{model_name="digits",model_version="default",hostname="vm",}} {latency}
ts_queue_latency_microseconds{{model_name="digits",model_version="default",hostname="vm",}} {queue}
HandlerSeconds_bucket{{ModelName="digits",Level="Model",Hostname="vm",le="0.005",}} {fast}
HandlerSeconds_bucket{{ModelName="digits",Level="Model",Hostname="vm",le="0.01",}} {slow}
HandlerSeconds_bucket{{ModelName="digits",Level="Model",Hostname="vm",le="+Inf",}} {slow}
Requests5XX{{Level="Host",Hostname="vm",}} {failed}
"""


def reading(at: float, **values: float) -> Reading:
    return Reading(at, parse(TEXT.format(**values)))


BEFORE = reading(10, requests=100, named=5, latency=1e6, queue=5e5, fast=90, slow=100, failed=3)
NOW = reading(12, requests=120, named=5, latency=1.2e6, queue=6e5, fast=100, slow=120, failed=7)


def test_names_labels_and_values_are_read() -> None:
    text = 'a_total{x="1",y="a \\"b\\"\\\\\\n",} 2.5 1700000000\nb 3\n# TYPE c gauge\nc{} NaN\nno value\nd{z="1"} 1e3'
    samples = parse(text)
    assert samples[0] == Sample("a_total", {"x": "1", "y": 'a "b"\\\n'}, 2.5)
    assert [(sample.name, sample.value) for sample in samples[1:] if sample.name != "c"] == [("b", 3.0), ("d", 1000.0)]
    assert math.isnan(samples[2].value)


def test_the_default_version_has_the_requests_without_a_version() -> None:
    default = load(BEFORE, NOW, "digits", "1.0", default=True)
    assert (default.requests, default.latency, default.queue) == (10.0, 10.0, 5.0)
    assert rate(BEFORE, NOW, "Requests5XX") == 2.0
    other = load(BEFORE, NOW, "digits", "1.0", default=False)
    assert (other.requests, other.latency, other.queue) == (0.0, None, None)


def test_percentiles_are_of_the_requests_between_two_samples() -> None:
    measured = load(BEFORE, NOW, "digits", "1.0", default=True)
    assert measured.p50 == pytest.approx(5.0)
    assert measured.p99 == pytest.approx(9.9)


def test_missing_measurements_are_none() -> None:
    unknown = load(BEFORE, NOW, "other", "1.0", default=True)
    assert (unknown.requests, unknown.latency, unknown.p50, unknown.p99) == (0.0, None, None, None)


def test_counters_of_a_server_that_was_started_again_count_from_zero() -> None:
    again = reading(12, requests=4, named=0, latency=2e4, queue=1e3, fast=2, slow=4, failed=0)
    fresh = load(BEFORE, again, "digits", "1.0", default=True)
    assert (fresh.requests, fresh.latency) == (2.0, 5.0)


@pytest.mark.parametrize(
    ("buckets", "part", "value"),
    [
        ({1.0: 10.0, 2.0: 10.0, math.inf: 10.0}, 0.5, 0.5),
        ({1.0: 5.0, 2.0: 10.0, math.inf: 10.0}, 0.9, 1.8),
        # Beyond the last bound nothing is known but the bound.
        ({1.0: 5.0, math.inf: 10.0}, 0.9, 1.0),
        ({1.0: 0.0, math.inf: 0.0}, 0.5, None),
        ({}, 0.5, None),
    ],
)
def test_a_quantile_is_prometheus_own(buckets: dict[float, float], part: float, value: float | None) -> None:
    estimate = quantile(buckets, part)
    assert estimate == (None if value is None else pytest.approx(value))
