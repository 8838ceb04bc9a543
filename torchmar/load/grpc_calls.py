"""Calls over gRPC: TorchServe's ``Predictions`` and the Open Inference Protocol's ``ModelInfer``."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from urllib.parse import unquote, urlsplit

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from grpc import StatusCode

import torchmar
from torchmar.errors import TorchmarError
from torchmar.exchange import Response
from torchmar.grpc.inference import GrpcInference, predictions_request
from torchmar.grpc.open_inference import GrpcOpenInference, infer_request
from torchmar.grpc.wire.inference_pb2 import PredictionResponse, PredictionsRequest
from torchmar.grpc.wire.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from torchmar.inference import Tensor
from torchmar.load.calls import Call, Connection, Owner
from torchmar.load.event_loop import EventLoop
from torchmar.load.http2 import Http2Connection, UnaryRequest
from torchmar.load.stream import Peer
from torchmar.load.target import Target, tensors
from torchmar.load.workload import Case

_CODES = {str(code.value[0]): code.name for code in StatusCode}
#: The HTTP statuses of errors in a request, by the gRPC code of the same error.
_STATUSES = {
    "INVALID_ARGUMENT": (400,),
    "UNAUTHENTICATED": (401,),
    "PERMISSION_DENIED": (403,),
    "NOT_FOUND": (404,),
    "RESOURCE_EXHAUSTED": (413, 429),
    "FAILED_PRECONDITION": (415, 422),
}
_ERROR = b'{"code":'  # the beginning of an error from torchmar_handlers, whose status gRPC does not transmit
_BODY = "body"  # the key in the row of the handler, as for the body of a request over HTTP
_ERROR_AT_MOST = 16  # number of bytes before it in the message


class Calls:
    """The calls of a measurement over gRPC.

    Args:
        target: the server and model.
        cases: the requests.
        token: token of the inference API, or None.

    Raises:
        TorchmarError: gRPC cannot carry a request.
    """

    def __init__(self, target: Target, cases: Sequence[Case], token: str | None) -> None:
        parts = urlsplit(target.url)
        headers = [
            (":method", "POST"),
            (":scheme", "https" if parts.scheme == "grpcs" else "http"),
            (":path", _path(target)),
            (":authority", parts.netloc),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", f"torchmar/{torchmar.__version__}"),
        ]
        if token:
            headers.append(("authorization", f"Bearer {token}"))
        message = _prediction if target.protocol == "grpc" else _inference
        self._requests = [UnaryRequest.of(headers, message(target, case).SerializeToString()) for case in cases]

    def connect(self, loop: EventLoop, peer: Peer, owner: Owner, *, multiplex: bool) -> Connection:
        """Open a connection; the arguments are those of `torchmar.load.target.Wire.connect`."""
        return Http2Connection(loop, peer, self._requests, owner, _finish, multiplex=multiplex)


def _prediction(target: Target, case: Case) -> PredictionsRequest:
    if case.request.explain:
        raise TorchmarError("explanations need HTTP: gRPC has no call for them", hint="--protocol torchserve")
    return predictions_request(target.model, {_BODY: case.request.body}, target.version)


def _inference(target: Target, case: Case) -> ModelInferRequest:
    try:
        inputs = [Tensor.read(tensor) for tensor in tensors(case)["inputs"]]
    except (KeyError, TypeError, ValueError) as error:
        raise TorchmarError(f"{case.name}: an input is no tensor: {error}") from None
    return infer_request(target.model, inputs, target.version)


def _path(target: Target) -> str:
    if target.protocol == "grpc":
        return f"/{GrpcInference._service}/Predictions"
    with GrpcOpenInference(target.endpoint, timeout=10) as client:
        client.live()  # TorchServe has another name for this service
        return f"/{client.service}/ModelInfer"


@contextlib.contextmanager
def sender(target: Target) -> Iterator[Callable[[Case], Response]]:
    """Yield a function that sends a case alone and returns its answer, whose body is the message.

    The function raises the errors of the clients of `torchmar.grpc`.
    """
    if target.protocol == "grpc":
        with GrpcInference(target.endpoint) as plain:
            yield lambda case: Response(200, plain.send(_prediction(target, case)).SerializeToString())
    else:
        with GrpcOpenInference(target.endpoint) as open_inference:
            yield lambda case: Response(200, open_inference.send(_inference(target, case)).SerializeToString())


def answer(target: Target, message: bytes) -> bytes:
    """Return the answer in a message: a prediction, or a response of the Open Inference Protocol as JSON."""
    try:
        if target.protocol == "grpc":
            return PredictionResponse.FromString(message).prediction
        return json_format.MessageToJson(ModelInferResponse.FromString(message)).encode()
    except DecodeError:
        return message


def _finish(owner: Owner, call: Call, headers: Mapping[str, str], message: bytes) -> None:
    status = headers.get("grpc-status", "")
    if status == "0":
        start = message.find(_ERROR, 0, _ERROR_AT_MOST + len(_ERROR))
        owner.answered(call, 200 if start < 0 else _status(message[start:]), message)
    elif not status:
        owner.failed(call, f"status {headers.get('http-status', '')} of HTTP", "no gRPC server answers there")
    else:
        details = unquote(headers.get("grpc-message", ""))
        code = _CODES.get(status, status)
        owner.failed(call, f"status {code}", details.partition("\n")[0], _STATUSES.get(code, ()))


def _status(error: bytes) -> int:
    with contextlib.suppress(ValueError, LookupError, TypeError):
        return int(json.loads(error)["code"])
    return 200
