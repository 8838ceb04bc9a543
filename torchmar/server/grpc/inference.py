"""The inference API over gRPC; the contract is ``torchmar/grpc/wire/inference.proto``."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping

from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty

from torchmar.grpc.wire.inference_pb2 import PredictionResponse, PredictionsRequest, Status, TorchServeHealthResponse
from torchmar.server.grpc.calls import Context, Failed, Method, bad, streamed, unary
from torchmar.server.grpc.model_call import ModelCall
from torchmar.server.models.health import health
from torchmar.server.models.registry import Registry, Version
from torchmar.server.workers.jobs import Part

_SEQUENCE = "ts_request_sequence_id"


class Inference:
    """The service.

    Args:
        registry: the models.
        asking: what asks them.
    """

    name = "org.pytorch.serve.grpc.inference.InferenceAPIsService"

    def __init__(self, registry: Registry, asking: ModelCall) -> None:
        self._registry, self._asking = registry, asking

    def methods(self) -> Mapping[str, Method]:
        """Return the methods by their names."""
        return {
            "Ping": unary(self.ping, Empty),
            "Predictions": unary(self.predict, PredictionsRequest),
            "StreamPredictions": streamed(self.stream, PredictionsRequest),
            "StreamPredictions2": streamed(self.sequence, PredictionsRequest, many=True),
        }

    async def ping(self, asked: Empty, context: Context) -> TorchServeHealthResponse:
        """Say how the server is, as ``/ping`` does."""
        return TorchServeHealthResponse(health=json.dumps({"status": health(self._registry)}, indent=2))

    async def predict(self, asked: PredictionsRequest, context: Context) -> PredictionResponse:
        """Answer a request; an answer in parts is put together."""
        found, inputs = self._taken(asked)
        return PredictionResponse(prediction=await self._asking.whole(found, inputs, context))

    async def stream(self, asked: PredictionsRequest, context: Context) -> AsyncIterator[PredictionResponse]:
        """Answer a request part by part; a handler that sends no parts answers once."""
        found, inputs = self._taken(asked)
        async for part in self._asking.parts(found, inputs, context):
            yield PredictionResponse(prediction=part)

    async def sequence(
        self, asked: AsyncIterator[PredictionsRequest], context: Context
    ) -> AsyncIterator[PredictionResponse]:
        """Answer the requests of a sequence one after the other; one that fails says so and ends nothing.

        The handler finds the sequence in the header ``ts_request_sequence_id``.
        """
        async for one in asked:
            try:
                if not one.sequence_id.strip():
                    raise bad("sequenceId")
                found, inputs = self._taken(one)
                headers = {_SEQUENCE: one.sequence_id}
                async for part in self._asking.parts(found, inputs, context, headers):
                    yield PredictionResponse(prediction=part)
            except Failed as failed:
                yield PredictionResponse(status=_status(failed))

    def _taken(self, asked: PredictionsRequest) -> tuple[Version, list[Part]]:
        if not asked.model_name:
            raise bad("model_name")
        inputs = [Part(name, "", content) for name, content in asked.input.items()]
        return self._asking.find(asked.model_name, asked.model_version), inputs


def _status(failed: Failed) -> Status:
    """Return google.rpc.Status as TorchServe fills it: the exception's class is the reason in an ErrorInfo."""
    message, _, kind = failed.details.rpartition("\n")
    reason = kind.encode()
    info = Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\n%c%b" % (len(reason), reason))
    number: int = failed.code.value[0]
    return Status(code=number, message=message, details=[info])
