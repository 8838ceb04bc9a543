"""The inference API over gRPC."""

from __future__ import annotations

import contextlib
import json
import queue
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from google.protobuf.empty_pb2 import Empty

from torchmar.connection.error_responses import classified
from torchmar.errors import ServerError, TorchmarError
from torchmar.exchange import Request, Response
from torchmar.grpc.channel import Client
from torchmar.grpc.wire.inference_pb2 import PredictionResponse, PredictionsRequest, TorchServeHealthResponse
from torchmar.inference import bodies

_BODY = "body"  # the key in the handler's row, the same as for the body of a REST request
_ERROR = b'{"code":'  # the beginning of an error from torchmar_handlers


class GrpcInference(Client):
    """A client of the inference API over gRPC; a context manager. It may be used by several threads.

    A request over gRPC has only named bytes, without content type and headers; explanations need REST.

    Args:
        server: endpoint, or only its address: ``grpc://host:7070``, or ``grpcs://`` for TLS; default: the server
            that runs in ``.torchmar``, or TorchServe's default address.
        timeout: seconds to wait for a response (gRPC's deadline).

    Raises:
        ConnectError: by every method: no server answers.
        ServerError: by every method: the server or the handler answers with an error.

    Examples:
        >>> from torchmar.grpc import GrpcInference
        >>> with GrpcInference() as client:
        ...     client.predict("lengths", "hello")
        {'characters': 5}
    """

    _api = "inference"
    _service = "org.pytorch.serve.grpc.inference.InferenceAPIsService"

    def ping(self) -> str:
        """Return the server's health: ``Healthy``, or ``Unhealthy`` when workers are missing."""
        reply = self._channel.call("Ping", Empty(), TorchServeHealthResponse, timeout=5)
        return str(json.loads(reply.health)["status"])

    def request(
        self, name: str, request: Request, version: str | None = None, *, timeout: float | None = None
    ) -> Response:
        """Return the response of a version of a model, by default the default one; only the body of the request is
        sent.

        Raises:
            TorchmarError: the request is for an explanation.
        """
        if request.explain:
            raise TorchmarError("TorchServe explains over REST only", hint="use InferenceClient")
        return Response(200, self._predict(name, {_BODY: request.body}, version, timeout))

    def predict(
        self,
        name: str,
        data: Any,
        version: str | None = None,
        *,
        fields: Mapping[str, str | bytes] | None = None,
        metadata: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Return the prediction of a model for ``data``.

        Args:
            name: name of the model.
            data: a path, bytes, a text, an array, or a JSON value.
            version: version of the model; default: the default version.
            fields: further entries of the handler's row, like the form fields of REST.
            metadata: metadata of the call, such as ``traceparent``; names in lower case.
            timeout: seconds; default: the client's.

        Returns:
            JSON as Python values, a text, or bytes.

        Raises:
            ServerError: the response is an error of the server, or of a handler of torchmar. Statuses of other handlers
                are not transmitted.
        """
        row = {key: text.encode() if isinstance(text, str) else text for key, text in (fields or {}).items()}
        row[_BODY] = bodies.request(data).body
        return bodies.value(Response(200, self._predict(name, row, version, timeout, metadata)))

    def stream(
        self,
        name: str,
        data: Any,
        version: str | None = None,
        *,
        metadata: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Iterator[bytes]:
        """Yield the parts of a response as the handler sends them.

        Only for handlers that send parts (``ts.handler_utils.utils.send_intermediate_predict_response``):
        any other handler ends the worker of TorchServe 0.12.0, which takes seconds to restart.
        """
        request = predictions_request(name, {_BODY: bodies.request(data).body}, version)
        for response in self._channel.stream("StreamPredictions", request, PredictionResponse, timeout, metadata):
            yield response.prediction

    def sequence(
        self,
        name: str,
        sequence_id: str,
        inputs: Iterable[Any],
        version: str | None = None,
        *,
        timeout: float | None = None,
    ) -> Iterator[bytes]:
        """Yield the responses to the requests of one sequence, for models with ``sequenceBatching``.

        Only for these models: any other model ends the worker of TorchServe 0.12.0. Each request is sent after the
        previous response has arrived: when a client has sent its last request, the server drops the responses that are
        not sent yet.

        Args:
            name: name of the model.
            sequence_id: id of the sequence; one worker gets all its requests.
            inputs: inputs, each as for `predict`.
            version: version of the model; default: the default version.
            timeout: seconds for the whole sequence; default: the client's.

        Raises:
            ServerError: the response to a request is an error; the sequence ends.
        """
        waiting: queue.SimpleQueue[PredictionsRequest | None] = queue.SimpleQueue()
        responses = self._channel.stream("StreamPredictions2", iter(waiting.get, None), PredictionResponse, timeout)
        try:
            for data in inputs:
                waiting.put(predictions_request(name, {_BODY: bodies.request(data).body}, version, sequence_id))
                response = next(responses)
                if response.HasField("status"):
                    raise ServerError(response.status.message, status=500)
                yield response.prediction
        finally:
            waiting.put(None)

    def send(
        self,
        request: PredictionsRequest,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> PredictionResponse:
        """Send a message unchanged, and return the response.

        Raises:
            ServerError: for the reasons of `predict`.
        """
        reply = self._channel.call("Predictions", request, PredictionResponse, timeout, metadata)
        if error := _error(reply.prediction):
            raise error
        return reply

    def _predict(
        self,
        name: str,
        row: Mapping[str, bytes],
        version: str | None,
        timeout: float | None,
        metadata: Mapping[str, str] | None = None,
    ) -> bytes:
        return self.send(predictions_request(name, row, version), timeout, metadata).prediction


def _error(body: bytes) -> ServerError | None:
    """Return the error in a body; None if there is none. The status from a handler is not sent over gRPC."""
    if body.startswith(_ERROR):
        with contextlib.suppress(ValueError, KeyError):
            reply = json.loads(body)
            status, kind, message = reply["code"], str(reply["type"]), str(reply["message"])
            if kind.endswith("Exception"):
                return classified(int(status), kind, message, "inference")
    return None


def predictions_request(
    name: str, row: Mapping[str, bytes], version: str | None, sequence_id: str | None = None
) -> PredictionsRequest:
    """Return the message of a request for a prediction."""
    return PredictionsRequest(model_name=name, model_version=version or "", input=row, sequence_id=sequence_id)
