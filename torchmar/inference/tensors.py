"""Tensors of the Open Inference Protocol (KServe v2) for clients.

https://github.com/kserve/open-inference-protocol
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchmar.errors import TorchmarError

_DTYPES = {"BOOL": "bool"} | {
    f"{datatype}{bits}": f"{dtype}{bits}"
    for datatype, dtype, sizes in (("INT", "int", (8, 16, 32, 64)), ("UINT", "uint", (8, 16, 32, 64)))
    for bits in sizes
}
_DTYPES |= {f"FP{bits}": f"float{bits}" for bits in (16, 32, 64)}
_BY_TYPE = {bool: "BOOL", int: "INT64", float: "FP32", str: "BYTES", bytes: "BYTES"}


@dataclass(frozen=True)
class Tensor:
    """A named tensor of the Open Inference Protocol.

    Attributes:
        name: name of an input or output of the model.
        datatype: name of the type in the protocol: FP32, INT64, BOOL, BYTES and so on.
        shape: dimensions; the first is the batch dimension.
        data: elements, flat and in row-major order.

    Examples:
        >>> import torchmar
        >>> torchmar.Tensor.of("x", [[1.0, 2.0], [3.0, 4.0]])
        Tensor(name='x', datatype='FP32', shape=(2, 2), data=[1.0, 2.0, 3.0, 4.0])
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Sequence[Any]

    @classmethod
    def of(cls, name: str, values: Any, datatype: str | None = None) -> Tensor:
        """Return a tensor with the values of an array or of nested lists.

        Args:
            name: name of the tensor.
            values: a numpy array, or numbers, booleans, texts or bytes in lists.
            datatype: default: the datatype of the array; for lists INT64, FP32, BOOL or BYTES.

        Raises:
            TorchmarError: lists are nested unevenly, or the protocol has no datatype for the elements.
        """
        if hasattr(values, "__array__"):
            import numpy

            array = numpy.asarray(values)
            datatypes = {dtype: name for name, dtype in _DTYPES.items()}
            kind = datatype or datatypes.get(array.dtype.name) or ("BYTES" if array.dtype.kind in "SUO" else None)
            if kind is None:
                raise TorchmarError(f"input {name!r}: the protocol has no datatype for {array.dtype}")
            return cls(name, kind, tuple(array.shape), array.ravel().tolist())
        shape = _shape(values)
        flat = list(_flat(values, len(shape)))
        if len(flat) != math.prod(shape) or any(isinstance(item, list | tuple) for item in flat):
            raise TorchmarError(f"input {name!r}: the lists are nested unevenly")
        return cls(name, datatype or _datatype(name, flat), shape, flat)

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Tensor:
        """Return the tensor from an object of a JSON body."""
        shape = tuple(document["shape"])
        return cls(
            document["name"], document["datatype"], shape, list(_flat(document["data"], len(_shape(document["data"]))))
        )

    def document(self) -> dict[str, Any]:
        """Return the object for the tensor in a JSON body; bytes become strings.

        Raises:
            TorchmarError: bytes are not UTF-8.
        """
        try:
            data = [item.decode() if isinstance(item, bytes) else item for item in self.data]
        except UnicodeDecodeError:
            raise TorchmarError(f"input {self.name!r}: JSON holds texts, not bytes; send them in base64") from None
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape), "data": data}

    def array(self) -> Any:
        """Return the tensor as a numpy array; BYTES become objects."""
        import numpy

        return numpy.asarray(self.data, dtype=_DTYPES.get(self.datatype, "object")).reshape(self.shape)


def _shape(values: Any) -> tuple[int, ...]:
    shape = []
    while isinstance(values, list | tuple):
        shape.append(len(values))
        if not values:
            break
        values = values[0]
    return tuple(shape)


def _flat(values: Any, depth: int) -> Iterator[Any]:
    if depth == 0 or not isinstance(values, list | tuple):
        yield values
        return
    for value in values:
        yield from _flat(value, depth - 1)


def _datatype(name: str, flat: Sequence[Any]) -> str:
    kinds = {_BY_TYPE.get(type(item)) for item in flat}
    if kinds == {"INT64", "FP32"}:
        return "FP32"
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind is None:
        raise TorchmarError(f"input {name!r}: its elements are not all numbers, booleans or texts")
    return kind
