"""Traces: a request's spans reach a collector below the client's span, and the handler and the logs have its trace."""

from __future__ import annotations

import http.client
import itertools
import json
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests

from tests.support.collector import CollectedSpan, Collector
from tests.support.packing import pack_handler
from tests.support.servers import write_config
from tests.support.waiting import until
from torchmar.engines.addresses import free_addresses
from torchmar.engines.builtin import Builtin
from torchmar.grpc import GrpcInference
from torchmar.grpc.wire import inference_pb2
from torchmar.inference import InferenceClient
from torchmar.server.workers import staged_pool

ERROR = 2
# Does what a request names in its three steps, and answers with the header that it has got.
STEPS = """
import logging, os, time
from ts.torch_handler.base_handler import BaseHandler
from ts.utils.util import PredictionException

class Steps(BaseHandler):
    def initialize(self, context):
        self.initialized = True

    def preprocess(self, rows):
        time.sleep(0.02)
        return [row.get("body", row.get("data")) for row in rows]

    def inference(self, data):
        logging.info("the model runs")
        print("it prints")
        time.sleep(0.03)
        for what in data:
            if bytes(what) == b"die":
                os._exit(3)
            if bytes(what) == b"raise":
                raise ValueError("on request")
            if bytes(what) == b"half":
                raise PredictionException("half of a character: \\ud800", 500)
        return data

    def postprocess(self, data):
        time.sleep(0.01)
        headers = [self.context.get_all_request_header(index) for index in range(len(data))]
        headers = [{name.lower(): value for name, value in one.items()} for one in headers]
        return [{name: one.get(name) for name in ("traceparent", "tracestate")} for one in headers]
"""
FUNCTION = "def handle(rows, context):\n    return None if rows is None else ['done'] * len(rows)\n"
STAGED = STEPS.replace("headers = [", "return ['done'] * len(data)\n        headers = [")


def parent(trace_id: str = "", flags: str = "01") -> str:
    return f"00-{trace_id or secrets.token_hex(16)}-{secrets.token_hex(8)}-{flags}"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    one = {"minWorkers": 1, "maxWorkers": 1}
    for name, code, config in (
        ("steps", STEPS, {**one, "batchSize": 1}),
        ("batches", STEPS, {**one, "batchSize": 8}),
        ("function", FUNCTION, one),
        ("staged", STAGED, {**one, "stages": {"preprocess": 1, "postprocess": 1}}),
    ):
        pack_handler(folder, code, name=name, config=config)
    return folder


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def server(store: Path, collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builtin]:
    folder = tmp_path_factory.mktemp("server")
    config = write_config(
        folder,
        torchmar_otlp_endpoint=collector.url,
        torchmar_access_log="true",
        torchmar_log_format="json",
        disable_token_authorization="true",
        load_models="all",
    )
    with Builtin(config, store, folder / "run") as running:
        assert running.wait_until_loaded(120)
        yield running


def send(server: Builtin, model: str, traceparent: str | None = None, data: bytes = b"go", **more: str) -> Any:
    headers = {**({"Traceparent": traceparent} if traceparent else {}), **more}
    return requests.post(f"{server.server.inference}/predictions/{model}", data=data, headers=headers, timeout=60)


def log(server: Builtin, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (server.folder / "logs" / name).read_text().splitlines()]


