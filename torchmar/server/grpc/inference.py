"""The inference API over gRPC; the contract is ``torchmar/grpc/wire/inference.proto``."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping

from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty

from torchmar.grpc.wire.inference_pb2 import PredictionResponse, PredictionsRequest, Status, TorchServeHealthResponse
from torchmar.server.grpc.calls import CallError, Context, Method, missing_parameter, streamed, unary
from torchmar.server.grpc.model_call import ModelCall
from torchmar.server.models.health import health
from torchmar.server.models.registry import Registry, Version
from torchmar.server.workers.jobs import Part

_SEQUENCE = "ts_request_sequence_id"


class Inference:
    """The inference service.

    Args:
        registry: the models.
        model_call: sends calls to the models.
    """

    name = "org.pytorch.serve.grpc.inference.InferenceAPIsService"

    def __init__(self, registry: Registry, model_call: ModelCall) -> None:
        self._registry, self._call = registry, model_call

    def methods(self) -> Mapping[str, Method]:
        """Return the methods by their names."""
        return {
            "Ping": unary(self.ping, Empty),
            "Predictions": unary(self.predict, PredictionsRequest),
            "StreamPredictions": streamed(self.stream, PredictionsRequest),
            "StreamPredictions2": streamed(self.sequence, PredictionsRequest, many=True),
        }

    async def ping(self, request: Empty, context: Context) -> TorchServeHealthResponse:
        """Return the health of the server, as ``/ping`` does."""
        return TorchServeHealthResponse(health=json.dumps({"status": health(self._registry)}, indent=2))

    async def predict(self, request: PredictionsRequest, context: Context) -> PredictionResponse:
        """Return the response to a request; parts of a streamed one are joined."""
        version, inputs = self._resolve(request)
        return PredictionResponse(prediction=await self._call.whole(version, inputs, context))

    async def stream(self, request: PredictionsRequest, context: Context) -> AsyncIterator[PredictionResponse]:
        """Yield the parts of the response to a request; one if the handler does not stream."""
        version, inputs = self._resolve(request)
        async for part in self._call.parts(version, inputs, context):
            yield PredictionResponse(prediction=part)

    async def sequence(
        self, requests: AsyncIterator[PredictionsRequest], context: Context
    ) -> AsyncIterator[PredictionResponse]:
        """Answer the requests of a sequence in order; if one fails, it gets an error, and the stream continues.

        The handler learns the sequence from the header ``ts_request_sequence_id``.
        """
        async for request in requests:
            try:
                if not request.sequence_id.strip():
                    raise missing_parameter("sequenceId")
                version, inputs = self._resolve(request)
                headers = {_SEQUENCE: request.sequence_id}
                async for part in self._call.parts(version, inputs, context, headers):
                    yield PredictionResponse(prediction=part)
            except CallError as error:
                yield PredictionResponse(status=_status(error))

    def _resolve(self, request: PredictionsRequest) -> tuple[Version, list[Part]]:
        if not request.model_name:
            raise missing_parameter("model_name")
        inputs = [Part(name, "", content) for name, content in request.input.items()]
        return self._call.find(request.model_name, request.model_version), inputs


def _status(error: CallError) -> Status:
    """Return google.rpc.Status as in TorchServe: the exception's class is the reason in an ErrorInfo."""
    message, _, kind = error.details.rpartition("\n")
    reason = kind.encode()
    info = Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\n%c%b" % (len(reason), reason))
    number: int = error.code.value[0]
    return Status(code=number, message=message, details=[info])
