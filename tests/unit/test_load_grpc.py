"""Load over gRPC, against a server of grpcio."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from torchmar.connection import Endpoint
from torchmar.errors import ConnectError, ServerError, TorchmarError
from torchmar.exchange import Request
from torchmar.grpc.wire.inference_pb2 import PredictionResponse, PredictionsRequest
from torchmar.grpc.wire.open_inference_pb2 import ModelInferRequest, ModelInferResponse, ServerLiveResponse
from torchmar.load import expectations
from torchmar.load.measuring import StepSpec, measure
from torchmar.load.results import Step
from torchmar.load.target import Target
from torchmar.load.workload import Case, Workload
from torchmar.recipe import Sample

_SERVICE = "org.pytorch.serve.grpc.inference.InferenceAPIsService"
_OPEN_INFERENCE = "inference.GRPCInferenceService"
Predict = Callable[[PredictionsRequest, grpc.ServicerContext], bytes]


def _echo(request: PredictionsRequest, context: grpc.ServicerContext) -> bytes:
    return bytes(request.input["body"])


def _slowly(request: PredictionsRequest, context: grpc.ServicerContext) -> bytes:
    time.sleep(0.02)
    return _echo(request, context)


@contextlib.contextmanager
def serving(predict: Predict = _echo) -> Iterator[Target]:
    """Run a server whose predictions are those of a function."""
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", -1)])

    def answer(request: PredictionsRequest, context: grpc.ServicerContext) -> PredictionResponse:
        return PredictionResponse(prediction=predict(request, context))

    def infer(request: ModelInferRequest, context: grpc.ServicerContext) -> ModelInferResponse:
        response = ModelInferResponse(model_name=request.model_name)
        output = response.outputs.add(name="y", datatype="FP32", shape=[2])
        output.contents.fp32_contents.extend(2 * value for value in request.inputs[0].contents.fp32_contents)
        return response

    methods = {
        _SERVICE: {
            "Predictions": grpc.unary_unary_rpc_method_handler(
                answer, PredictionsRequest.FromString, PredictionResponse.SerializeToString
            )
        },
        _OPEN_INFERENCE: {
            "ModelInfer": grpc.unary_unary_rpc_method_handler(
                infer, ModelInferRequest.FromString, ModelInferResponse.SerializeToString
            ),
            "ServerLive": grpc.unary_unary_rpc_method_handler(
                lambda request, context: ServerLiveResponse(live=True), None, ServerLiveResponse.SerializeToString
            ),
        },
    }
    server.add_generic_rpc_handlers(
        tuple(grpc.method_handlers_generic_handler(service, handlers) for service, handlers in methods.items())
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        endpoint = Endpoint(grpc_inference=f"grpc://127.0.0.1:{port}", tokens={"inference": "a-token"})
        yield Target(endpoint=endpoint, model="echo", protocol="grpc")
    finally:
        server.stop(None).wait()


def _workload(*bodies: bytes) -> Workload:
    return Workload("inputs", tuple(Case(f"{body[:5]!r}", Request(body)) for body in bodies))


def _measure(target: Target, workload: Workload, **values: object) -> Step:
    expected = expectations.gather(target, workload)
    # No request is due at the begin or the end of the measurement, where rounding would decide whether it counts.
    spec = {"rate": 500.0, "arrivals": "constant", "duration_s": 0.2, "warmup_s": 0.0525, **values}
    return measure(target, workload, expected, StepSpec(**spec))  # type: ignore[arg-type]


def test_many_calls_share_a_connection_and_each_gets_its_own_answer() -> None:
    def predict(request: PredictionsRequest, context: grpc.ServicerContext) -> bytes:
        time.sleep(0.03)
        return _echo(request, context)

    with serving(predict) as target:
        # No more requests than calls that one connection may have, also if the machine stalls.
        step = _measure(target, _workload(b"one", b"two", b"three"), rate=200.0, duration_s=0.4)
    assert (step.sent, step.completed, step.errors, step.wrong_answers) == (80, 80, (), 0)
    assert step.connections == 1
    assert step.latency_ms is not None
    assert step.latency_ms.p50 >= 30


def test_a_closed_loop_has_one_call_on_each_connection() -> None:
    with serving(_slowly) as target:
        step = _measure(target, _workload(b"one"), kind="closed", connections=3, rate=None, duration_s=1.0)
    assert step.connections == 3
    assert step.completed > 3
    assert step.errors == ()


def test_messages_beyond_the_windows_of_http2_arrive_whole() -> None:
    body = bytes(range(256)) * 4_000  # 1 MB, many times a window and a frame
    with serving() as target:
        step = _measure(target, _workload(body, b"small"), rate=100.0)
    assert (step.sent, step.completed, step.errors, step.wrong_answers) == (20, 20, (), 0)


def test_the_token_is_sent() -> None:
    tokens = set()

    def predict(request: PredictionsRequest, context: grpc.ServicerContext) -> bytes:
        tokens.add(dict(context.invocation_metadata())["authorization"])
        return b"ok"

    with serving(predict) as target:
        _measure(target, _workload(b"one"))
    assert tokens == {"Bearer a-token"}


def test_errors_are_counted_by_their_code_with_the_servers_message() -> None:
    calls = []

    def predict(request: PredictionsRequest, context: grpc.ServicerContext) -> bytes:
        calls.append(1)
        if len(calls) > 2 and len(calls) % 10 == 0:
            context.abort(grpc.StatusCode.UNAVAILABLE, "no worker: 100 %")
        return b"ok"

    with serving(predict) as target:
        step = _measure(target, _workload(b"one"), warmup_s=0.0)
    (failure,) = step.errors
    assert (failure.kind, failure.count) == ("status UNAVAILABLE", 10)
    assert failure.example.endswith("no worker: 100 %")
    assert step.completed == step.sent == 100


def test_an_error_of_a_handler_has_the_status_in_its_answer() -> None:
    calls = []

    def predict(request: PredictionsRequest, context: grpc.ServicerContext) -> bytes:
        calls.append(1)
        error = b'{"code": 400, "type": "BadRequestException", "message": "no image"}'
        return error if len(calls) % 10 == 0 else b"ok"

    with serving(predict) as target:
        step = _measure(target, _workload(b"one"), warmup_s=0.0)
    (failure,) = step.errors
    assert failure.kind == "status 400"
    assert step.wrong_answers == 0


def test_an_error_that_a_sample_expects_is_a_right_answer() -> None:
    def predict(request: PredictionsRequest, context: grpc.ServicerContext) -> bytes:
        if request.input["body"] != b"good":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no number")
        return b"1"

    cases = [Case("good", Request(b"good")), Case("bad", Request(b"bad"), Sample(json=0, status=400))]
    with serving(predict) as target:
        step = _measure(target, Workload("inputs", tuple(cases)), warmup_s=0.0)
        other = Case("gone", Request(b"bad"), Sample(json=0, status=404))
        wrong = _measure(target, Workload("inputs", (other,)), warmup_s=0.0)
    assert (step.errors, step.completed, step.wrong_answers) == ((), 100, 0)
    assert [(failure.kind, failure.count) for failure in wrong.errors] == [("status INVALID_ARGUMENT", 100)]


def test_wrong_answers_are_found() -> None:
    calls = []

    def predict(request: PredictionsRequest, context: grpc.ServicerContext) -> bytes:
        calls.append(1)
        return b'{"class": 4}' if len(calls) % 10 == 0 else b'{"class": 3.0000001, "at": 1}'

    sample = Sample(json=0, expect={"class": 3}, tolerance=0.01)
    workload = Workload("inputs", (Case("three.png", Request(b"3"), sample),))
    with serving(predict) as target:
        step = _measure(target, workload, warmup_s=0.0)
    assert step.wrong_answers == 10
    assert step.wrong_answer == "three.png: class is 4, not 3 within 0.01"


def test_the_open_inference_protocol_is_measured() -> None:
    body = b'{"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1.5, 2]}]}'
    with serving() as plain:
        target = Target(endpoint=plain.endpoint, model="double", protocol="grpc-v2")
        step = _measure(target, _workload(body))
        with pytest.raises(TorchmarError, match="no request of the Open Inference Protocol"):
            _measure(target, _workload(b"text"))
    assert (step.sent, step.completed, step.errors, step.wrong_answers) == (100, 100, (), 0)


def test_a_server_that_ends_fails_its_calls_and_the_load_goes_on() -> None:
    with serving() as target:
        workload = _workload(b"one")
        expected = expectations.gather(target, workload)
    step = measure(target, workload, expected, StepSpec(rate=50, duration_s=0.5, warmup_s=0))
    assert step.completed == 0
    assert {failure.kind for failure in step.errors} == {"connection refused"}


def test_a_call_that_takes_too_long_is_cancelled_and_others_go_on() -> None:
    calls = []

    def predict(request: PredictionsRequest, context: grpc.ServicerContext) -> bytes:
        calls.append(1)
        time.sleep(1 if len(calls) == 10 else 0)
        return b"ok"

    with serving(predict) as target:
        step = _measure(target, _workload(b"one"), warmup_s=0.0, timeout_s=0.5)
    assert [(failure.kind, failure.count) for failure in step.errors] == [("timeout", 1)]
    assert step.completed == 99
    assert step.connections == 1


def test_a_connection_of_a_closed_loop_goes_on_after_a_timeout() -> None:
    calls = []

    def predict(request: PredictionsRequest, context: grpc.ServicerContext) -> bytes:
        calls.append(1)
        time.sleep(3 if len(calls) == 10 else 0.01)
        return b"ok"

    with serving(predict) as target:
        options = {
            "kind": "closed",
            "connections": 1,
            "rate": None,
            "warmup_s": 0.0,
            "timeout_s": 1.5,
            "duration_s": 2.5,
        }
        step = _measure(target, _workload(b"one"), **options)
    assert [(failure.kind, failure.count) for failure in step.errors] == [("timeout", 1)]
    assert step.windows[-1].completed > 0


def test_before_the_load_errors_are_those_of_the_clients() -> None:
    def predict(request: PredictionsRequest, context: grpc.ServicerContext) -> bytes:
        return b'{"code": 400, "type": "BadRequestException", "message": "no image"}'

    with serving(predict) as target, pytest.raises(ServerError, match="no image"):
        expectations.gather(target, _workload(b"one"))
    with pytest.raises(ConnectError, match="connection refused"):
        expectations.gather(target, _workload(b"one"))


def test_explanations_need_http() -> None:
    workload = Workload("inputs", (Case("a", Request(b"1", explain=True)),))
    with serving() as target, pytest.raises(TorchmarError, match="explanations need HTTP"):
        expectations.gather(target, workload)
