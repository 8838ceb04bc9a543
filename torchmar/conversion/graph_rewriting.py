"""Rewriting torch.export's graph of a Keras model, so that it is as fast as that of a model written in torch.

Keras computes with the channels last, normalises batches in five operations, and adds biases in separate operations.
The rewritten graph has the weights as constants in torch's layout, batch normalisation folded into the previous layer,
``linear`` in place of ``matmul`` and ``add``, and no pair of permutations that cancel each other.

It is used only if it gives the same answers as the source (`torchmar.conversion.keras_program`).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

_aten = torch.ops.aten

_CHECKS = ("_assert_tensor_metadata", "_assert_scalar", "_guards_fn")
_COPIES = ("lift_fresh_copy", "detach", "detach_", "alias", "contiguous", "clone")
_CASTS = ("to", "_to_copy")
_POINTWISE = {"relu", "relu6", "sigmoid", "silu", "gelu", "tanh", "elu", "leaky_relu", "hardswish", "hardsigmoid"} | {
    "clamp", "clamp_min", "clamp_max", "softplus", "exp", "neg", "add", "sub", "subtract", "mul", "multiply", "div"
}  # fmt: skip
_ARITHMETIC = {"add", "sub", "subtract", "mul", "multiply", "div", "divide", "true_divide", "rsqrt", "sqrt", "neg"} | {
    "reciprocal"
}
_MERGED = {"add", "sub", "subtract", "mul", "multiply", "div", "divide", "true_divide"}
_SHAPES = {"permute", "transpose", "t", "reshape", "view", "unsqueeze", "squeeze", "flatten"}
_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")


class NotRewritable(Exception):
    """The graph has an operation that cannot be rewritten safely; the message contains its name."""


def rewrite(
    module: fx.GraphModule, names: Sequence[str], *, channels_first: bool, drop_activations: Sequence[str]
) -> Rewritten:
    """Return the graph of an exported model as a module with the same answers.

    Args:
        module: ``ExportedProgram.module()``, traced without gradients.
        names: names of the inputs, valid as Python names.
        channels_first: whether the first input has its channels first although the model expects them last.
        drop_activations: ``softmax``, ``sigmoid`` or both: return the input of this activation at the end of the model.
            With both, sigmoid means one with a single output.

    Raises:
        NotRewritable: an operation cannot be rewritten safely.
    """
    return _Rewriting(module, names, channels_first, drop_activations).run()


class Rewritten(fx.GraphModule):
    """The rewritten graph; ``dropped`` is the activation that was removed at its end, or empty."""

    dropped = ""


class _Constant:
    """A constant tensor, in float64 if the model has float32, so that folding does not lose precision."""

    def __init__(self, value: torch.Tensor, dtype: torch.dtype) -> None:
        self.value = value.detach()
        self.dtype = dtype

    def tensor(self) -> torch.Tensor:
        return self.value.to(self.dtype).contiguous().clone()


class _Layer:
    """A convolution or a matrix product with constant weights that may still be changed."""

    def __init__(self, node: fx.Node, weight: _Constant, bias: _Constant | None, channel: int) -> None:
        self.node, self.weight, self.bias, self.channel = node, weight, bias, channel


class _Scaling:
    """``x * factor + shift`` with constants that may still be changed; it merges a chain of sums and products."""

    def __init__(self, node: fx.Node, dtype: torch.dtype) -> None:
        self.node, self.dtype = node, dtype
        self.factor = torch.ones((), dtype=torch.float64)
        self.shift = torch.zeros((), dtype=torch.float64)

    def apply(self, name: str, value: torch.Tensor) -> None:
        """Add, subtract, multiply or divide by a constant."""
        if name in ("add", "sub", "subtract"):
            self.shift = self.shift + (value if name == "add" else -value)
        else:
            value = value if name.startswith("mul") else 1 / value
            self.factor, self.shift = self.factor * value, self.shift * value


class _Rewriting:
    def __init__(self, module: fx.GraphModule, names: Sequence[str], channels_first: bool, drop: Sequence[str]) -> None:
        self._module = module
        self._names = list(names)
        self._channels_first = channels_first
        self._drop = drop
        self._graph = fx.Graph()
        self._root = torch.nn.Module()
        self._values: dict[fx.Node, Any] = {}  # nodes of the new graph, or _Constants, by old node
        self._layers: dict[fx.Node, _Layer] = {}  # layers by the new node of their output
        self._scalings: dict[fx.Node, _Scaling] = {}
        self._nodes: dict[int, fx.Node] = {}  # nodes of constants, by identity
        self._kept: list[_Constant] = []

    def run(self) -> Rewritten:
        placeholders = [node for node in self._module.graph.nodes if node.op == "placeholder"]
        for position, node in enumerate(placeholders):
            new = self._graph.placeholder(self._names[position])
            if position == 0 and self._channels_first:
                rank = node.meta["val"].dim()
                new = self._graph.call_function(_aten.permute.default, (new, [0, *range(2, rank), 1]))
            self._values[node] = new
        returned: list[Any] = []
        for node in self._module.graph.nodes:
            if node.op == "get_attr":
                value = _attribute(self._module, node.target)
                if not isinstance(value, torch.Tensor):
                    raise NotRewritable(f"the constant {node.target}")
                self._values[node] = _constant(value)
            elif node.op in ("call_function", "call_module"):
                self._call(node)
            elif node.op == "output":
                returned = list(node.args[0])
        return self._finish(returned)

    def _finish(self, returned: list[Any]) -> Rewritten:
        outputs = [self._value(item) for item in returned]
        dropped = ""
        if len(outputs) == 1 and isinstance(outputs[0], fx.Node) and _name(outputs[0]) in self._drop:
            shape = returned[0].meta["val"].shape
            last, name = outputs[0], _name(outputs[0])
            if last.args[1] in (-1, 1) if name == "softmax" else "softmax" not in self._drop or shape[-1] == 1:
                outputs, dropped = [last.args[0]], name
        for layer in self._layers.values():
            bias: list[Any] = [] if layer.bias is None else [self._node(layer.bias)]
            rest = layer.node.args[3:]
            weight = self._node(layer.weight)
            layer.node.args = (layer.node.args[0], weight, *(bias or ([None] if rest else [])), *rest)
        for scaling in self._scalings.values():
            shift, factor = (_Constant(item, scaling.dtype) for item in (scaling.shift, scaling.factor))
            (value,) = scaling.node.args
            if not bool(scaling.shift.any()):
                scaling.node.target, scaling.node.args = _aten.mul.Tensor, (value, self._node(factor))
            elif bool((scaling.factor == 1).all()):
                scaling.node.target, scaling.node.args = _aten.add.Tensor, (value, self._node(shift))
            else:
                scaling.node.args = (self._node(shift), value, self._node(factor))
        tree = self._module.graph._codegen.pytree_info.out_spec  # type: ignore[attr-defined]
        self._graph.output(pytree.tree_unflatten([self._operand(item) for item in outputs], tree))
        self._sort_constants()
        self._graph.eliminate_dead_code()
        module = Rewritten(self._root, self._graph)
        module.dropped = dropped
        return module

    def _sort_constants(self) -> None:
        """Move the used constants to the beginning, so that each is defined before its first use."""
        first = next(iter(self._graph.nodes))
        for node in [node for node in self._graph.nodes if node.op == "get_attr"]:
            first.prepend(node)

    def _call(self, node: fx.Node) -> None:
        name = _name(node)
        if name in _CHECKS:
            return
        if node.op == "call_module" or any(isinstance(operand, fx.Graph | fx.GraphModule) for operand in node.args):
            raise NotRewritable(str(node.target))
        if name in _COPIES or (name in _CASTS and not _casts(node)) or (name == "dropout" and node.args[2] is False):
            self._values[node] = self._value(node.args[0])
            return
        target = node.target
        if name.endswith("_") and not name.startswith("_"):
            target, name = _functional(node)
        args = pytree.tree_map_only(fx.Node, self._value, list(node.args))
        kwargs = pytree.tree_map_only(fx.Node, self._value, dict(node.kwargs))
        leaves = [operand for operand in pytree.tree_leaves((args, kwargs)) if isinstance(operand, fx.Node | _Constant)]
        if leaves and all(isinstance(operand, _Constant) for operand in leaves) and name in _ARITHMETIC | _SHAPES:
            self._values[node] = _folded(target, args, kwargs, node)
            return
        for shortcut in (self._layer, self._affine, self._scaled, self._permuted, self._pointwise):
            new = shortcut(node, name, target, args, kwargs)
            if new is not None:
                self._values[node] = new
                return
        if name == "view":  # the tensor may be permuted in the new graph
            target = _aten.reshape.default
        self._values[node] = self._emit(target, args, kwargs)

    def _layer(self, node: fx.Node, name: str, target: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Emit a convolution, or a product with a matrix, with constant weights."""
        if kwargs or len(args) < 2 or not isinstance(args[0], fx.Node) or not isinstance(args[1], _Constant):
            return None
        weight, bias = args[1], None
        if name in _CONVOLUTIONS:
            if len(args) > 2 and args[2] is not None:
                bias = args[2]
                if not isinstance(bias, _Constant):
                    return None
            new = self._graph.call_function(target, (args[0], None, None, *args[3:]))
            channel = 1
        elif name in ("matmul", "mm") and weight.value.dim() == 2:
            weight = _Constant(weight.value.t(), weight.dtype)
            new = self._graph.call_function(_aten.linear.default, (args[0], None))
            channel = node.meta["val"].dim() - 1
        else:
            return None
        self._layers[new] = _Layer(new, weight, bias, channel)
        return new

    def _affine(self, node: fx.Node, name: str, target: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Fold the addition of a constant, or the product with one, into the previous layer."""
        if name not in _ARITHMETIC or kwargs or len(args) != 2:
            return None
        first, second = args
        old = node.args[0]
        if isinstance(first, _Constant) and name in ("add", "mul", "multiply"):
            first, second, old = second, first, node.args[1]
        if not isinstance(first, fx.Node) or not isinstance(second, _Constant | float | int):
            return None
        if not isinstance(old, fx.Node) or not _one_user(old):
            return None
        permutation: Any = None
        inner: Any = first
        if _name(first) == "permute":
            inner, permutation = first.args
        layer = self._layers.get(inner)
        if layer is None or (permutation is not None and len(inner.users) > 1):
            return None
        rank = node.meta["val"].dim()
        axis = layer.channel if permutation is None else list(permutation).index(layer.channel)
        vector = _vector(second, axis, rank, layer.weight.value.shape[0])
        if vector is None:
            return None
        bias = torch.zeros_like(vector) if layer.bias is None else layer.bias.value
        if name in ("mul", "multiply", "div", "divide", "true_divide"):
            factor = vector if name.startswith("mul") else 1 / vector
            shape = [-1] + [1] * (layer.weight.value.dim() - 1)
            layer.weight = _Constant(layer.weight.value * factor.reshape(shape), layer.weight.dtype)
            layer.bias = None if layer.bias is None else _Constant(bias * factor, layer.weight.dtype)
        elif name in ("add", "sub", "subtract"):
            layer.bias = _Constant(bias + (vector if name == "add" else -vector), layer.weight.dtype)
        else:
            return None
        return first

    def _scaled(self, node: fx.Node, name: str, target: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Merge sums and products with constants that cannot be folded into the previous layer."""
        if name not in _MERGED or kwargs or len(args) != 2 or node.meta["val"].dtype != torch.float32:
            return None
        dtype = torch.float32
        first, second, old = args[0], args[1], node.args[0]
        if isinstance(first, _Constant) and name in ("add", "mul", "multiply"):
            first, second, old = second, first, node.args[1]
        if not isinstance(first, fx.Node) or not isinstance(second, _Constant) or not isinstance(old, fx.Node):
            return None
        shape = node.meta["val"].shape
        same = old.meta["val"].dtype == dtype == second.dtype and len(old.meta["val"].shape) == len(shape)
        small = all(isinstance(size, int) for size in second.value.shape) and second.value.dim() <= len(shape)
        sizes = list(shape[len(shape) - second.value.dim() :])
        if (
            not same
            or not small
            or any(size not in (1, have) for size, have in zip(second.value.shape, sizes, strict=True))
        ):
            return None
        if first not in self._scalings or not _one_user(old):
            first = self._graph.call_function(_aten.addcmul.default, (first,))
            self._scalings[first] = _Scaling(first, dtype)
        self._scalings[first].apply(name, second.value)
        return first

    def _permuted(self, node: fx.Node, name: str, target: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Merge a permutation with the previous one."""
        if name != "permute" or not isinstance(args[0], fx.Node):
            return None
        base, order = args[0], [axis % len(args[1]) for axis in args[1]]
        if _name(base) == "permute":
            before: Any = base.args[1]
            base, order = base.args[0], [before[axis] for axis in order]  # type: ignore[assignment]
        return base if order == list(range(len(order))) else self._emit(_aten.permute.default, [base, order], {})

    def _pointwise(self, node: fx.Node, name: str, target: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Move a permutation after an element-wise operation, so that the next permutation may cancel it."""
        leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, fx.Node | _Constant)]
        if name not in _POINTWISE or not leaves or not all(isinstance(leaf, fx.Node) for leaf in leaves):
            return None
        orders: list[Any] = [leaf.args[1] for leaf in leaves if isinstance(leaf, fx.Node) and _name(leaf) == "permute"]
        if len(orders) != len(leaves) or any(order != orders[0] for order in orders):
            return None
        olds = [leaf for leaf in pytree.tree_leaves((node.args, node.kwargs)) if isinstance(leaf, fx.Node)]
        if any(old.meta["val"].dim() != len(orders[0]) for old in olds):
            return None
        args, kwargs = pytree.tree_map_only(fx.Node, lambda permutation: permutation.args[0], (args, kwargs))
        return self._emit(_aten.permute.default, [self._emit(target, args, kwargs), list(orders[0])], {})

    def _emit(self, target: Any, args: Any, kwargs: Any) -> fx.Node:
        args, kwargs = pytree.tree_map_only(_Constant, self._node, (args, kwargs))
        return self._graph.call_function(target, tuple(args), kwargs)

    def _value(self, operand: Any) -> Any:
        if not isinstance(operand, fx.Node):
            return operand
        if operand not in self._values:
            raise NotRewritable(str(operand.target))
        return self._values[operand]

    def _operand(self, operand: Any) -> Any:
        return self._node(operand) if isinstance(operand, _Constant) else operand

    def _node(self, constant: _Constant) -> fx.Node:
        """Return the node of a constant, which becomes a buffer of the module."""
        if id(constant) not in self._nodes:
            name = f"constant_{len(self._kept)}"
            self._root.register_buffer(name, constant.tensor())
            self._kept.append(constant)
            self._nodes[id(constant)] = self._graph.get_attr(name)
        return self._nodes[id(constant)]


