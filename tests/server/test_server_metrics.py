"""torchmar.server.telemetry.metrics counts requests and reports them in TorchServe's format."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
import ts
from ts.metrics.caching_metric import CachingMetric
from ts.metrics.dimension import Dimension
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
from ts.metrics.metric_type_enum import MetricTypes

from torchmar import metrics as client
from torchmar.connection import Endpoint
from torchmar.engines.torchserve import TorchServe
from torchmar.errors import PropertiesError
from torchmar.inference import InferenceClient
from torchmar.metrics import Reading, parse
from torchmar.server import http
from torchmar.server.api.metrics import MetricsApi
from torchmar.server.telemetry import metrics_config
from torchmar.server.telemetry.metrics import Metrics
from torchmar.server.telemetry.prometheus import Metric, MetricSpec
from torchmar.server.telemetry.system_metrics import SystemMetrics
from torchmar.worker.process.handler_metrics import MetricsBuffer

THEIRS = Path(ts.__file__).parent / "configs" / "metrics.yaml"
# The handler that measures whatever TorchServe's API lets it; the test runs the same by itself.
MEASURING = """
from ts.metrics.dimension import Dimension
from ts.metrics.metric_type_enum import MetricTypes

def measure(metrics):
    metrics.add_metric("Plain", 2, "count")
    metrics.add_metric("Awkward", 3, "count", idx=0, dimensions=[Dimension("color", 'r"e\\\\d')])
    metrics.add_time("SomeTime", 12.5)
    metrics.add_size("SomeSize", 7, unit="MB")
    metrics.add_percent("SomePercent", 50)
    metrics.add_counter("SomeCounter", 1)
    metrics.add_error("SomeError", 1)
    for seconds in (0.02, 0.005, 3, 60):
        metrics.add_metric("HandlerSeconds", seconds, "s", metric_type=MetricTypes.HISTOGRAM)
    own = metrics.add_metric_to_cache("Own", "count", dimension_names=["a", "b"], metric_type=MetricTypes.GAUGE)
    own.add_or_update(5, ["x", "y"])
    own.add_or_update(6, ["x", "y"])
    metrics.add_metric("Twice", 1, "count", dimensions=[Dimension("one", "1")])
    metrics.add_metric("Twice", 1, "count", dimensions=[Dimension("two", "2")])
    metrics.add_time("Plain", 4)
    metrics.add_metric("no.name", 1, "count")
    metrics.add_metric("Requests2XX", 1, "count")

def handle(rows, context):
    if rows is None:
        return None
    measure(context.metrics)
    return ["measured"] * len(rows)
"""
CUSTOM = ("Plain", "Awkward", "Some", "HandlerSeconds", "Own", "Twice", "no")


def reading(metrics: Metrics) -> Reading:
    return Reading(0.0, parse(metrics.text()))


def lines(text: str) -> set[str]:
    """Return the samples of metrics that handlers emit."""
    return {line for line in text.splitlines() if re.match(rf"(# \w+ )?({'|'.join(CUSTOM)})", line)}


def update(name: str, value: float = 1.0, kind: str = "COUNTER", **labels: str) -> list[Any]:
    return [name, "count", value, kind, [[label, text] for label, text in labels.items()]]


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(auto_detect=True, machine=False)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return a function that returns the warnings since its last call; the server's log goes to files only."""
    messages: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler = Handler()
    logger = logging.getLogger("torchmar.server")
    logger.addHandler(handler)

    def taken() -> list[str]:
        now, messages[:] = list(messages), []
        return now

    yield taken  # type: ignore[misc]
    logger.removeHandler(handler)


def test_the_metrics_are_those_of_torchserves_file() -> None:
    theirs = metrics_config.read(THEIRS)
    assert {spec.name: spec for spec in theirs.server} == {spec.name: spec for spec in metrics_config.DEFAULT.server}
    assert list(theirs.models) == list(metrics_config.DEFAULT.models)


