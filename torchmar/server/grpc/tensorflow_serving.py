"""TensorFlow Serving's services over gRPC: PredictionService and ModelService.

The contract is ``torchmar/grpc/wire/tensorflow_serving.proto``. A handler of torchmar gets and returns binary tensors,
in the Open Inference Protocol; any other handler gets the same JSON as over TensorFlow Serving's REST API.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage

from torchmar.grpc.wire import tensorflow_pb2
from torchmar.grpc.wire import tensorflow_serving_pb2 as wire
from torchmar.server.api import tensorflow_serving as documents
from torchmar.server.api import tensors
from torchmar.server.api.tensors import Tensor
from torchmar.server.grpc import tensorflow_json, tensorflow_tensors
from torchmar.server.grpc.calls import CallError, Code, Context, Method, call_error, code, unary
from torchmar.server.grpc.model_call import ModelCall, described, error_message
from torchmar.server.models.registry import Registry, Version
from torchmar.server.workers.jobs import Part, Reply

PREDICTION = "tensorflow.serving.PredictionService"
MODEL = "tensorflow.serving.ModelService"

_JSON = "application/json"
_SIGNATURES = "type.googleapis.com/tensorflow.serving.SignatureDefMap"


class PredictionService:
    """The PredictionService.

    Args:
        registry: the models.
        calls: sends requests to models.
        max_bytes: limit for the elements of an input in bytes.
    """

    name = PREDICTION

    def __init__(self, registry: Registry, calls: ModelCall, max_bytes: int) -> None:
        self._registry, self._calls, self._max_bytes = registry, calls, max_bytes

    def methods(self) -> Mapping[str, Method]:
        """Return the methods by their names."""
        return {
            "Predict": _unary(self.predict, wire.PredictRequest),
            "Classify": _unary(self.classify, wire.ClassificationRequest),
            "Regress": _unary(self.regress, wire.RegressionRequest),
            "MultiInference": _unary(self.multi_inference, wire.MultiInferenceRequest),
            "GetModelMetadata": _unary(self.metadata, wire.GetModelMetadataRequest),
        }

    async def predict(self, request: wire.PredictRequest, context: Context) -> wire.PredictResponse:
        """Return the outputs for tensors."""
        version = _find(self._registry, request.model_spec)
        documents.check_signature(request.model_spec.signature_name)
        await described(version, context)
        self._calls.admit(version, context)
        try:
            inputs = [
                tensorflow_tensors.tensor(name, message, self._max_bytes)
                for name, message in sorted(request.inputs.items())
            ]
            if not inputs:
                raise ValueError("the request has no inputs")
            output_names = list(request.output_filter)
            headers, row = _row(inputs, output_names, binary=version.pool.description.get("binary") is True)
        except ValueError as error:
            raise _invalid(error, version) from None
        body, reply = await self._reply(version, row, context, headers)
        outputs = _outputs(body, reply, version)
        if missing := [name for name in output_names if name not in outputs]:
            available = ", ".join(outputs)
            message = f"output tensor alias not found in signature: {missing[0]}; the outputs are {available}"
            raise CallError(Code.INVALID_ARGUMENT, message)
        response = wire.PredictResponse(model_spec=_spec(version, request.model_spec))
        for name in output_names or outputs:
            response.outputs[name].CopyFrom(tensorflow_tensors.message(outputs[name]))
        return response

    async def classify(self, request: wire.ClassificationRequest, context: Context) -> wire.ClassificationResponse:
        """Return labels with scores for examples."""
        version = _find(self._registry, request.model_spec)
        result = await self._classified(version, request.model_spec, request.input, context)
        return wire.ClassificationResponse(result=result, model_spec=_spec(version, request.model_spec))

    async def regress(self, request: wire.RegressionRequest, context: Context) -> wire.RegressionResponse:
        """Return a number for each example."""
        version = _find(self._registry, request.model_spec)
        result = await self._regressed(version, request.model_spec, request.input, context)
        return wire.RegressionResponse(result=result, model_spec=_spec(version, request.model_spec))

    async def multi_inference(
        self, request: wire.MultiInferenceRequest, context: Context
    ) -> wire.MultiInferenceResponse:
        """Classify and regress the same examples."""
        if not request.tasks:
            raise CallError(Code.INVALID_ARGUMENT, "Inference request must have at least one task")
        response = wire.MultiInferenceResponse()
        for task in request.tasks:
            version = _find(self._registry, task.model_spec)
            result = response.results.add(model_spec=_spec(version, task.model_spec))
            if task.method_name == documents.CLASSIFY:
                answer = await self._classified(version, task.model_spec, request.input, context)
                result.classification_result.CopyFrom(answer)
            elif task.method_name == documents.REGRESS:
                value = await self._regressed(version, task.model_spec, request.input, context)
                result.regression_result.CopyFrom(value)
            else:
                raise CallError(Code.UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}")
        return response

    async def metadata(self, request: wire.GetModelMetadataRequest, context: Context) -> wire.GetModelMetadataResponse:
        """Return a model's signature."""
        if not request.metadata_field:
            raise CallError(Code.INVALID_ARGUMENT, "GetModelMetadataRequest must specify at least one metadata_field")
        if unknown := [field for field in request.metadata_field if field != "signature_def"]:
            raise CallError(Code.INVALID_ARGUMENT, f"Metadata field {unknown[0]} is not supported")
        version = _find(self._registry, request.model_spec)
        await described(version, context)
        signature = tensorflow_pb2.SignatureDef(method_name=documents.PREDICT)
        description = version.pool.description
        for tensors_of, infos in (
            (description.get("inputs", ()), signature.inputs),
            (description.get("outputs", ()), signature.outputs),
        ):
            for tensor in tensors_of:
                info = tensorflow_tensors.info(tensor["name"], tensor["datatype"], tensor["shape"])
                infos[tensor["name"]].CopyFrom(info)
        signatures = wire.SignatureDefMap(signature_def={documents.SIGNATURE: signature})
        packed = AnyMessage(type_url=_SIGNATURES, value=signatures.SerializeToString())
        response = wire.GetModelMetadataResponse(model_spec=_spec(version, request.model_spec))
        response.metadata["signature_def"].CopyFrom(packed)
        return response

    async def _classified(
        self, version: Version, spec: wire.ModelSpec, examples_input: wire.Input, context: Context
    ) -> wire.ClassificationResult:
        result = wire.ClassificationResult()
        for prediction in await self._predictions(version, spec, examples_input, context):
            classification = result.classifications.add()
            try:
                pairs = documents.classes(prediction)
            except ValueError as error:
                raise CallError(Code.INVALID_ARGUMENT, str(error)) from None
            for label, score in pairs:
                classification.classes.add(label=label, score=score)
        return result

    async def _regressed(
        self, version: Version, spec: wire.ModelSpec, examples_input: wire.Input, context: Context
    ) -> wire.RegressionResult:
        result = wire.RegressionResult()
        for prediction in await self._predictions(version, spec, examples_input, context):
            try:
                result.regressions.add(value=documents.regression(prediction))
            except ValueError as error:
                raise CallError(Code.INVALID_ARGUMENT, str(error)) from None
        return result

    async def _predictions(
        self, version: Version, spec: wire.ModelSpec, examples_input: wire.Input, context: Context
    ) -> list[Any]:
        """Return the model's prediction for each example."""
        documents.check_signature(spec.signature_name)
        await described(version, context)
        self._calls.admit(version, context)
        examples, shared = _examples(examples_input)
        inputs = version.pool.description.get("inputs", ())
        instances = documents.instances(examples, shared, inputs)
        body = json.dumps({"instances": tensorflow_json.plain(instances)}, ensure_ascii=False).encode()
        answer, _ = await self._reply(version, Part("body", _JSON, body), context, {"content-type": _JSON})
        try:
            predictions = documents.predictions(answer)
            if len(predictions) != len(examples):
                raise ValueError(f"the model answers {len(examples)} examples with {len(predictions)} predictions")
        except (ValueError, RecursionError) as error:
            raise CallError(Code.INTERNAL, f"model {version.name}: {error}") from None
        return predictions

    async def _reply(
        self, version: Version, row: Part, context: Context, headers: Mapping[str, str]
    ) -> tuple[bytes, Reply]:
        """Return the body of the last part of a model's reply.

        Raises:
            CallError: the model answers with an error.
        """
        replies = [reply async for reply in self._calls.replies(version, [row], context, headers)]
        last = replies[-1]
        if last.status >= 300:
            raise CallError(code(last.status), last.message or error_message(last)[0])
        return b"".join(reply.body for reply in replies), last