def _name(node: fx.Node) -> str:
    """Return the name of an operation without namespace and overload: ``conv2d``."""
    if node.op == "call_module":
        return str(node.target)
    if node.op != "call_function":
        return ""
    schema = getattr(node.target, "_schema", None)
    return schema.name.rpartition("::")[2] if schema is not None else ""


def _attribute(module: torch.nn.Module, target: Any) -> Any:
    return operator.attrgetter(str(target))(module)


def _constant(value: torch.Tensor) -> _Constant:
    return _Constant(value.double() if value.dtype == torch.float32 else value, value.dtype)


def _casts(node: fx.Node) -> bool:
    """Return whether an operation ``to`` changes the type of a tensor."""
    source: Any = node.args[0]
    return bool(source.meta["val"].dtype != node.meta["val"].dtype)


def _functional(node: fx.Node) -> tuple[Any, str]:
    """Return the functional form of an in-place operation, if no other operation reads the overwritten value."""
    base: Any = node.args[0]
    if not isinstance(base, fx.Node) or not _one_user(base) or _reaches_input(base):
        raise NotRewritable(str(node.target))
    schema: Any = node.target._schema  # type: ignore[union-attr]
    name = schema.name.rpartition("::")[2].removesuffix("_")
    packet = getattr(_aten, name, None)
    if packet is None or schema.overload_name not in [*packet.overloads(), ""]:
        raise NotRewritable(str(node.target))
    return getattr(packet, schema.overload_name or "default"), name