def test_the_text_is_the_same_as_torchserves(
    server: TorchServe, make: Callable[..., Path], metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(MEASURING, name="measuring", store=server.model_store)
    server.load(path)
    client = InferenceClient(server.server)
    for _ in range(2):
        assert client.predict("measuring", b"x") == "measured"

    monkeypatch.setattr(CachingMetric, "add_or_update", CachingMetric.add_or_update)
    measured = MetricsBuffer()
    measured.install()
    cache = MetricsCacheYamlImpl(str(THEIRS))
    cache.initialize_cache()
    cache.model_name = "measuring"
    scope: dict[str, Any] = {"Dimension": Dimension, "MetricTypes": MetricTypes}
    exec(MEASURING, scope)
    for _ in range(2):
        cache.request_ids = {0: "id"}
        scope["measure"](cache)
        metrics.on_metrics("measuring", "1.0", measured.take())
    ours = metrics.text()
    address = server.properties.get("metrics_address")
    until = time.monotonic() + 20
    # TorchServe reads what handlers measure from their output, some time after the answer.
    while lines(theirs := requests.get(f"{address}/metrics").text) != lines(ours) and time.monotonic() < until:
        time.sleep(0.05)
    assert lines(ours) == lines(theirs)
    for line in ("Own{", "HandlerSeconds_sum{", "Twice{"):
        assert line in ours
    assert {line for line in theirs.splitlines() if line.startswith("#")} <= set(ours.splitlines())


def test_requests_are_counted_by_version_and_result(metrics: Metrics) -> None:
    for version, status in (("1.0", 200), ("1.0", 404), ("2.0", 503), ("2.0", 302)):
        metrics.request("m", version, status)
    metrics.answered(200)
    now = reading(metrics)
    assert now.total("ts_inference_requests_total", model_name="m") == 4
    assert now.total("ts_inference_requests_total", model_name="m", model_version="2.0") == 2
    assert [now.total(f"Requests{group}XX", Level="Host") for group in "245"] == [2, 1, 2]


def test_a_batch_is_counted_request_by_request(metrics: Metrics) -> None:
    metrics.on_batch("m", "1.0", 3, [0.001, 0.002, 0.4], 0.01)
    now = reading(metrics)
    labels = {"model_name": "m", "model_version": "1.0"}
    assert now.total("ts_queue_latency_microseconds", **labels) == pytest.approx(403_000)
    assert now.total("ts_inference_latency_microseconds", **labels) == pytest.approx(433_000)
    assert now.total("torchmar_queue_seconds_sum", **labels) == pytest.approx(0.403)
    assert now.total("torchmar_request_seconds_sum", **labels) == pytest.approx(0.433)
    queued = now.buckets("torchmar_queue_seconds", **labels)
    assert (queued[0.001], queued[0.0025], queued[0.25], queued[0.5], queued[math.inf]) == (1, 2, 2, 3, 3)
    sizes = now.buckets("torchmar_batch_size", **labels)
    assert (sizes[2], sizes[4], sizes[math.inf]) == (0, 1, 1)
    assert now.total("PredictionTime", ModelName="m", Level="Model") == 10
    assert now.total("QueueTime", Level="Host") == 400


def test_the_load_time_of_a_worker_is_in_milliseconds(metrics: Metrics) -> None:
    metrics.on_load("m", "1.0", "9000", 1.138)
    assert reading(metrics).total("WorkerLoadTime", WorkerName="W-9000-m_1.0", Level="Host") == 1138


def test_the_metrics_contain_the_load_that_top_shows(metrics: Metrics) -> None:
    metrics.request("m", "1.0", 200)
    before = Reading(0.0, parse(metrics.text()))
    for _ in range(10):
        metrics.request("m", "1.0", 200)
        metrics.on_batch("m", "1.0", 1, [0.004], 0.006)
        metrics.on_metrics("m", "1.0", [["HandlerSeconds", "s", 0.006, "HISTOGRAM", [["ModelName", "m"]]]])
    load = client.load(before, Reading(2.0, parse(metrics.text())), "m", "1.0", default=True)
    assert load.requests == 5
    assert load.latency == pytest.approx(10)
    assert load.queue == pytest.approx(4)
    assert load.p50 == pytest.approx(7.5)


def test_lines_can_be_selected_by_name(metrics: Metrics) -> None:
    metrics.request("m", "1.0", 200)
    metrics.on_batch("m", "1.0", 1, [0.1], 0.1)
    assert set(parse_names(metrics.text(["Requests2XX", "torchmar_batch_size_sum"]))) == {
        "Requests2XX",
        "torchmar_batch_size_sum",
    }
    assert "# TYPE torchmar_batch_size histogram" in metrics.text(["torchmar_batch_size_sum"])
    assert len(parse(metrics.text(["torchmar_batch_size"]))) == 12
    for nothing in ("none", "", "ts_inference"):
        assert metrics.text([nothing]) == ""


def parse_names(text: str) -> list[str]:
    return [sample.name for sample in parse(text)]


def test_unlisted_metrics_are_left_out_unless_detection_is_on() -> None:
    metrics = Metrics(machine=False)
    host = {"ModelName": "m", "Level": "Model"}
    metrics.on_metrics("m", "1.0", [update("Unlisted", **host), update("HandlerTime", 5.0, "GAUGE", **host)])
    now = reading(metrics)
    assert now.total("HandlerTime", ModelName="m") == 5
    assert "Unlisted" not in metrics.text()


def test_invalid_metrics_are_left_out_with_one_warning(metrics: Metrics, warnings: Callable[[], list[str]]) -> None:
    good = update("Good", color="red")
    bad = [
        update("with space", color="red"),
        update("with.point"),
        update("label", **{"no-label": "x"}),
        update("label", __reserved="x"),
        update("histogram", kind="HISTOGRAM", le="1"),
        update("kind", kind="SUMMARY"),
        update("Requests2XX", Level="Host"),
        update("torchmar_queue_seconds", model_name="m", model_version="1"),
        update("torchmar_queue_seconds_sum"),
        update("Good", math.nan, color="red"),
        update("Good", math.inf, color="red"),
    ]
    for _ in range(3):
        metrics.on_metrics("m", "1.0", [*bad, good])
    assert reading(metrics).total("Good", color="red") == 3
    assert parse_names(metrics.text()).count("Good") == 1
    assert not {sample.name for sample in parse(metrics.text())} & {"with", "label", "kind", "histogram_sum"}
    (message,) = warnings()
    assert "with space" in message
    metrics.on_metrics("m", "1.0", [update("Good", color="red", size="big")])
    (message,) = warnings()
    assert "Good: it has the labels color, Hostname, and this is of color, size" in message


def test_a_label_with_ever_new_values_does_not_fill_the_memory(warnings: Callable[[], list[str]]) -> None:
    metrics = Metrics(auto_detect=True, machine=False, limit=50)
    for number in range(500):
        metrics.on_metrics("noisy", "1.0", [update("Seen", user=str(number)), update(f"Metric{number}")])
        metrics.on_metrics("quiet", "1.0", [update("Fine", user=str(number % 5))])
    assert (
        len([sample for sample in parse(metrics.text()) if sample.labels.get("user") or "Metric" in sample.name]) == 55
    )
    (message,) = warnings()
    assert "model noisy" in message
    assert "50 series" in message
    metrics.on_metrics("noisy", "1.0", [update("Seen", user="0")])
    assert reading(metrics).total("Seen", user="0") == 2


def test_a_removed_version_has_no_metrics(metrics: Metrics) -> None:
    metrics.answered(200)
    before = {sample.name for sample in parse(metrics.text())}
    for round in itertools.count():
        for version in ("1.0", "2.0"):
            metrics.request("m", version, 200)
            metrics.on_batch("m", version, 1, [0.1], 0.1)
            metrics.on_load("m", version, str(round), 1)
        metrics.on_metrics(
            "m", "1.0", [update(f"Round{round}", user="u"), update("HandlerTime", 1.0, "GAUGE", a="m", b="M")]
        )
        metrics.on_unregister("m", "1.0")
        assert reading(metrics).total("ts_inference_requests_total", model_version="1.0") == 0
        assert reading(metrics).total(f"Round{round}") == 1
        metrics.on_unregister("m", "2.0")
        metrics.on_unregister("m", "2.0")
        if round == 3:
            break
    assert {sample.name for sample in parse(metrics.text())} == before
    assert "Round" not in metrics.text()


def test_a_users_file_selects_the_metrics(tmp_path: Path, warnings: Callable[[], list[str]]) -> None:
    file = tmp_path / "metrics.yaml"
    file.write_text(
        "ts_metrics:\n"
        "  counter:\n"
        "    - {name: ts_inference_requests_total, unit: Count, dimensions: [model, build, node]}\n"
        "  histogram:\n"
        "    - {name: ts_queue_latency_microseconds, unit: Microseconds, dimensions: [model, build, node]}\n"
        "model_metrics:\n"
        "  gauge:\n"
        "    - {name: Depth, unit: count, dimensions: [form]}\n"
    )
    metrics = Metrics(metrics_config.read(file), machine=False)
    metrics.request("m", "1.0", 200)
    metrics.on_batch("m", "1.0", 1, [0.1], 0.1)
    metrics.on_metrics("m", "1.0", [update("Depth", 4.0, "GAUGE", form="deep"), update("Other")])
    now = reading(metrics)
    assert now.total("ts_inference_requests_total", model="m", build="1.0") == 1
    assert now.total("ts_queue_latency_microseconds_count", model="m") == 1
    assert now.total("Depth", form="deep") == 4
    for left_out in ("Requests2XX", "QueueTime", "PredictionTime", "Other"):
        assert left_out not in metrics.text()
    assert "# HELP Depth Torchserve prometheus gauge metric with unit: count" in metrics.text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "the file is not"),
        ("{", "is not YAML"),
        ("ts_metrics: [a]", "ts_metrics is not"),
        ("ts_metrics: {summary: []}", "ts_metrics is not"),
        ("model_metrics: {gauge: [{name: a, unit: b}]}", "model_metrics: gauge: .* is not name:"),
        ("model_metrics: {gauge: [{name: a b, unit: b, dimensions: []}]}", "model_metrics: a b is not letters"),
    ],
)
def test_an_invalid_file_is_reported(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.yaml").write_text(text)
    with pytest.raises(PropertiesError, match=message):
        metrics_config.read(tmp_path / "metrics.yaml")
    with pytest.raises(PropertiesError, match="cannot be read: No such file"):
        metrics_config.read(tmp_path / "none.yaml")


def test_labels_are_escaped_and_help_is_one_line() -> None:
    family = Metric(MetricSpec("m", "gauge", "two\nlines \\", ("a", "b")))
    awkward = 'quote " backslash \\ line\nend'
    family.of(awkward, "").add(-1.5)
    text = family.text()
    assert len(text.splitlines()) == 3
    (sample,) = parse(text)
    assert sample.labels == {"a": awkward, "b": ""}
    assert sample.value == -1.5


def test_system_metrics_have_torchserves_units() -> None:
    now = reading(Metrics())
    value_of = {sample.name: sample.value for sample in now.samples if sample.labels.get("Level") == "Host"}
    memory, disk = psutil.virtual_memory(), psutil.disk_usage("/")
    assert value_of["MemoryUsed"] + value_of["MemoryAvailable"] == pytest.approx(memory.total / 2**20, rel=0.2)  # MB
    assert value_of["DiskUsage"] + value_of["DiskAvailable"] == pytest.approx(
        (disk.used + disk.free) / 2**30, rel=0.2
    )  # GB
    for percent in ("CPUUtilization", "MemoryUtilization", "DiskUtilization"):
        assert 0 <= value_of[percent] <= 100
    assert "MemoryUsed" not in {sample.name for sample in reading(Metrics(machine=False)).samples}


def test_gpus_have_metrics() -> None:
    pynvml = pytest.importorskip("pynvml")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        pytest.skip("no GPU")
    first = {name: value for index, name, value in SystemMetrics().gpus() if index == "0"}
    assert first.keys() == {"GPUMemoryUsed", "GPUMemoryUtilization", "GPUUtilization"}
    assert reading(Metrics()).total("GPUMemoryUsed", Level="Host", DeviceId="0") > 0


@pytest.fixture
def address(metrics: Metrics) -> Iterator[str]:
    """Listen with the API."""
    loop = asyncio.new_event_loop()
    listener = loop.run_until_complete(http.listen(MetricsApi(metrics), "127.0.0.1", 0, http.Limits()))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield f"http://127.0.0.1:{listener.port}"
    asyncio.run_coroutine_threadsafe(listener.close(1), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_the_api_answers_without_a_token(address: str, metrics: Metrics, server: TorchServe) -> None:
    metrics.request("m", "1.0", 200)
    ours = requests.get(f"{address}/metrics", headers={"Authorization": "Bearer nonsense"})
    theirs = requests.get(f"{server.properties.get('metrics_address')}/metrics")
    assert (ours.status_code, ours.headers["content-type"]) == (theirs.status_code, theirs.headers["content-type"])
    assert client.read(address, Endpoint()).total("ts_inference_requests_total", model_name="m") == 1
    some: Sequence[tuple[str, str]] = [("name[]", "Requests2XX"), ("name[]", "QueueTime"), ("name[]", "none")]
    assert set(parse_names(requests.get(f"{address}/metrics", params=some).text)) == {"Requests2XX", "QueueTime"}
    head = requests.head(f"{address}/metrics")
    assert (head.status_code, head.text) == (200, "")
    assert int(head.headers["content-length"]) > 0


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/", 404, "ResourceNotFoundException"),
        ("GET", "/metricsx", 404, "ResourceNotFoundException"),
        ("GET", "/ping", 404, "ResourceNotFoundException"),
        ("POST", "/metrics", 405, "MethodNotAllowedException"),
        ("DELETE", "/metrics", 405, "MethodNotAllowedException"),
    ],
)
def test_the_api_has_one_resource(method: str, path: str, status: int, kind: str, address: str) -> None:
    answer = requests.request(method, f"{address}{path}")
    assert (answer.status_code, answer.json()["code"], answer.json()["type"]) == (status, status, kind)


def test_the_api_is_described(address: str) -> None:
    answer = requests.options(f"{address}/")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    described = answer.json()
    assert described["openapi"] == "3.0.1"
    assert described["paths"]["/metrics"]["get"]["operationId"] == "metrics"
