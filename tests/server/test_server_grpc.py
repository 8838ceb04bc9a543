"""torchmar.server.grpc gives TorchServe's answers over gRPC, with the registry and queues of REST."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
import uvloop
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from tests.support.certificates import certify
from tests.support.environments import environment_without
from tests.support.grpc_handlers import HANDLERS as HANDLERS_OF_THE_CLIENTS
from tests.support.packing import pack_handler
from tests.support.paths import ROOT
from torchmar import exchange, metrics
from torchmar.address import Address
from torchmar.connection import Endpoint
from torchmar.errors import (
    BindError,
    CertificateError,
    ConflictError,
    NotFoundError,
    PropertiesError,
    ServerError,
    UnauthorizedError,
)
from torchmar.grpc import GrpcInference, GrpcManagement, GrpcOpenInference
from torchmar.grpc.wire import inference_pb2, management_pb2, open_inference_pb2
from torchmar.inference import Tensor
from torchmar.server import grpc as server_grpc
from torchmar.server.config.settings import Settings
from torchmar.server.models.archive_cache import ArchiveCache
from torchmar.server.models.registration import Registration
from torchmar.server.models.registry import Registry
from torchmar.server.telemetry.events import Events
from torchmar.server.telemetry.metrics import Metrics
from torchmar.server.telemetry.observer import ServerObserver
from torchmar.server.tokens import Tokens
from torchmar.server.workers.fork_server import ForkServer
from torchmar.server.workers.pools import LocalPools

T = TypeVar("T")
INFERENCE = "org.pytorch.serve.grpc.inference.InferenceAPIsService"
MANAGEMENT = "org.pytorch.serve.grpc.management.ManagementAPIsService"
OPEN = "org.pytorch.serve.grpc.openinference.GRPCInferenceService"
STANDARD = "inference.GRPCInferenceService"
HANDLERS = {
    **HANDLERS_OF_THE_CLIENTS,
    # Returns what it was given, and how it is called.
    "mirror": """
def handle(rows, context):
    if rows is None:
        return None
    answers = []
    for index, row in enumerate(rows):
        if context.get_request_header(index, "describe"):
            answers.append({"about": "me"})
            continue
        wanted = bytes(row.get("status", b"202"))
        context.set_response_status(int(wanted), idx=index)
        answers.append({name: type(value).__name__ for name, value in row.items()})
    return answers
""",
    # Sends parts until a file is there, and notes whom it has worked for.
    "patient": """
import pathlib, time
from ts.handler_utils.utils import send_intermediate_predict_response
def handle(rows, context):
    if rows is None:
        return None
    for row in rows:
        who, notes, until = (bytes(row[name]).decode() for name in ("body", "notes", "until"))
        with open(notes, "a") as stream:
            stream.write(who + "\\n")
        while not pathlib.Path(until).exists():
            send_intermediate_predict_response(["."] * len(rows), context.request_ids, "", 200, context)
            time.sleep(0.01)
    return ["done"] * len(rows)
""",
    "broken": """
import no_such_module
def handle(rows, context):
    return rows
