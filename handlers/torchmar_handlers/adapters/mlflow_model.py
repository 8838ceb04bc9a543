"""A model saved by MLflow's pytorch flavour: its ``MLmodel`` file, and its weights."""

from __future__ import annotations

import importlib
import logging
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import yaml
from torch import nn

from torchmar_handlers.adapters import mlflow_signature
from torchmar_handlers.adapters.mlflow_signature import Signature
from torchmar_handlers.weights import exported, torchscript
from torchmar_handlers.weights.formats import Format, identify
from torchmar_handlers.weights.load_error import LoadError

logger = logging.getLogger(__name__)

FILE = "MLmodel"
FLAVOR = "pytorch"


def load(folder: Path, device: torch.device) -> tuple[nn.Module, Signature]:
    """Return the model on ``device``, in eval mode, and its signature. A pickle runs code of its author.

    Raises:
        LoadError: there is no such model, it cannot be loaded, or a request cannot contain its input.
    """
    document = _document(folder)
    flavor = document["flavors"][FLAVOR]
    if code := flavor.get("code"):
        sys.path.insert(0, str(folder / code))
        importlib.invalidate_caches()
    try:
        signature = mlflow_signature.parse(document.get("signature"))
    except (ValueError, KeyError, TypeError) as error:
        raise LoadError(f"the signature in {FILE} cannot be used: {error}") from error
    if (saved := flavor.get("pytorch_version")) and str(saved) != torch.__version__:
        logger.warning("the model was saved by torch %s, and this is torch %s", saved, torch.__version__)
    return _weights(folder / str(flavor.get("model_data") or "data"), device), signature


def _document(folder: Path) -> Mapping[str, Any]:
    file = folder / FILE
    try:
        document = yaml.safe_load(file.read_bytes())
        if isinstance(document["flavors"][FLAVOR], Mapping):
            return document  # type: ignore[no-any-return]
    except OSError as error:
        raise LoadError(f"{FILE} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, KeyError, TypeError):
        pass
    raise LoadError(f"{FILE} does not describe a model of the flavour {FLAVOR}")


def _weights(folder: Path, device: torch.device) -> nn.Module:
    program, file = folder / "model.pt2", folder / "model.pth"
    if not file.is_file():
        if not program.is_file():
            raise LoadError(f"{folder.name}/ has neither {file.name} nor {program.name}")
        return exported.load(program, device)
    if identify(file) is Format.TORCHSCRIPT:
        return torchscript.load(file, device)
    try:
        model = torch.load(file, map_location=device, weights_only=False, pickle_module=_pickle_module(folder))
    except ModuleNotFoundError as error:
        raise LoadError(
            f"{file.name} needs the module {error.name}, which is not installed: list its package in the requirements"
        ) from error
    if not isinstance(model, nn.Module):
        raise LoadError(f"{file.name} holds a {type(model).__name__}, which is no model of torch")
    return model.eval().to(device)


def _pickle_module(folder: Path) -> ModuleType:
    """Return the module that reads the pickle; MLflow's module reads as Python's own does."""
    file = folder / "pickle_module_info.txt"
    name = file.read_text(encoding="utf-8").strip() if file.is_file() else "pickle"
    return pickle if name.startswith("mlflow.") or name in ("pickle", "cloudpickle") else importlib.import_module(name)