def test_a_request_is_a_span_below_the_clients_with_its_steps_below(server: Builtin, collector: Collector) -> None:
    traceparent = parent()
    _, trace_id, span_id, _ = traceparent.split("-")
    answer = send(server, "steps", traceparent, tracestate="vendor=1,other=2", **{"user-agent": "a test"})
    spans = collector.trace(trace_id, 6)
    request, queue, batch = spans[""], spans["queue"], spans["batch"]
    assert (request.name, request.parent_id, request.status) == ("POST /predictions/{model_name}", span_id, 0)
    assert (request.trace_state, batch.trace_state) == ("vendor=1,other=2",) * 2
    assert request.resource["service.name"] == "torchmar"
    request_id = answer.headers["x-request-id"]
    assert request.attributes == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": "/predictions/{model_name}",
        "url.path": "/predictions/steps",
        "url.scheme": "http",
        "client.address": "127.0.0.1",
        "user_agent.original": "a test",
        "torchmar.model.name": "steps",
        "torchmar.model.version": "1.0",
        "torchmar.request.id": request_id,
    }
    assert abs(request.end / 1e9 - time.time()) < 60
    assert (queue.parent_id, batch.parent_id) == (request.span_id,) * 2
    assert queue.inside(request) and queue.end <= batch.start
    assert (batch.attributes["torchmar.batch.size"], batch.links) == (1, [])
    assert int(batch.attributes["torchmar.worker.id"]) >= 9000
    steps = [spans[name] for name in ("preprocess", "inference", "postprocess")]
    assert {step.parent_id for step in steps} == {batch.span_id}
    assert all(step.inside(batch) for step in steps)
    assert all(before.end <= after.start for before, after in itertools.pairwise(steps))
    seconds = [(step.end - step.start) / 1e9 for step in steps]
    assert all(took >= least for took, least in zip(seconds, (0.02, 0.03, 0.01), strict=True))
    # What the handler calls continues the trace below the request.
    headers = answer.json()
    assert headers == {"traceparent": f"00-{trace_id}-{request.span_id}-01", "tracestate": "vendor=1,other=2"}

    def line(name: str, text: str = "") -> dict[str, Any]:
        (found,) = (
            one for one in log(server, name) if one.get("trace_id") == trace_id and text in one.get("message", "")
        )
        return found

    until(lambda: any(one.get("trace_id") == trace_id for one in log(server, "access.log")))
    assert line("access.log")["request_id"] == request_id
    logged = line("workers.log", "the model runs")
    assert (logged["message"], logged["request_id"]) == ("the model runs", request_id)
    assert not [one for one in log(server, "workers.log") if one["message"] == "it prints" and "trace_id" in one]


def test_concurrent_requests_keep_their_own_traces(server: Builtin, collector: Collector) -> None:
    traceparents = [parent() for _ in range(48)]
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda one: send(server, "batches", one).json()["traceparent"], traceparents))
    requests_of: dict[str, CollectedSpan] = {}
    batches: list[CollectedSpan] = []
    for traceparent, answer in zip(traceparents, answers, strict=True):
        _, trace_id, span_id, _ = traceparent.split("-")
        spans = collector.trace(trace_id, 6)
        request, batch = spans[""], spans["batch"]
        assert request.parent_id == span_id
        assert answer == f"00-{trace_id}-{request.span_id}-01"
        assert {spans["queue"].parent_id, batch.parent_id} == {request.span_id}
        assert {spans[name].parent_id for name in ("preprocess", "inference", "postprocess")} == {batch.span_id}
        requests_of[trace_id] = request
        batches.append(batch)
    assert any(batch.links for batch in batches)
    for batch in batches:
        # All requests are traced, so that the links name all others of the batch; each of them had the same batch.
        assert len(batch.links) == batch.attributes["torchmar.batch.size"] - 1
        assert all(requests_of[trace_id].span_id == span_id for trace_id, span_id in batch.links)
        together = {batch.trace_id, *(trace_id for trace_id, _ in batch.links)}
        for other in batches:
            if other.trace_id in together:
                assert {other.trace_id, *(trace_id for trace_id, _ in other.links)} == together


def test_a_malformed_or_doubled_traceparent_is_ignored(server: Builtin, collector: Collector) -> None:
    good = parent()
    trace_id = good.split("-")[1]
    for malformed in (good.upper().replace("00-", "00-", 1), good[:-1], f"{good}-more", good.replace("00-", "ff-", 1)):
        answer = send(server, "steps", malformed)
        assert answer.status_code == 200
        own = answer.json()["traceparent"].split("-")[1]
        assert own != trace_id
        assert collector.trace(own, 6)[""].parent_id == ""
    connection = http.client.HTTPConnection(server.server.inference.partition("//")[2], timeout=60)
    connection.putrequest("POST", "/predictions/steps")
    for header in (("traceparent", good), ("traceparent", parent()), ("content-length", "0")):
        connection.putheader(*header)
    connection.endheaders()
    assert json.loads(connection.getresponse().read())["traceparent"].split("-")[1] != trace_id
    assert not collector.spans(trace_id)
    # A later version may have more fields.
    later = parent()
    send(server, "function", later.replace("00-", "01-", 1) + "-more")
    assert collector.trace(later.split("-")[1], 4)[""].parent_id == later.split("-")[2]