""",
}


class ServerHarness:
    """A server with gRPC only, in a thread."""

    def __init__(self, folder: Path, **keys: Any) -> None:
        self.store = folder / "store"
        self.store.mkdir(exist_ok=True)
        anywhere = Address("127.0.0.1", 0)
        settings = Settings(model_store=self.store, grpc_inference=anywhere, grpc_management=anywhere, job_queue_size=4)
        self.settings = replace(settings, **keys)
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.key_file = folder / "key_file.json"
        self.run(self._start())
        self.server = Endpoint(
            grpc_inference=f"grpc://127.0.0.1:{self.listener.inference}",
            grpc_management=f"grpc://127.0.0.1:{self.listener.management}",
            key_file=self.key_file,
            tokens={},
        )

    async def _start(self) -> None:
        self.fork_server = ForkServer()
        await self.fork_server.start()
        self.sources = ArchiveCache(self.settings, self.store.parent / "models")
        self.metrics = Metrics(machine=False)
        self.registry = Registry(
            self.sources, LocalPools(self.fork_server), self.settings, ServerObserver(self.metrics, Events())
        )
        listener = await server_grpc.listen(self.registry, Tokens(self.key_file), self.settings, self.metrics)
        assert listener
        self.listener = listener

    def run(self, doing: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(doing, self.loop).result(60)

    def build(self, name: str, version: str = "1.0") -> str:
        """Put an archive of one of the handlers into the store; return its name."""
        return pack_handler(self.store, HANDLERS[name], name=name, version=version).name

    def token(self, api: str) -> str:
        return str(json.loads(self.key_file.read_text())[api]["key"])

    def close(self) -> None:
        self.run(self.listener.close(0.1))
        self.run(self.registry.close(1))
        self.run(self.sources.close())
        self.loop.call_soon_threadsafe(self.fork_server.close)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerHarness]:
    harness = ServerHarness(tmp_path_factory.mktemp("grpc"), model_api=True, ts_open_inference_protocol=True)
    try:
        for name in HANDLERS:
            url = harness.build(name)
            if name != "broken":
                harness.run(harness.registry.register(Registration(url, initial_workers=1)))
        yield harness
    finally:
        harness.close()


@pytest.fixture
def inference(harness: ServerHarness) -> Iterator[GrpcInference]:
    with GrpcInference(harness.server) as client:
        yield client


@pytest.fixture
def management(harness: ServerHarness) -> Iterator[GrpcManagement]:
    with GrpcManagement(harness.server) as client:
        yield client


@pytest.fixture
def open_inference(harness: ServerHarness) -> Iterator[GrpcOpenInference]:
    with GrpcOpenInference(harness.server) as client:
        yield client


@pytest.fixture
def ask(harness: ServerHarness) -> Iterator[Callable[..., str]]:
    """Return a function that calls a method and returns its code and details, or the text of its answer."""
    channels = {
        api: grpc.insecure_channel(f"127.0.0.1:{port}")
        for api, port in (("inference", harness.listener.inference), ("management", harness.listener.management))
    }

    def call(service: str, method: str, request: Message, reply: Any = Empty, authorization: str | None = None) -> str:
        api = "management" if service == MANAGEMENT else "inference"
        shown = f"Bearer {harness.token(api)}" if authorization is None else authorization
        unary_method = channels[api].unary_unary(
            f"/{service}/{method}", type(request).SerializeToString, reply.FromString
        )
        try:
            response = unary_method(request, metadata=[("authorization", shown)] if shown else [], timeout=120)
        except grpc.RpcError as error:
            assert isinstance(error, grpc.Call)
            return f"{error.code().name} {error.details()}"
        return " ".join(str(response).split())

    yield call
    for channel in channels.values():
        channel.close()


def predict(ask: Callable[..., str], name: str, version: str = "", **row: bytes) -> str:
    request = inference_pb2.PredictionsRequest(model_name=name, model_version=version, input=row)
    return ask(INFERENCE, "Predictions", request, inference_pb2.PredictionResponse)


def manage(ask: Callable[..., str], method: str, **fields: Any) -> str:
    kinds = {"SetDefault": "SetDefaultRequest", "ListModels": "ListModelsRequest"}
    request = getattr(management_pb2, kinds.get(method, f"{method}Request"))(**fields)
    return ask(MANAGEMENT, method, request, management_pb2.ManagementResponse)


# Everything that stands in a table here TorchServe 0.12.0 has answered so.
NOT_FOUND = "org.pytorch.serve.archive.model.ModelNotFoundException"
NO_VERSION = "org.pytorch.serve.archive.model.ModelVersionNotFoundException"
BAD = "org.pytorch.serve.http.BadRequestException"
DENIED = "PERMISSION_DENIED Token Authorization failed. Token either incorrect, expired, or not provided correctly"


@pytest.mark.parametrize("authorization", ["", "Bearer nonsense", "Basic {token}", "{token}", "Bearer {other}"])
def test_a_call_without_the_right_token_is_denied(
    harness: ServerHarness, ask: Callable[..., str], authorization: str
) -> None:
    def shown(api: str, other: str) -> str:
        return authorization.format(token=harness.token(api), other=harness.token(other))

    wanted = inference_pb2.PredictionsRequest(model_name="made")
    answer = inference_pb2.PredictionResponse
    assert ask(INFERENCE, "Predictions", wanted, answer, shown("inference", "management")) == DENIED
    request = management_pb2.ListModelsRequest()
    assert ask(MANAGEMENT, "ListModels", request, Empty, shown("management", "inference")) == DENIED
    for tokens in ({}, {"inference": "wrong"}):
        with (
            pytest.raises(UnauthorizedError),
            GrpcInference(replace(harness.server, key_file=None, tokens=tokens)) as client,
        ):
            list(client.stream("pieces", b"x"))


def test_probes_over_grpc_need_no_token(ask: Callable[..., str]) -> None:
    for authorization in ("", "Bearer nonsense"):
        reply = ask(INFERENCE, "Ping", Empty(), inference_pb2.TorchServeHealthResponse, authorization)
        assert "ealthy" in reply


def test_an_unknown_method_is_unimplemented_with_or_without_a_token(ask: Callable[..., str]) -> None:
    for authorization in ("", None):
        reply = ask(INFERENCE, "Nothing", Empty(), authorization=authorization)
        assert reply.startswith("UNIMPLEMENTED")


@pytest.mark.parametrize(
    ("name", "version", "message"),
    [
        ("", "", "INTERNAL Parameter model_name is required.\nBadRequestException.()"),
        ("nothing", "", f"INTERNAL Model not found: nothing\n{NOT_FOUND}"),
        ("mirror", "9", f"INTERNAL Model version: 9 does not exist for model: mirror\n{NO_VERSION}"),
    ],
)
def test_an_unknown_model_is_an_error(ask: Callable[..., str], name: str, version: str, message: str) -> None:
    assert predict(ask, name, version) == message
    tensor = open_inference_pb2.ModelInferRequest.InferInputTensor(name="n", datatype="INT64", shape=[0])
    request = open_inference_pb2.ModelInferRequest(model_name=name, model_version=version, inputs=[tensor])
    response = open_inference_pb2.ModelInferResponse
    assert ask(OPEN, "ModelInfer", request, response) == message.replace("INTERNAL Model", "NOT_FOUND Model")
    code = "NOT_FOUND" if name else "INVALID_ARGUMENT"
    assert ask(STANDARD, "ModelInfer", request, response).startswith(code)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (302, "UNKNOWN"),
        (400, "INVALID_ARGUMENT"),
        (401, "UNAUTHENTICATED"),
        (403, "PERMISSION_DENIED"),
        (404, "NOT_FOUND"),
        (405, "FAILED_PRECONDITION"),
        (409, "ABORTED"),
        (413, "RESOURCE_EXHAUSTED"),
        (416, "OUT_OF_RANGE"),
        (429, "RESOURCE_EXHAUSTED"),
        (499, "CANCELLED"),
        (500, "INTERNAL"),
        (501, "UNIMPLEMENTED"),
        (503, "UNAVAILABLE"),
        (504, "DEADLINE_EXCEEDED"),
        (507, "INTERNAL"),
        (600, "UNKNOWN"),
    ],
)
def test_a_handlers_status_is_a_code(ask: Callable[..., str], status: int, code: str) -> None:
    reply = predict(ask, "many_ways", body=str(status).encode())
    assert reply == f"{code} on purpose\norg.pytorch.serve.http.InternalServerException"


@pytest.mark.parametrize(("status", "code"), [(400, "INVALID_ARGUMENT"), (404, "NOT_FOUND"), (500, "INTERNAL")])
def test_a_status_that_a_handler_sets_for_one_request_is_a_code_too(
    ask: Callable[..., str], status: int, code: str
) -> None:
    reply = predict(ask, "mirror", body=b"x", status=str(status).encode())
    assert reply.startswith(f"{code} {{")
    assert '"body": "bytearray"' in reply


def test_a_handler_that_fails_is_unavailable(ask: Callable[..., str]) -> None:
    reply = predict(ask, "many_ways", body=b"fail")
    assert reply == "UNAVAILABLE Prediction failed\norg.pytorch.serve.http.InternalServerException"


def test_the_row_has_all_fields_as_bytes(inference: GrpcInference) -> None:
    # A status below 400 that the handler gives its own answer is no error, as in TorchServe.
    assert inference.predict("mirror", {"a": 1}, fields={"target": "3"}) == {"body": "bytearray", "target": "bytearray"}
    assert inference.request("many_ways", exchange.Request(b"text")).body
    assert inference.ping() == "Healthy"


def test_an_answer_in_pieces_is_streamed_or_put_together(inference: GrpcInference) -> None:
    assert list(inference.stream("pieces", b"x")) == [b"a", b"b", b"c"]
    assert inference.predict("pieces", b"x") == "abc"


def test_a_handler_without_parts_is_streamed_once_and_survives(
    harness: ServerHarness, inference: GrpcInference
) -> None:
    def pids() -> list[int]:
        return [worker.pid for worker in harness.registry.find("many_ways").pool.workers()]

    before = pids()
    (part,) = inference.stream("many_ways", b"x")
    assert json.loads(part) == {"body": "x"}
    with pytest.raises(NotFoundError, match="on purpose"):
        list(inference.stream("many_ways", b"404"))
    with pytest.raises(NotFoundError, match="Model not found: nothing"):
        list(inference.stream("nothing", b"x"))
    assert pids() == before


def test_a_sequence_has_its_answers_one_by_one(harness: ServerHarness, inference: GrpcInference) -> None:
    assert list(inference.sequence("counting", "first", [b"12", b"345"])) == [b"2", b"5"]
    assert list(inference.sequence("counting", "second", [b"1"])) == [b"1"]
    with pytest.raises(ServerError, match="Model not found"):
        list(inference.sequence("nothing", "third", [b"1", b"2"]))


def test_an_error_in_a_sequence_does_not_end_it(harness: ServerHarness) -> None:
    def request(**more: Any) -> inference_pb2.PredictionsRequest:
        return inference_pb2.PredictionsRequest(model_name="counting", input={"body": b"12"}, **more)

    with grpc.insecure_channel(f"127.0.0.1:{harness.listener.inference}") as channel:
        stream_method = channel.stream_stream(
            f"/{INFERENCE}/StreamPredictions2",
            inference_pb2.PredictionsRequest.SerializeToString,
            inference_pb2.PredictionResponse.FromString,
        )
        metadata = [("authorization", f"Bearer {harness.token('inference')}")]
        wrong, right = stream_method(iter([request(), request(sequence_id="s")]), metadata=metadata, timeout=120)
    assert (wrong.status.code, wrong.status.message) == (13, "Parameter sequenceId is required.")
    # As TorchServe sends it, byte by byte.
    (info,) = wrong.status.details
    assert info.type_url == "type.googleapis.com/google.rpc.ErrorInfo"
    assert info.value == b"\n\x16BadRequestException.()"
    assert right.prediction == b"2"


@dataclass(frozen=True)
class Patience:
    """Requests to the patient handler, whose first request runs until it is released."""

    notes: Path
    until: Path

    def row(self, who: str) -> dict[str, bytes]:
        return {"body": who.encode(), "notes": str(self.notes).encode(), "until": str(self.until).encode()}

    def worked_for(self) -> list[str]:
        return self.notes.read_text().split() if self.notes.exists() else []

    def ask(self, channel: grpc.Channel, harness: ServerHarness, who: str, timeout: float = 60) -> Any:
        request = inference_pb2.PredictionsRequest(model_name="patient", input=self.row(who))
        unary_method = channel.unary_unary(
            f"/{INFERENCE}/Predictions",
            inference_pb2.PredictionsRequest.SerializeToString,
            inference_pb2.PredictionResponse.FromString,
        )
        token = [("authorization", f"Bearer {harness.token('inference')}")]
        return unary_method.future(request, metadata=token, timeout=timeout)


@pytest.fixture
def patience(tmp_path: Path) -> Iterator[Patience]:
    patience = Patience(tmp_path / "notes", tmp_path / "until")
    yield patience
    patience.until.touch()


def test_a_request_is_not_run_after_its_deadline_or_its_clients_end(harness: ServerHarness, patience: Patience) -> None:
    pool = harness.registry.find("patient").pool
    with grpc.insecure_channel(f"127.0.0.1:{harness.listener.inference}") as channel:
        first = patience.ask(channel, harness, "first")
        wait_until(patience.worked_for)
        late = patience.ask(channel, harness, "late", timeout=0.2)
        # The server rejects it if it has measured a batch before, or it waits in vain.
        assert late.exception().code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
        gone = patience.ask(channel, harness, "gone")
        wait_until(lambda: any(not job.cancelled for job in pool._queue))
        gone.cancel()
        wait_until(lambda: all(job.cancelled for job in pool._queue))
        last = patience.ask(channel, harness, "last")
        wait_until(lambda: any(not job.cancelled for job in pool._queue))
        patience.until.touch()
        assert first.result().prediction.endswith(b".done")
        assert last.result().prediction == b"done"
    assert patience.worked_for() == ["first", "last"]


def test_a_request_whose_deadline_cannot_be_met_is_rejected_at_once(harness: ServerHarness, tmp_path: Path) -> None:
    measured, running = (Patience(tmp_path / f"notes-{name}", tmp_path / f"until-{name}") for name in ("m", "r"))
    with grpc.insecure_channel(f"127.0.0.1:{harness.listener.inference}") as channel:
        slow = measured.ask(channel, harness, "slow")
        wait_until(measured.worked_for)
        time.sleep(1)  # the shortest time that may be measured
        measured.until.touch()
        assert slow.result().prediction
        first = running.ask(channel, harness, "first")
        wait_until(running.worked_for)
        late = running.ask(channel, harness, "late", timeout=0.9)
        assert late.exception().code() is grpc.StatusCode.UNAVAILABLE
        assert "cannot answer before the deadline of the request" in late.exception().details()
        running.until.touch()
        assert first.result().prediction
    assert running.worked_for() == ["first"]


def test_a_client_that_ends_a_stream_ends_its_request(harness: ServerHarness, patience: Patience) -> None:
    pool = harness.registry.find("patient").pool
    request = inference_pb2.PredictionsRequest(model_name="patient", input=patience.row("me"))
    with grpc.insecure_channel(f"127.0.0.1:{harness.listener.inference}") as channel:
        stream_method = channel.unary_stream(
            f"/{INFERENCE}/StreamPredictions",
            inference_pb2.PredictionsRequest.SerializeToString,
            inference_pb2.PredictionResponse.FromString,
        )
        parts = stream_method(request, metadata=[("authorization", f"Bearer {harness.token('inference')}")], timeout=60)
        assert next(parts).prediction == b"."
        (worker,) = pool._workers
        assert not worker.jobs[0].cancelled
        parts.cancel()
        wait_until(lambda: worker.jobs[0].cancelled)


def wait_until(true: Callable[[], object]) -> None:
    until = time.monotonic() + 20
    while not true():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_too_many_requests_and_no_workers_are_errors(
    harness: ServerHarness, patience: Patience, ask: Callable[..., str]
) -> None:
    pool = harness.registry.find("patient").pool
    with grpc.insecure_channel(f"127.0.0.1:{harness.listener.inference}") as channel:
        calls = [patience.ask(channel, harness, "first")]
        wait_until(patience.worked_for)
        calls += [
            patience.ask(channel, harness, f"waiting-{number}") for number in range(harness.settings.job_queue_size)
        ]
        wait_until(lambda: pool.pending == harness.settings.job_queue_size)
        full = predict(ask, "patient", **patience.row("refused"))
        assert full.startswith('INTERNAL Model "patient"')
        assert full.endswith("\nInternalServerException.()")
        patience.until.touch()
        assert all(call.result().prediction.endswith(b"done") for call in calls)
    assert "refused" not in patience.worked_for()
    harness.run(harness.registry.scale("patient", None, 0, 0))
    assert "has no worker to serve inference request" in predict(ask, "patient", **patience.row("rejected"))
    harness.run(harness.registry.scale("patient", None, 1, 1))


def test_a_message_that_is_too_large_is_an_error(inference: GrpcInference) -> None:
    with pytest.raises(ServerError) as caught:
        inference.predict("many_ways", b"x" * 7_000_000)
    assert caught.value.status == 413
    assert "max_request_size" in caught.value.hint


def test_a_model_is_registered_scaled_described_and_removed(harness: ServerHarness, management: GrpcManagement) -> None:
    names = [harness.build("mirror", version) for version in ("2.0", "3.0")]
    message = management.register(names[0], model_name="life", initial_workers=1, batch_size=3, startup_timeout=55)
    assert message == 'Model "life" Version: 2.0 registered with 1 initial workers'
    message = management.register(names[1], model_name="life")
    assert message.startswith('Model "life" Version: 3.0 registered with 0 initial workers. Use scale workers API')
    (first,) = management.describe("life")
    assert (first.version, first.batch_size, first.startup_timeout, first.ready) == ("2.0", 3, 55, 1)
    assert [version.version for version in management.describe("life", "all")] == ["2.0", "3.0"]
    assert "life" in management.names()
    assert management.scale("life", "3.0", min_worker=1) == "Workers scaled to 1 for model: life, version: 3.0"
    message = management.set_default("life", "3.0")
    assert message == 'Default version successfully updated for model "life" to "3.0"'
    assert management.describe("life")[0].version == "3.0"
    with pytest.raises(ConflictError, match="already registered"):
        management.register(names[0], model_name="life")
    with pytest.raises(ServerError, match="Cannot remove default version"):
        management.unregister("life")
    management.unregister("life", "2.0")
    assert management.unregister("life") == 'Model "life" unregistered'
    with pytest.raises(NotFoundError):
        management.describe("life")


def test_the_error_of_a_model_that_does_not_load_has_the_reason(
    harness: ServerHarness, ask: Callable[..., str]
) -> None:
    message = manage(ask, "RegisterModel", url="broken-1.0.mar", initial_workers=1, synchronous=True)
    assert message.startswith("INTERNAL Failed to start workers for model broken version: 1.0")
    assert message.endswith("\norg.pytorch.serve.http.InternalServerException")
    assert "broken" not in harness.registry.models


@pytest.mark.parametrize(
    ("method", "fields", "reply"),
    [
        ("DescribeModel", {}, f"NOT_FOUND Model not found: \n{NOT_FOUND}"),
        ("DescribeModel", {"model_name": "nothing"}, f"NOT_FOUND Model not found: nothing\n{NOT_FOUND}"),
        (
            "DescribeModel",
            {"model_name": "nothing", "model_version": "all"},
            f"NOT_FOUND Model not found: nothing\n{NOT_FOUND}",
        ),
        (
            "DescribeModel",
            {"model_name": "mirror", "model_version": "9"},
            f"NOT_FOUND Model version: 9 does not exist for model: mirror\n{NO_VERSION}",
        ),
        ("RegisterModel", {}, f"INVALID_ARGUMENT Parameter url is required.\n{BAD}"),
        ("RegisterModel", {"url": "none.mar"}, f"NOT_FOUND Model not found at: none.mar\n{NOT_FOUND}"),
        (
            "RegisterModel",
            {"url": "mirror-1.0.mar", "model_name": "rt", "runtime": "java"},
            f"INVALID_ARGUMENT Invalid RuntimeType value: java\n{BAD}",
        ),
        (
            "ScaleWorker",
            {"model_name": "nothing", "min_worker": 1},
            f"NOT_FOUND Model not found: nothing\n{NOT_FOUND}",
        ),
        (
            "ScaleWorker",
            {"model_name": "mirror", "min_worker": 2, "max_worker": 1},
            f"INVALID_ARGUMENT max_worker cannot be less than min_worker.\n{BAD}",
        ),
        ("ScaleWorker", {"model_name": "mirror"}, 'msg: "Processing worker updates..."'),
        (
            "ScaleWorker",
            {"model_name": "mirror", "min_worker": -1, "synchronous": True},
            'msg: "Workers scaled to 1 for model: mirror"',
        ),
        ("SetDefault", {}, f"NOT_FOUND Model not found: \n{NOT_FOUND}"),
        (
            "SetDefault",
            {"model_name": "mirror", "model_version": "9"},
            f"NOT_FOUND Model version 9 does not exist for model mirror\n{NO_VERSION}",
        ),
        ("UnregisterModel", {"model_name": "nothing"}, f"NOT_FOUND Model not found: nothing\n{NOT_FOUND}"),
        (
            "UnregisterModel",
            {"model_name": "mirror", "model_version": "9"},
            f"NOT_FOUND Model version: 9 does not exist for model: mirror\n{NO_VERSION}",
        ),
    ],
)
def test_management_responses_are_the_same_as_torchserves(
    ask: Callable[..., str], method: str, fields: dict[str, Any], reply: str
) -> None:
    assert manage(ask, method, **fields) == reply


def test_models_are_listed_in_pages(ask: Callable[..., str], management: GrpcManagement) -> None:
    assert r"\"nextPageToken\": \"0\",\n \"models\": []" in manage(ask, "ListModels")  # no limit is one of 0
    assert manage(ask, "ListModels", limit=2).count("modelUrl") == 2
    assert list(management.names()) == ["counting", "many_ways", "mirror", "patient", "pieces"]


def test_a_handler_may_describe_itself(
    harness: ServerHarness, ask: Callable[..., str], management: GrpcManagement
) -> None:
    request = management_pb2.DescribeModelRequest(model_name="mirror", customized=True)
    reply = ask(MANAGEMENT, "DescribeModel", request, management_pb2.ManagementResponse)
    assert r"\"about\": \"me\"" in reply
    # TorchServe leaves this client without an answer, and loses the worker.
    failed = manage(ask, "DescribeModel", model_name="many_ways", customized=True)
    assert failed.startswith("UNAVAILABLE Prediction failed")


def test_registration_is_denied_unless_it_is_switched_on(tmp_path: Path) -> None:
    harness = ServerHarness(tmp_path, ts_open_inference_protocol=False)
    try:
        with GrpcManagement(harness.server) as management:
            for call in (lambda: management.register("x.mar"), lambda: management.unregister("x")):
                with pytest.raises(ServerError, match="Model API disabled") as caught:
                    call()
                assert caught.value.status == 405  # as over REST
            assert list(management.models()) == []
        with GrpcOpenInference(harness.server) as client, pytest.raises(ServerError) as caught:
            client.live()  # is a protocol that is off
        assert caught.value.status == 501
    finally:
        harness.close()


def test_the_open_inference_protocol_reports_health_and_readiness(
    harness: ServerHarness, open_inference: GrpcOpenInference, ask: Callable[..., str]
) -> None:
    assert open_inference.live()
    assert open_inference.ready()
    assert open_inference.model_ready("many_ways", "1.0")
    assert open_inference.model_metadata("many_ways").versions == ("1.0",)
    request, reply = open_inference_pb2.ServerMetadataRequest(), open_inference_pb2.ServerMetadataResponse
    assert 'name: "torchmar"' in ask(OPEN, "ServerMetadata", request, reply)
    for method in ("ModelReady", "ModelMetadata"):
        name_request = getattr(open_inference_pb2, f"{method}Request")(name="nothing")
        assert ask(OPEN, method, name_request) == f"NOT_FOUND Model not found: nothing\n{NOT_FOUND}"
        nameless = ask(OPEN, method, getattr(open_inference_pb2, f"{method}Request")())
        assert nameless.endswith("is required.\nBadRequestException.()")
    harness.run(harness.registry.scale("patient", None, 0, 0))
    assert not open_inference.model_ready("patient")
    harness.run(harness.registry.scale("patient", None, 1, 1))


def test_tensors_are_sent_and_returned(open_inference: GrpcOpenInference) -> None:
    inputs = [
        Tensor.of("numbers", [[1, 2], [3, 4]]),
        Tensor.of("parts", [0.5, 1.5]),
        Tensor.of("flags", [True, False]),
        Tensor("large", "UINT64", (1,), [2**63 + 5]),
        Tensor("small", "INT8", (2,), [-1, 127]),
    ]
    back = open_inference.infer("many_ways", inputs, id="7")
    assert back == [replace(tensor, name=f"same {tensor.name}") for tensor in inputs]
    (texts,) = open_inference.infer("many_ways", [Tensor.of("texts", ["hello"])])
    assert texts.data == ["hello"]
    with pytest.raises(ServerError, match="not of the Open Inference Protocol"):
        open_inference.infer("mirror", inputs)


def infer(ask: Callable[..., str], datatype: str, raw: bytes | None = None, **contents: Any) -> str:
    tensor = open_inference_pb2.ModelInferRequest.InferInputTensor(
        name="n", datatype=datatype, shape=[2], contents=open_inference_pb2.InferTensorContents(**contents)
    )
    request = open_inference_pb2.ModelInferRequest(
        model_name="many_ways", inputs=[tensor], raw_input_contents=[] if raw is None else [raw]
    )
    return ask(OPEN, "ModelInfer", request, open_inference_pb2.ModelInferResponse)


def test_raw_contents_are_taken_and_answered(ask: Callable[..., str]) -> None:
    assert r'raw_output_contents: "\000\000\000?\000\000\000@"' in infer(ask, "FP32", struct.pack("<2f", 0.5, 2))
    assert r'raw_output_contents: "\376\377\007\000"' in infer(ask, "INT16", struct.pack("<2h", -2, 7))
    assert r'raw_output_contents: "\001\000"' in infer(ask, "BOOL", b"\1\0")
    texts = b"".join(struct.pack("<I", len(text)) + text for text in (b"hello", b""))
    # TorchServe hands bytes to handlers in base64, and sends texts as they stand in JSON.
    assert r'raw_output_contents: "\n\000\000\000\"aGVsbG8=\"\002\000\000\000\"\""' in infer(ask, "BYTES", texts)
    for datatype, raw in (("FP32", b"123"), ("BYTES", b"\5\0\0\0x"), ("BYTES", b"\5\0")):
        assert infer(ask, datatype, raw).startswith("INVALID_ARGUMENT ")


def test_values_that_json_lacks_are_rejected_and_end_no_worker(harness: ServerHarness, ask: Callable[..., str]) -> None:
    assert infer(ask, "FP32", fp32_contents=[math.nan]).startswith("INVALID_ARGUMENT")
    assert infer(ask, "FP32", fp32_contents=[math.inf]).startswith("INVALID_ARGUMENT")
    assert infer(ask, "WHAT", fp32_contents=[1]).startswith("INVALID_ARGUMENT input 'n': ")
    assert harness.registry.find("many_ways").pool.ready == 1


def test_calls_are_counted(harness: ServerHarness, inference: GrpcInference) -> None:
    def count(name: str, **labels: str) -> float:
        return metrics.Reading(0, metrics.parse(harness.metrics.text())).total(name, **labels)

    def now() -> list[float]:
        return [
            count("ts_inference_requests_total", model_name="many_ways"),
            count("Requests2XX"),
            count("Requests4XX"),
        ]

    before = now()
    inference.predict("many_ways", b"x")
    with pytest.raises(NotFoundError):
        inference.predict("many_ways", b"404")
    assert [new - old for new, old in zip(now(), before, strict=True)] == [2, 1, 1]


def test_it_serves_over_tls(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    key, own = certificate
    harness = ServerHarness(tmp_path, grpc_tls=True, private_key_file=key, certificate_file=own)
    try:
        address = f"grpcs://127.0.0.1:{harness.listener.inference}"
        with GrpcInference(replace(harness.server, grpc_inference=address, verify=own)) as client:
            assert client.ping() == "Healthy"
        with GrpcInference(replace(harness.server, grpc_inference=address)) as client, pytest.raises(CertificateError):
            client.ping()
        missing = replace(harness.settings, certificate_file=tmp_path / "none.pem")
        with pytest.raises(PropertiesError, match=r"none\.pem: gRPC needs both"):
            harness.run(server_grpc.listen(harness.registry, Tokens(harness.key_file), missing, harness.metrics))
    finally:
        harness.close()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """Return a key and the certificate that it has signed itself."""
    return certify(tmp_path)


def test_a_port_in_use_is_an_error_with_the_reason(harness: ServerHarness) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address("127.0.0.1", taken.getsockname()[1])
        settings = replace(harness.settings, grpc_management=address)
        with pytest.raises(BindError, match=f"cannot listen on 127.0.0.1:{address.port}: address already in use"):
            harness.run(
                server_grpc.listen(harness.registry, Tokens(harness.key_file, enabled=False), settings, harness.metrics)
            )


def test_without_grpcio_the_server_logs_it_and_starts(tmp_path: Path) -> None:
    code = (
        "import asyncio, logging\n"
        "from torchmar.server import grpc\n"
        "logging.basicConfig()\n"
        "assert asyncio.run(grpc.listen(None, None, None, None)) is None\n"
    )
    python = environment_without(tmp_path / "environment", ("grpc",))
    done = subprocess.run([python, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "gRPC is off: it needs pip install 'torchmar[grpc]'" in done.stderr
    assert sys.executable != str(python)
