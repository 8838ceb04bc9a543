"""gRPC: documented differences."""

from __future__ import annotations

from torchmar.parity.known_difference import KnownDifference

DIFFERENCES = (
    KnownDifference(
        id="grpc-stream-one",
        what="gRPC: `StreamPredictions` to a handler that sends no intermediate answers",
        torchserve="the worker is ended",
        builtin="one answer",
        reason="a stream can have one part",
    ),
    KnownDifference(
        id="grpc-unary-many",
        what="gRPC: `Predictions` to a handler that sends intermediate answers",
        torchserve="the first part, and the worker is lost for seconds",
        builtin="all parts, joined",
        reason="no data should be lost",
    ),
    KnownDifference(
        id="grpc-stream-two",
        what="gRPC: `StreamPredictions2`",
        torchserve="only for models with `sequenceBatching`; another model loses its worker",
        builtin=(
            "for any model: requests of a stream are answered in order, an error is a `status`; the "
            "sequence is not bound to a worker"
        ),
        reason="one request should not delay the others",
    ),
    KnownDifference(
        id="grpc-codes",
        what="gRPC: codes of errors of the management API",
        torchserve="INTERNAL (13) or UNKNOWN for most",
        builtin=(
            "the equivalent of the HTTP status: NOT_FOUND (5) for 404, ABORTED (10) for 409, UNAVAILABLE (14) for 503"
        ),
        reason="a client must know which calls it can repeat",
    ),
    KnownDifference(
        id="grpc-conflict",
        what="gRPC: `RegisterModel` of a registered version",
        torchserve="UNKNOWN without a message",
        builtin="ABORTED, ConflictStatusException",
        reason="an error should contain its cause",
    ),
    KnownDifference(
        id="grpc-default",
        what="gRPC: `UnregisterModel` of a default version while there are others",
        torchserve="UNKNOWN without a message",
        builtin="PERMISSION_DENIED, InvalidModelVersionException",
        reason="as above",
    ),
    KnownDifference(
        id="grpc-scale-name",
        what="gRPC: `ScaleWorker` without a name",
        torchserve="UNKNOWN without a message",
        builtin="NOT_FOUND",
        reason="as above",
    ),
    KnownDifference(
        id="grpc-unregister-name",
        what="gRPC: `UnregisterModel` without a name",
        torchserve="`Parameter url is required.`",
        builtin="`Parameter model_name is required.`",
        reason="as above",
    ),
    KnownDifference(
        id="grpc-customized",
        what="gRPC: `DescribeModel` with `customized`: unknown model; failing handler",
        torchserve="INTERNAL; no answer, and the worker is lost",
        builtin="NOT_FOUND; the handler's error",
        reason="as above",
    ),
    KnownDifference(
        id="grpc-size",
        what="gRPC: a request larger than `max_request_size`",
        torchserve="RST_STREAM (CANCELLED)",
        builtin="RESOURCE_EXHAUSTED",
        reason="as above",
    ),
    KnownDifference(
        id="grpc-status",
        what=(
            "gRPC: `Predictions` where a handler sets a status of 400 or more for one request (`set_response_status`)"
        ),
        torchserve="OK, with the error as the prediction",
        builtin="the equivalent code, with the message of the error",
        reason="an error should not look like an answer",
    ),
    KnownDifference(
        id="grpc-health",
        what="gRPC: `grpc.health.v1.Health` and `grpc.reflection.v1` (and `v1alpha`) on both ports",
        torchserve="UNIMPLEMENTED",
        builtin="answered without a token; the health is that of `/v2/health/ready`",
        reason="Kubernetes and grpcurl use them",
    ),
    KnownDifference(
        id="grpc-open-inference",
        what="gRPC: the service of the Open Inference Protocol",
        torchserve=(
            "`org.pytorch.serve.grpc.openinference.GRPCInferenceService`, with `ts_open_inference_protocol=true`"
        ),
        builtin="this one and `inference.GRPCInferenceService`, unless `ts_open_inference_protocol=false`",
        reason="KServe's and Triton's clients use the latter",
    ),
    KnownDifference(
        id="grpc-bytes",
        what="gRPC: BYTES in `ModelInfer`",
        torchserve="handlers get base64; outputs are the JSON texts, with quotes",
        builtin=(
            "handlers of torchmar get the bytes that were sent, and their outputs have no quotes; other "
            "handlers get texts as over REST, except over TorchServe's own service, and with "
            "`service_envelope=kservev2`, where they get what TorchServe and KServe's wrapper pass"
        ),
        reason="a text is not its base64",
    ),
    KnownDifference(
        id="grpc-open-inference-errors",
        what="gRPC: `ModelInfer` of an unknown model; without workers; with an answer of status 400 or more",
        torchserve="INTERNAL; INTERNAL; `Worker died.`",
        builtin="NOT_FOUND; UNAVAILABLE; the equivalent code, with the handler's message",
        reason="a client must know what to do next",
    ),
    KnownDifference(
        id="grpc-metadata",
        what="gRPC: `ServerMetadata`, `ModelStreamInfer`, `ModelConfig`, `ModelStatistics`, `RepositoryIndex`",
        torchserve="UNIMPLEMENTED",
        builtin="answered; other extensions of Triton are UNIMPLEMENTED with the reason",
        reason="the protocol or Triton's clients have them",
    ),
    KnownDifference(
        id="grpc-model-metadata",
        what="`inputs` and `outputs` in `ModelMetadata` (gRPC) and `/v2/models/M`",
        torchserve="empty; 404",
        builtin="names, datatypes and shapes, if the handler describes them",
        reason="clients build requests from them",
    ),
    KnownDifference(
        id="grpc-ready",
        what="gRPC: `ServerReady`, `Ping`, `ModelReady` while workers are missing",
        torchserve="ready, Healthy",
        builtin="not ready, Unhealthy",
        reason="ready should mean that requests are answered",
    ),
    KnownDifference(
        id="grpc-raw",
        what="gRPC: `ModelInfer` with `raw_input_contents`, `outputs` or `parameters`",
        torchserve="ignored: the handler gets empty data, and the answer has all outputs",
        builtin="read, also FP16 and BF16, and answered in `raw_output_contents`; passed to the handler",
        reason="clients send it",
    ),
    KnownDifference(
        id="grpc-datatype",
        what=(
            "gRPC: `ModelInfer` with an unknown datatype, with NaN, or with an answer that does not follow the protocol"
        ),
        torchserve="`Worker died.`, or UNKNOWN without a message",
        builtin="INVALID_ARGUMENT; INTERNAL with the reason; the worker continues",
        reason="one request should not delay the others",
    ),
    KnownDifference(
        id="grpc-deadline",
        what="gRPC: a request whose deadline is over, or whose client has cancelled it",
        torchserve="runs in any case",
        builtin="does not run, unless a worker has already started it",
        reason="its answer cannot be delivered",
    ),
)