def test_a_request_that_its_client_does_not_sample_has_no_spans(server: Builtin, collector: Collector) -> None:
    unsampled, sampled = parent(flags="00"), parent()
    answer = send(server, "steps", unsampled)
    assert answer.json()["traceparent"] == unsampled
    send(server, "steps", sampled)
    collector.trace(sampled.split("-")[1], 6)
    assert not collector.spans(unsampled.split("-")[1])
    trace_id = unsampled.split("-")[1]
    # It is logged nevertheless, a moment later.
    until(lambda: any(line.get("trace_id") == trace_id for line in log(server, "access.log")))


def test_errors_are_those_of_the_server(server: Builtin, collector: Collector) -> None:
    missing = parent()
    assert send(server, "nobody", missing).status_code == 404
    span = collector.trace(missing.split("-")[1], 1)[""]
    assert (span.attributes["http.response.status_code"], span.status) == (404, 0)
    failed = parent()
    assert send(server, "steps", failed, b"raise").status_code == 503
    spans = collector.trace(failed.split("-")[1], 6)
    assert (spans[""].status, spans[""].attributes["error.type"]) == (ERROR, "503")
    assert (spans["batch"].status, spans["batch"].message) == (ERROR, "Prediction failed")
    # A message that cannot be encoded: neither this span nor those after it are lost.
    half = parent()
    assert send(server, "steps", half, b"half").status_code == 500
    assert "half of a character" in collector.trace(half.split("-")[1], 6)["batch"].message
    died = parent()
    assert send(server, "steps", died, b"die").status_code == 500
    spans = collector.trace(died.split("-")[1], 3)
    assert (spans[""].status, spans["batch"].status, spans["batch"].message) == (ERROR, ERROR, "Worker died.")


def test_a_function_has_one_step_and_health_checks_have_no_span(server: Builtin, collector: Collector) -> None:
    trace = parent()
    requests.get(f"{server.server.inference}/ping", headers={"traceparent": trace}, timeout=60)
    send(server, "function", trace)
    spans = collector.trace(trace.split("-")[1], 4)
    assert set(spans) == {"", "queue", "batch", "handle"}


@pytest.mark.skipif(not staged_pool.available(), reason="stages are Linux's")
def test_each_stage_has_its_queue_and_its_batch(server: Builtin, collector: Collector) -> None:
    trace = parent()
    assert send(server, "staged", trace).status_code == 200
    collector.trace(trace.split("-")[1], 10)
    spans = collector.spans(trace.split("-")[1])
    order = [(span.name, span.attributes.get("torchmar.stage")) for span in spans if span.kind != 2]
    stages = ("preprocess", "inference", "postprocess")
    assert order == [(name, stage) for stage in stages for name in ("queue", "batch", stage)]
    batches = {span.attributes["torchmar.stage"]: span.span_id for span in spans if span.name == "batch"}
    assert [batches[stage] for stage in stages] == [span.parent_id for span in spans if span.name in stages]


def test_calls_over_grpc_are_traced(server: Builtin, collector: Collector) -> None:
    address = server.server.grpc_inference
    assert address
    with grpc.insecure_channel(address.removeprefix("grpc://")) as channel:
        method = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"
        call = channel.unary_unary(
            method,
            inference_pb2.PredictionsRequest.SerializeToString,
            inference_pb2.PredictionResponse.FromString,
        )
        traceparent = parent()
        metadata = (("traceparent", traceparent), ("tracestate", "vendor=1"))
        answer = call(
            inference_pb2.PredictionsRequest(model_name="steps", input={"data": b"go"}), metadata=metadata, timeout=60
        )
        spans = collector.trace(traceparent.split("-")[1], 6)
        request = spans[""]
        assert (request.name, request.parent_id, request.status) == (method[1:], traceparent.split("-")[2], 0)
        assert request.attributes["rpc.response.status_code"] == "OK"
        assert (request.attributes["rpc.system.name"], request.attributes["torchmar.model.name"]) == ("grpc", "steps")
        assert {spans["queue"].parent_id, spans["batch"].parent_id} == {request.span_id}
        assert json.loads(answer.prediction) == {
            "traceparent": f"00-{request.trace_id}-{request.span_id}-01",
            "tracestate": "vendor=1",
        }
        unsampled, failed = parent(flags="00"), parent()
        answer = call(
            inference_pb2.PredictionsRequest(model_name="steps", input={"data": b"go"}),
            metadata=(("traceparent", unsampled),),
            timeout=60,
        )
        assert json.loads(answer.prediction)["traceparent"] == unsampled
        with pytest.raises(grpc.RpcError):
            call(inference_pb2.PredictionsRequest(model_name="nobody"), metadata=(("traceparent", failed),), timeout=60)
        request = collector.trace(failed.split("-")[1], 1)[""]
        assert (request.status, request.attributes["rpc.response.status_code"]) == (ERROR, "INTERNAL")
        assert "nobody" in request.message