def _one_user(node: fx.Node) -> bool:
    """Return whether a value, including tensors that it may be a view of, has only one computing reader."""

    def readers(source: fx.Node) -> int:
        return sum(_name(user) not in _CHECKS for user in source.users)

    while readers(node) == 1:
        if node.op != "call_function" or _name(node) not in {*_SHAPES, *_COPIES, *_CASTS}:
            return True
        base: Any = node.args[0]
        if base.op != "call_function":
            return True
        node = base
    return False


def _reaches_input(node: fx.Node) -> bool:
    """Return whether a value may be a view of an input or a constant."""
    while node.op == "call_function" and _name(node) in {*_SHAPES, *_COPIES, *_CASTS}:
        node = node.args[0]  # type: ignore[assignment]
    return node.op != "call_function"


def _folded(target: Any, args: Any, kwargs: Any, node: fx.Node) -> _Constant:
    args, kwargs = pytree.tree_map_only(_Constant, lambda constant: constant.value, (args, kwargs))
    with torch.no_grad():
        if target is _aten.view.default:
            target = _aten.reshape.default
        value = target(*args, **kwargs)
    return _Constant(value, node.meta["val"].dtype)


def _vector(value: _Constant | float, axis: int, rank: int, channels: int) -> torch.Tensor | None:
    """Return the value for each channel, if a constant is broadcast along all other axes; otherwise None."""
    if isinstance(value, float | int):
        return torch.full((channels,), float(value), dtype=torch.float64)
    tensor = value.value
    if not tensor.dtype.is_floating_point or tensor.dim() > rank:
        return None
    shape = [1] * (rank - tensor.dim()) + list(tensor.shape)
    if any(size != 1 for place, size in enumerate(shape) if place != axis) or shape[axis] not in (1, channels):
        return None
    return tensor.reshape(-1).expand(channels).double()


def identifiers(names: Sequence[str]) -> list[str]:
    """Return unique names that are valid in Python."""
    unique: list[str] = []
    for position, name in enumerate(names):
        name = re.sub(r"\W", "_", name) or f"input_{position}"
        name = f"_{name}" if name[0].isdigit() else name
        unique.append(name if name not in unique else f"{name}_{position}")
    return unique