class ModelService:
    """The ModelService.

    Args:
        registry: the models.
    """

    name = MODEL

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def methods(self) -> Mapping[str, Method]:
        """Return the methods by their names."""
        return {"GetModelStatus": _unary(self.status, wire.GetModelStatusRequest)}

    async def status(self, request: wire.GetModelStatusRequest, context: Context) -> wire.GetModelStatusResponse:
        """Return the states of a model's versions; a version without a number has the number 0."""
        spec = request.model_spec
        if not spec.name:
            raise CallError(Code.INVALID_ARGUMENT, "Missing ModelSpec")
        response = wire.GetModelStatusResponse()
        for version in documents.statuses(self._registry, spec.name, **_choice(spec)):
            status = wire.StatusProto(error_code=2 if version.error else 0, error_message=version.error)
            state = wire.ModelVersionStatus.State.Value(version.state)
            number = documents.number(version.version) or 0
            response.model_version_status.add(version=number, state=state, status=status)
        return response


def _unary(method: Any, message: Any) -> Method:
    async def without_types(request: Any, context: Context) -> Any:
        """Answer a call; errors do not contain TorchServe's exception classes, which only its clients read."""
        try:
            return await method(request, context)
        except Exception as error:
            raise call_error(error).plain() from None

    return unary(without_types, message)


