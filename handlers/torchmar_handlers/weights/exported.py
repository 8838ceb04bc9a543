"""Programs of torch.export: a graph with its weights in one file."""

from __future__ import annotations

import logging
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchmar_handlers.weights.exported_model import ExportedModel, Input, signature
from torchmar_handlers.weights.flat_graph import Run, flat_graph
from torchmar_handlers.weights.load_error import LoadError, summary

logger = logging.getLogger(__name__)

# Operators that behave differently in training, and the position of the argument that selects it.
_MODES = {"aten.dropout.default": 2, "aten.batch_norm.default": 5}


class Exported(ExportedModel):
    """A program of torch.export, as a module."""

    differentiable = True

    def __init__(
        self,
        module: nn.Module,
        inputs: list[Input],
        keywords: list[str],
        output_names: tuple[str, ...],
        run: Run | None = None,
    ) -> None:
        super().__init__(inputs, output_names)
        self.module = module
        self._keywords, self._run = keywords, run

    def replace(self, module: nn.Module) -> None:
        """Run ``module`` from now on, for example a compiled one."""
        self.module, self._run = module, None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program on inputs given by position or by name."""
        values = self.arrange(args, kwargs)
        if self._run is not None and all(isinstance(value, torch.Tensor) for value in values):
            return self._run(values)
        split = len(values) - len(self._keywords)
        return self.module(*values[:split], **dict(zip(self._keywords, values[split:], strict=True)))


def load(path: Path, device: torch.device) -> Exported:
    """Return a program on ``device``.

    Raises:
        LoadError: the program is damaged, of a newer torch than this one, or made for a GPU that does not exist.
    """
    version, devices = _origin(path)
    if device.type == "cpu" and (others := sorted(devices - {"cpu"})):
        raise LoadError(
            f"{path.name} was exported on {others[0]}, and this worker runs on the CPU: export it from a model "
            "on the CPU, which runs on both, or give the worker a GPU"
        )
    try:
        program = torch.export.load(path)
        if device.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
        module = program.module()
    except Exception as error:
        raise LoadError(
            f"{path.name} was written by torch {version or 'of an unknown version'}, and torch {torch.__version__} "
            f"cannot load it: export it again with this torch, or install that one ({summary(error)})"
        ) from error
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    leaves = [_input(values.get(name)) for name in program.graph_signature.user_inputs]
    call_signature = program.module_call_graph[0].signature
    names = (call_signature.forward_arg_names if call_signature else None) or ()
    inputs, keywords, output_names = signature(program.call_spec.in_spec, program.call_spec.out_spec, names, leaves)
    if any(_training(node) for node in program.graph.nodes):
        logger.warning(
            "%s was exported in training mode: answers are random, or depend on the requests beside them; "
            "call model.eval() and export it again",
            path.name,
        )
    module = module.requires_grad_(False)
    # Only tensors have a type here; inputs that are lists or mappings have none.
    all_tensors = len(inputs) == len(leaves) and all(spec.dtype is not None for spec in inputs)
    run = flat_graph(module, program.call_spec.out_spec) if all_tensors else None
    return Exported(module, inputs, keywords, output_names, run)


def _input(value: Any) -> Input:
    if not isinstance(value, torch.Tensor):
        return Input()
    return Input("", value.dtype, tuple(size if isinstance(size, int) else None for size in value.shape))


def _training(node: Any) -> bool:
    place = _MODES.get(str(node.target)) if node.op == "call_function" else None
    return place is not None and len(node.args) > place and node.args[place] is True


def _origin(path: Path) -> tuple[str, set[str]]:
    """Return the version of the torch that wrote a program, and the kinds of devices in it."""
    versions: list[bytes] = []
    devices: set[str] = set()
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if re.search(r"(^|/)(serialized_exported_program|models/[^/]+)\.json$", name):
                text = archive.read(name)
                versions += re.findall(rb'"torch_version": ?"([\w.+-]+)"', text)
                devices |= {kind.decode() for kind in re.findall(rb'"device": ?\{"type": ?"(\w+)"', text)}
    return (versions[-1].decode() if versions else ""), devices
