"""TorchScript: a module with its code in one file."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from torchmar_handlers.weights.load_error import LoadError, summary

logger = logging.getLogger(__name__)

# The replacements of torch.jit.optimize_for_inference and of quantization for operators with derivatives.
_NO_DERIVATIVE = re.compile(r"mkldnn|^(quantized|prepacked)::|cudnn_convolution_", re.IGNORECASE)


def load(path: Path, device: torch.device) -> torch.jit.ScriptModule:
    """Return a TorchScript module on ``device``, in eval mode.

    Raises:
        LoadError: the module is damaged, or of a newer torch than this one.
    """
    _warn_of_devices(path, device)
    with quietly():
        try:
            model: torch.jit.ScriptModule = torch.jit.load(path, map_location=device)
        except (RuntimeError, ValueError) as error:
            raise LoadError(
                f"{path.name} is a TorchScript archive that torch {torch.__version__} cannot load: it is damaged, "
                f"or was made by a newer torch ({summary(error)})"
            ) from error
    model.eval()
    return model


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Suppress torch's deprecation warnings for TorchScript, which the operator of a worker cannot change."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is (deprecated|not supported)")
        yield


def frozen(model: torch.jit.ScriptModule) -> bool:
    """Return whether the weights have become constants of the code, which no conversion reaches."""
    return not model._c.hasattr("training")


def differentiable(model: torch.jit.ScriptModule) -> bool:
    """Return whether all operators of a model have derivatives."""
    return not any(_NO_DERIVATIVE.search(node.kind()) for node in _nodes(model.inlined_graph))


def constant_dtype(model: torch.jit.ScriptModule) -> torch.dtype | None:
    """Return the type of the first constant tensor of floats in a frozen module; None: there is none."""
    for node in _nodes(model.inlined_graph):
        if node.kind() == "prim::Constant" and "value" in node.attributeNames() and node.kindOf("value") == "t":
            dtype: torch.dtype = node.t("value").dtype
            if dtype.is_floating_point:
                return dtype
    return None


def _nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)


def _warn_of_devices(path: Path, device: torch.device) -> None:
    """Log a warning if the code names another GPU than the worker's, as code traced on a GPU does."""
    devices: set[str] = set()
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".py"):
                devices |= set(
                    re.findall(r'torch\.device\("(cuda[:\d]*)"\)', archive.read(name).decode("utf-8", "replace"))
                )
    if others := sorted(devices - {device.type, str(device)}):
        logger.warning(
            "%s: its code names the device %s, and this worker runs on %s: should it fail, trace it again there",
            path.name,
            ", ".join(others),
            device,
        )