def _choice(spec: wire.ModelSpec) -> dict[str, Any]:
    return {
        "version": str(spec.version.value) if spec.HasField("version") else None,
        "label": spec.version_label if spec.WhichOneof("version_choice") == "version_label" else "",
    }


def _find(registry: Registry, spec: wire.ModelSpec) -> Version:
    if not spec.name:
        raise CallError(Code.INVALID_ARGUMENT, "Missing ModelSpec: the request names no model")
    return documents.find(registry, spec.name, **_choice(spec))


def _spec(version: Version, requested: wire.ModelSpec) -> wire.ModelSpec:
    """Return the spec for a response: the version that answered."""
    spec = wire.ModelSpec(name=version.name, signature_name=requested.signature_name or documents.SIGNATURE)
    number = documents.number(version.version)
    if number is None:
        spec.version_label = version.version
    else:
        spec.version.value = number
    return spec


def _row(inputs: Sequence[Tensor], outputs: Sequence[str], *, binary: bool) -> tuple[dict[str, str], Part]:
    """Return the headers and the row for a handler: tensors in binary or in JSON.

    Raises:
        ValueError: an input has no batch dimension.
    """
    if scalar := [tensor.name for tensor in inputs if not tensor.shape]:
        raise ValueError(f"input {scalar[0]!r} is a scalar; the first dimension of an input is that of the batch")
    if binary:
        document: dict[str, Any] = {"parameters": {"binary_data_output": True}}
        if outputs:
            document["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
        body, length = tensors.joined(document, inputs, "inputs")
        return {tensors.HEADER_LENGTH: str(length)}, Part("body", "application/octet-stream", body)
    columns = {tensor.name: tensorflow_json.nested(tensor) for tensor in inputs}
    body = json.dumps({"inputs": columns}, ensure_ascii=False).encode()
    return {"content-type": _JSON}, Part("body", _JSON, body)


def _outputs(body: bytes, reply: Reply, version: Version) -> dict[str, Tensor]:
    """Return the tensors in a reply, by name."""
    length = {name.lower(): value for name, value in reply.headers.items()}.get(tensors.HEADER_LENGTH.lower())
    try:
        if length is not None:
            return {tensor.name: tensor for tensor in tensors.split(body, int(length), "outputs")[1]}
        return tensorflow_json.outputs(json.loads(body))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        message = f"the answer of model {version.name} cannot be returned as tensors: {error}"
        raise CallError(Code.INTERNAL, message) from None


def _examples(examples_input: wire.Input) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the features of a request's examples, and the features that all examples share."""
    kind = examples_input.WhichOneof("kind")
    examples = getattr(examples_input, kind).examples if kind else ()
    if not examples:
        raise CallError(Code.INVALID_ARGUMENT, "Input is empty")
    shared = {}
    if kind == "example_list_with_context":
        shared = tensorflow_tensors.features(examples_input.example_list_with_context.context)
    return [tensorflow_tensors.features(example) for example in examples], shared


def _invalid(error: ValueError, version: Version) -> CallError:
    """Return the error of a request with malformed inputs; it describes the inputs of the model."""
    inputs = [
        f"{tensor['name']}: {tensor['datatype']} {tensor['shape']}"
        for tensor in version.pool.description.get("inputs", ())
    ]
    return CallError(Code.INVALID_ARGUMENT, f"{error}; the model takes {', '.join(inputs)}" if inputs else str(error))
