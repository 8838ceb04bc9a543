"""The conversion of TensorFlow's messages to tensors and back: TensorProto, TensorInfo and Example.

https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/framework/tensor.proto
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

from torchmar.grpc.wire import tensorflow_pb2 as wire
from torchmar.server.api.tensorflow_serving import DTYPES
from torchmar.server.api.tensors import Tensor
from torchmar.tensor_elements import BF16, BYTES, LETTERS, pack, unpack

# The field of a TensorProto with the elements of a datatype; for all others it is `int_val`.
_FIELDS = {
    "BOOL": "bool_val",
    "INT64": "int64_val",
    "UINT32": "uint32_val",
    "UINT64": "uint64_val",
    "FP16": "half_val",
    BF16: "half_val",
    "FP32": "float_val",
    "FP64": "double_val",
    BYTES: "string_val",
}
_BY_DATATYPE: dict[str, wire.DataType] = {datatype: getattr(wire, name) for datatype, name in DTYPES.items()}
# For each type of a TensorProto: the datatype, and the field with the elements.
_TYPES = {dtype: (datatype, _FIELDS.get(datatype, "int_val")) for datatype, dtype in _BY_DATATYPE.items()}
_SIZES = {BF16: 2, BYTES: 4, **{datatype: struct.calcsize(f"<{letter}") for datatype, letter in LETTERS.items()}}


def dtype(datatype: str) -> wire.DataType:
    """Return TensorFlow's type for a datatype of the Open Inference Protocol; DT_INVALID if there is none."""
    return _BY_DATATYPE.get(datatype, wire.DT_INVALID)


def tensor(name: str, message: wire.TensorProto, max_bytes: int) -> Tensor:
    """Return the tensor in a message.

    Args:
        name: name of the input.
        message: the tensor, with its elements in ``tensor_content`` or in the field of their type. If that has fewer
            elements than the shape, the last one is repeated; if it has none, all are zero or empty, as in TensorFlow.
        max_bytes: limit for the elements in bytes, because a small message can have a large shape.

    Raises:
        ValueError: the type is not supported, or the elements do not match type and shape.
    """
    try:
        datatype, field = _TYPES[message.dtype]
    except KeyError:
        raise ValueError(f"input {name!r}: {_type_name(message.dtype)} is not supported") from None
    try:
        shape = _shape(message.tensor_shape)
        count = math.prod(shape)
        if count * _SIZES[datatype] > max_bytes:
            raise ValueError(f"the shape {shape} is of {count} elements, which are more than max_request_size")
        if message.tensor_content:
            content = _content(datatype, message.tensor_content, count)
        else:
            content = _elements(datatype, getattr(message, field), count)
        if not content and count:
            raise ValueError(f"{count} elements are missing")
    except ValueError as error:
        raise ValueError(f"input {name!r}: {error}") from None
    return Tensor(name, datatype, shape, content)


def message(tensor: Tensor) -> wire.TensorProto:
    """Return the message of a tensor, with the elements in the field of their type, as in TensorFlow Serving's answers.

    Raises:
        ValueError: the elements do not match the datatype.
    """
    proto = wire.TensorProto(dtype=dtype(tensor.datatype), tensor_shape=shape(tensor.shape))
    datatype, field = _TYPES[proto.dtype]
    if field == "half_val":
        proto.half_val.extend(struct.unpack(f"<{len(tensor.content) // 2}H", tensor.content))
    else:
        getattr(proto, field).extend(unpack(datatype, tensor.content))
    return proto


def info(name: str, datatype: str, sizes: Sequence[int]) -> wire.TensorInfo:
    """Return the description of an input or output; -1 is a dimension of any size."""
    return wire.TensorInfo(name=f"{name}:0", dtype=dtype(datatype), tensor_shape=shape(sizes))


def shape(sizes: Sequence[int]) -> wire.TensorShapeProto:
    """Return the message of a shape."""
    return wire.TensorShapeProto(dim=[wire.TensorShapeProto.Dim(size=size) for size in sizes])


def features(example: wire.Example) -> dict[str, list[Any]]:
    """Return the features of an example: bytes, floats or integers by name."""
    values: dict[str, list[Any]] = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        values[name] = list(getattr(feature, kind).value) if kind else []
    return values


def _shape(message: wire.TensorShapeProto) -> list[int]:
    if message.unknown_rank:
        raise ValueError("the shape is unknown")
    sizes = [dim.size for dim in message.dim]
    if any(size < 0 for size in sizes):
        raise ValueError(f"the shape {sizes} has a negative size")
    return sizes


def _content(datatype: str, content: bytes, count: int) -> bytes:
    if datatype == BYTES:
        return pack(BYTES, _texts(content, count))
    size = _SIZES[datatype]
    if len(content) != count * size:
        raise ValueError(
            f"tensor_content has {len(content)} bytes, and {count} elements of {datatype} have {count * size}"
        )
    return content


def _texts(content: bytes, count: int) -> list[bytes]:
    """Return the texts in ``tensor_content``: the lengths of all as varints, then their bytes."""
    lengths, offset = [], 0
    for _ in range(count):
        length = shift = 0
        while True:
            if offset >= len(content):
                raise ValueError("tensor_content ends within the lengths of its strings")
            byte = content[offset]
            offset += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        lengths.append(length)
    if offset + sum(lengths) != len(content):
        raise ValueError("the lengths of the strings do not match tensor_content")
    texts = []
    for length in lengths:
        texts.append(content[offset : offset + length])
        offset += length
    return texts


def _elements(datatype: str, values: Sequence[Any], count: int) -> bytes:
    if len(values) > count:
        raise ValueError(f"there are {len(values)} elements, and the shape is of {count}")
    if datatype in ("FP16", BF16):
        elements = [*values, *([values[-1] if values else 0] * (count - len(values)))]
        try:
            return struct.pack(f"<{count}H", *elements)
        except struct.error:
            raise ValueError("half_val has elements of more than 16 bits") from None
    fill = values[-1] if values else b"" if datatype == BYTES else 0
    if len(values) == count:
        return pack(datatype, values)
    if datatype == BYTES:
        return pack(datatype, [*values, *([fill] * (count - len(values)))])
    return pack(datatype, values) + pack(datatype, [fill]) * (count - len(values))


def _type_name(dtype: int) -> str:
    value = wire.DataType.DESCRIPTOR.values_by_number.get(dtype)
    return value.name if value else f"the type {dtype}"
