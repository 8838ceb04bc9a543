"""The conversion of messages of the Open Inference Protocol to tensors and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torchmar.grpc.wire import open_inference_pb2 as wire
from torchmar.server.api.tensors import Tensor
from torchmar.tensor_elements import BF16, BYTES, pack, unpack

_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}
_ONLY_RAW = ("FP16", BF16)


def inputs(request: wire.ModelInferRequest) -> Iterator[Tensor]:
    """Yield the inputs of a request, from raw contents if it has any.

    Raises:
        ValueError: an input has no contents, contents of another datatype, or several kinds of contents.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise ValueError(f"there are {len(request.inputs)} inputs and raw_input_contents of {len(raw)}")
    for index, tensor in enumerate(request.inputs):
        try:
            if raw and tensor.contents.ListFields():
                raise ValueError("there are contents and raw_input_contents; send one of them")
            content = raw[index] if raw else pack(tensor.datatype, _elements(tensor))
        except ValueError as error:
            raise ValueError(f"input {tensor.name!r}: {error}") from None
        yield Tensor(tensor.name, tensor.datatype, list(tensor.shape), content, parameters(tensor.parameters))


def parameters(fields: Mapping[str, wire.InferParameter]) -> dict[str, Any]:
    """Return parameters as Python values; those without a value are left out."""
    kinds = ((name, value, value.WhichOneof("parameter_choice")) for name, value in fields.items())
    return {name: getattr(value, kind) for name, value, kind in kinds if kind}


def response(document: Mapping[str, Any], outputs: Sequence[Tensor], *, raw: bool) -> wire.ModelInferResponse:
    """Return a response.

    Args:
        document: JSON of the response, without its outputs.
        outputs: the outputs.
        raw: whether all outputs are sent as raw contents; also the case if a datatype allows no others.

    Raises:
        ValueError: an output does not have its datatype.
    """
    message = wire.ModelInferResponse(
        model_name=str(document["model_name"]),
        model_version=str(document.get("model_version") or ""),
        id=str(document.get("id") or ""),
    )
    _set(message.parameters, document.get("parameters") or {})
    raw = raw or any(tensor.datatype in _ONLY_RAW for tensor in outputs)
    for tensor in outputs:
        output = message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        _set(output.parameters, tensor.parameters)
        if raw:
            message.raw_output_contents.append(tensor.content)
        else:
            getattr(output.contents, _CONTENTS[tensor.datatype]).extend(unpack(tensor.datatype, tensor.content))
    return message


def _elements(tensor: wire.ModelInferRequest.InferInputTensor) -> list[Any]:
    if tensor.datatype in _ONLY_RAW:
        raise ValueError(f"{tensor.datatype} must be in raw_input_contents")
    if tensor.datatype not in _CONTENTS:
        raise ValueError(
            f"unknown datatype {tensor.datatype!r}; the datatypes are {', '.join((*_CONTENTS, *_ONLY_RAW))}"
        )
    field_name = _CONTENTS[tensor.datatype]
    others = [field.name for field, _ in tensor.contents.ListFields() if field.name != field_name]
    if others:
        raise ValueError(f"{tensor.datatype} must be in {field_name}, not in {', '.join(others)}")
    return list(getattr(tensor.contents, field_name))


def _set(fields: Any, parameters: Mapping[str, Any]) -> None:
    for name, value in parameters.items():
        if isinstance(value, bool):
            fields[name].bool_param = value
        elif isinstance(value, int):
            fields[name].int64_param = value
        elif isinstance(value, float):
            fields[name].double_param = value
        else:
            fields[name].string_param = str(value)