def test_the_clients_pass_the_context_on(server: Builtin, collector: Collector) -> None:
    trace = parent()
    with InferenceClient(server.server) as client:
        assert client.predict("steps", b"go", headers={"traceparent": trace})["traceparent"] != trace
    assert collector.trace(trace.split("-")[1], 6)[""].parent_id == trace.split("-")[2]
    over_grpc = parent()
    with GrpcInference(server.server) as client:
        assert client.predict("steps", b"go", metadata={"traceparent": over_grpc})["traceparent"] != over_grpc
    assert collector.trace(over_grpc.split("-")[1], 6)[""].parent_id == over_grpc.split("-")[2]


def test_an_explanation_is_one_step_and_a_client_that_disconnects_is_named(
    server: Builtin, collector: Collector
) -> None:
    trace = parent()
    url = f"{server.server.inference}/explanations/function"
    requests.post(url, data=b"x", headers={"traceparent": trace}, timeout=60)
    assert set(collector.trace(trace.split("-")[1], 4)) == {"", "queue", "batch", "explain"}
    gone = parent()
    connection = http.client.HTTPConnection(server.server.inference.partition("//")[2], timeout=60)
    connection.request("POST", "/predictions/steps", b"go", {"traceparent": gone})
    time.sleep(0.02)
    connection.close()
    until(lambda: any(span.kind == 2 for span in collector.spans(gone.split("-")[1])))
    (request,) = (span for span in collector.spans(gone.split("-")[1]) if span.kind == 2)
    assert (request.attributes["error.type"], request.status) == ("client_disconnected", 0)


def test_a_collector_that_is_down_is_logged_once_and_its_spans_are_counted(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_addresses()["metrics_address"].rpartition(":")[2]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20a-secret,no-value")
    config = write_config(tmp_path, disable_token_authorization="true", load_models="function-1.0.mar")
    with Builtin(config, store, tmp_path / "run") as server:
        assert server.wait_until_loaded(120)
        metrics = next(address for address in server.properties.addresses() if address.key == "metrics_address")

        def dropped() -> float:
            text = requests.get(f"{metrics}/metrics", timeout=60).text
            return float(next(line for line in text.splitlines() if line.startswith("torchmar_dropped_sp")).split()[1])

        assert dropped() == 0
        for least in (4, 8):
            assert send(server, "function").status_code == 200
            until(lambda least=least: dropped() >= least)
        logged = (server.folder / "logs" / "server.log").read_text()
        assert logged.count("does not take them (connection refused)") == 1
        assert "OTEL_EXPORTER_OTLP_HEADERS: a header is malformed" in logged
    logs = "".join(file.read_text() for file in (tmp_path / "run" / "logs").iterdir())
    assert "since the start: 8\n" in logs
    assert "a-secret" not in logs


def test_the_end_of_the_server_sends_what_waits_with_the_configured_headers(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "OTEL_EXPORTER_OTLP_HEADERS": "x-key=a%20secret",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        "OTEL_SERVICE_NAME": "clinic",
        "OTEL_TRACES_SAMPLER": "parentbased_always_off",
    }.items():
        monkeypatch.setenv(name, value)
    with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        config = write_config(tmp_path, disable_token_authorization="true", load_models="function-1.0.mar")
        with Builtin(config, store, tmp_path / "run") as server:
            assert server.wait_until_loaded(120)
            trace = parent()
            send(server, "function")  # the sampler does not choose it
            send(server, "function", trace)
        spans = collector.spans()
        assert [span.trace_id for span in spans] == [trace.split("-")[1]] * 4
        assert {span.resource["service.name"] for span in spans} == {"clinic"}
        assert {headers.get("x-key") for headers in collector.headers} == {"a secret"}
        assert "since the start" not in (server.folder / "logs" / "server.log").read_text()
