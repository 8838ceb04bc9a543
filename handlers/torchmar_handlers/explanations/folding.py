"""Batch norms multiplied into the convolutions before them, while gradients of an eager model are computed.

A batch norm in evaluation is a factor and a summand for each channel. Multiplied into the convolution, it takes no pass
over the pixels, forward or backward, and the results are the same except for rounding. Calls of torch's functions are
replaced, not modules, so that the model itself is not changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode

_RECTIFIERS = (functional.relu, functional.relu6, functional.hardtanh)
# Functions that read no value of a tensor; torch's batch norms ask for the number of dimensions.
_METADATA = (torch.Tensor.dim, torch.Tensor.size)


class UnexpectedCallError(Exception):
    """The model calls other functions than when it was recorded."""


@dataclass(frozen=True)
class Convolution:
    """A convolution with the batch norm after it.

    Attributes:
        original: weight of the model.
        weight: weight with the batch norm.
        bias: bias with the batch norm.
        overwritten: whether only a rectifier uses the result, and may overwrite it.
    """

    original: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    overwritten: bool


@dataclass
class Plan:
    """The batch norms that are folded in each pass of a model.

    Attributes:
        convolutions: convolutions by the identity of their original weights.
        functions: functions that the model calls, in their order.
        usable: false after the model has called other functions.
    """

    convolutions: Mapping[int, Convolution]
    functions: Sequence[Any]
    usable: bool = True

    def score(self, score: Callable[[torch.Tensor], torch.Tensor], points: torch.Tensor) -> torch.Tensor:
        """Return the scores of points; without folding if the model calls other functions."""
        if self.usable and self.convolutions:
            try:
                with Folding(self):
                    return score(points)
            except UnexpectedCallError:
                self.usable = False
        return score(points)


@dataclass
class _Call:
    """A recorded convolution, or the batch norm that uses it, and the functions that use its output."""

    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    output: torch.Tensor
    before: _Call | None = None
    users: list[Any] = field(default_factory=list)


class Recorder(TorchFunctionMode):
    """Records the convolutions of a pass, and the functions that use their outputs."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: dict[int, _Call] = {}  # calls by the identity of the output, which is kept
        self._functions: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._functions.append(func)
        result = func(*args, **kwargs)
        if func in _METADATA:
            return result
        for value in _flat((*args, *kwargs.values())):
            if call := self._calls.get(id(value)):
                call.users.append(func)
        if func is torch.conv2d and len(args) > 1:
            self._calls[id(result)] = _Call(args, kwargs, result)
        elif func is functional.batch_norm and (before := self._calls.get(id(args[0]))):
            self._calls[id(result)] = _Call(args, kwargs, result, before)
        return result

    def plan(self) -> Plan:
        """Return the convolutions whose output only a batch norm uses."""
        uses = Counter(id(call.args[1]) for call in self._calls.values() if call.before is None)
        convolutions = {}
        for norm in self._calls.values():
            convolution = norm.before
            if convolution is None or convolution.before is not None or convolution.users != [functional.batch_norm]:
                continue
            weight = convolution.args[1]
            if uses[id(weight)] != 1 or not _in_evaluation(norm):
                continue
            folded_weight, folded_bias = fuse_conv_bn_weights(
                weight.detach(),
                _bias(convolution),
                norm.args[1],
                norm.args[2],
                norm.kwargs["eps"],
                norm.kwargs.get("weight"),
                norm.kwargs.get("bias"),
            )
            overwritten = len(norm.users) == 1 and norm.users[0] in _RECTIFIERS
            convolutions[id(weight)] = Convolution(weight, folded_weight.detach(), folded_bias.detach(), overwritten)
        return Plan(convolutions, self._functions)


class Folding(TorchFunctionMode):
    """Runs convolutions with their batch norms.

    Raises:
        UnexpectedCallError: the model calls another function than in the recorded pass, so that another function
            may use the output of a convolution.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._plan, self._count = plan, 0
        self._folded: dict[int, tuple[torch.Tensor, Convolution]] = {}  # convolutions by the identity of the output

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._count += 1
        if self._count > len(self._plan.functions) or func != self._plan.functions[self._count - 1]:
            raise UnexpectedCallError(getattr(func, "__name__", str(func)))
        if func is torch.conv2d and len(args) > 1 and (folded := self._plan.convolutions.get(id(args[1]))):
            rest = {name: value for name, value in kwargs.items() if name != "bias"}
            result = func(args[0], folded.weight, folded.bias, *args[3:], **rest)
            self._folded[id(result)] = result, folded
            return result
        if func is functional.batch_norm and id(args[0]) in self._folded:
            return args[0]
        if func in _RECTIFIERS and id(args[0]) in self._folded:
            _, folded = self._folded[id(args[0])]
            return func(*args, **{**kwargs, "inplace": folded.overwritten or kwargs.get("inplace", False)})
        return func(*args, **kwargs)


def _bias(call: _Call) -> torch.Tensor | None:
    bias: torch.Tensor | None = call.args[2] if len(call.args) > 2 else call.kwargs.get("bias")
    return bias


def _in_evaluation(norm: _Call) -> bool:
    """Return whether a batch norm has statistics, and uses them."""
    arguments = len(norm.args) == 3 and not norm.kwargs.get("training") and "eps" in norm.kwargs
    return arguments and norm.args[1] is not None and norm.args[2] is not None


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value
