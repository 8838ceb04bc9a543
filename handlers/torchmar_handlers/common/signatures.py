"""The inputs and outputs of a model as tensors of the Open Inference Protocol: names, datatypes and shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from torchmar_handlers.protocols import tensors

Tensor = dict[str, Any]
Signature = dict[str, list[Tensor]]

ANY = -1  # a dimension of any size


def tensor(name: str, datatype: str, *shape: int | None) -> Tensor:
    """Return a tensor's description.

    Args:
        name: name of the input or output.
        datatype: datatype of the protocol, such as FP32 or BYTES.
        shape: shape of one instance, without the dimension of the batch; None or -1 is any size.
    """
    return {"name": name, "datatype": datatype, "shape": [ANY, *(ANY if size is None else size for size in shape)]}


def of(inputs: Iterable[Tensor] = (), outputs: Iterable[Tensor] = ()) -> Signature:
    """Return a signature; unknown parts are empty."""
    return {"inputs": list(inputs), "outputs": list(outputs)}


def best_class() -> list[Tensor]:
    """Return the outputs of a classifier: the most probable label and its probability."""
    return [tensor("label", tensors.BYTES), tensor("probability", "FP64")]


def by_key(answers: Sequence[Any]) -> Mapping[str, Any] | None:
    """Return objects with the same keys as one column for each key, of any values; None: the keys differ."""
    first = answers[0]
    if not isinstance(first, Mapping) or any(
        not isinstance(answer, Mapping) or answer.keys() != first.keys() for answer in answers
    ):
        return None
    return {str(key): [answer[key] for answer in answers] for key in first}


class Observed:
    """Names, datatypes and shapes of the arrays that a model has received or returned, with the batch first."""

    def __init__(self) -> None:
        self._arrays: dict[str, tuple[str, list[int]]] = {}

    def see(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Add arrays; a dimension that had another size before has any size from now on."""
        for name, array in arrays.items():
            datatype, shape = tensors.datatype(array.dtype), list(array.shape[1:])
            before = self._arrays.get(name)
            if before and len(before[1]) == len(shape):
                shape = [size if size == other else ANY for size, other in zip(shape, before[1], strict=True)]
            self._arrays[name] = datatype, shape

    def tensor(self, name: str, *, sizes: bool = True) -> Tensor | None:
        """Return the description of an array, without its sizes if they may vary; None: it was not seen."""
        observed = self._arrays.get(name)
        return observed and tensor(name, observed[0], *(size if sizes else ANY for size in observed[1]))

    def tensors(self, *, sizes: bool = True) -> list[Tensor]:
        """Return the descriptions of all arrays, in the order in which they were seen."""
        return [described for name in self._arrays if (described := self.tensor(name, sizes=sizes))]
