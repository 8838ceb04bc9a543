"""The graph of an exported program as a function of a list of tensors.

Torch's own module of a program compares the tree of its arguments with that of the export, flattens it, and searches
every weight through `torch.nn.Module`, in each call: for a small model, this takes three times as long as the model.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

Run = Callable[[Sequence[torch.Tensor]], Any]

_GUARDS = "_guards_fn"  # checks sizes that the export has limited, or found to be equal


def flat_graph(module: Any, out_spec: Any) -> Run | None:
    """Return a function that runs a program on its inputs, in the order of its graph, with the same results.

    Args:
        module: module of a program whose inputs are tensors, not lists or mappings.
        out_spec: tree of its result.

    Returns:
        The function, which shares the weights; None: torch checks sizes outside the graph, as it did before 2.9.
    """
    guards = getattr(module, _GUARDS, None)
    if not isinstance(guards, nn.Module):
        return None
    graph = copy.deepcopy(module.graph)
    graph.set_codegen(torch.fx.graph.CodeGen())
    for node in graph.find_nodes(op="call_module", target=_GUARDS):
        graph.erase_node(node)
    flat = torch.fx.GraphModule(module, graph)
    for number, node in enumerate(graph.find_nodes(op="get_attr")):
        value = attrgetter(node.target)(module)
        node.target = f"_value_{number}"
        # As a plain attribute, which Python finds before it calls `__getattr__` of the module.
        flat.__dict__[node.target] = value
    flat.recompile()
    # Its wrapper sets an option of torch's compiler in each call, which takes longer than the call itself.
    check = inspect.getclosurevars(guards.forward).nonlocals.get("func", guards.forward)
    run, is_leaf = flat.forward, out_spec.is_leaf()

    def call(values: Sequence[torch.Tensor]) -> Any:
        check(*values)
        outputs = run(*values)
        return outputs[0] if is_leaf else pytree.tree_unflatten(outputs, out_spec)

    return call
