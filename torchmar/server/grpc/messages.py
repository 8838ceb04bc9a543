"""Messages of the Open Inference Protocol to tensors and back."""

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
    """Yield the inputs of a request, from raw contents where it has some.

    Raises:
        ValueError: an input has no contents, such as its datatype does not hold, or more than one kind of them.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise ValueError(f"there are {len(request.inputs)} inputs and raw_input_contents of {len(raw)}")
    for index, one in enumerate(request.inputs):
        try:
            if raw and one.contents.ListFields():
                raise ValueError("there are contents and raw_input_contents; send one of them")
            content = raw[index] if raw else pack(one.datatype, _elements(one))
        except ValueError as error:
            raise ValueError(f"input {one.name!r}: {error}") from None
        yield Tensor(one.name, one.datatype, list(one.shape), content, parameters(one.parameters))


def parameters(given: Mapping[str, wire.InferParameter]) -> dict[str, Any]:
    """Return parameters as JSON has them; those without a value are left out."""
    kinds = ((name, one, one.WhichOneof("parameter_choice")) for name, one in given.items())
    return {name: getattr(one, kind) for name, one, kind in kinds if kind}


def response(document: Mapping[str, Any], outputs: Sequence[Tensor], *, raw: bool) -> wire.ModelInferResponse:
    """Return an answer.

    Args:
        document: the JSON of the answer, without its outputs.
        outputs: these.
        raw: whether in raw contents, as all are if the datatype of one has no others.

    Raises:
        ValueError: an output is not of its datatype.
    """
    message = wire.ModelInferResponse(
        model_name=str(document["model_name"]),
        model_version=str(document.get("model_version") or ""),
        id=str(document.get("id") or ""),
    )
    _set(message.parameters, document.get("parameters") or {})
    raw = raw or any(one.datatype in _ONLY_RAW for one in outputs)
    for one in outputs:
        output = message.outputs.add(name=one.name, datatype=one.datatype, shape=one.shape)
        _set(output.parameters, one.parameters)
        if raw:
            message.raw_output_contents.append(one.content)
        else:
            getattr(output.contents, _CONTENTS[one.datatype]).extend(unpack(one.datatype, one.content))
    return message


def _elements(tensor: wire.ModelInferRequest.InferInputTensor) -> list[Any]:
    if tensor.datatype in _ONLY_RAW:
        raise ValueError(f"{tensor.datatype} comes in raw_input_contents only")
    if tensor.datatype not in _CONTENTS:
        raise ValueError(f"the datatype {tensor.datatype!r} is none of {', '.join((*_CONTENTS, *_ONLY_RAW))}")
    wanted = _CONTENTS[tensor.datatype]
    others = [field.name for field, _ in tensor.contents.ListFields() if field.name != wanted]
    if others:
        raise ValueError(f"{tensor.datatype} comes in {wanted}, not in {', '.join(others)}")
    return list(getattr(tensor.contents, wanted))


def _set(parameters: Any, given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if isinstance(value, bool):
            parameters[name].bool_param = value
        elif isinstance(value, int):
            parameters[name].int64_param = value
        elif isinstance(value, float):
            parameters[name].double_param = value
        else:
            parameters[name].string_param = str(value)
