"""Models in the format of MLflow's pytorch flavour, made without MLflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml

TENSOR = [{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 3]}}]
COLUMNS = [
    {"type": kind, "name": name, "required": True}
    for name, kind in zip("abc", ("long", "double", "double"), strict=True)
]


def save(folder: Path, model: torch.nn.Module, inputs: list[dict[str, Any]] | None) -> Path:
    """Save a model with the signature ``inputs``, if there is one; return the folder."""
    (folder / "data").mkdir(parents=True)
    if isinstance(model, torch.jit.ScriptModule):
        torch.jit.save(model, folder / "data" / "model.pth")
    else:
        torch.save(model, folder / "data" / "model.pth")
    (folder / "data" / "pickle_module_info.txt").write_text("mlflow.pytorch.pickle_module")
    flavor = {"model_data": "data", "pytorch_version": str(torch.__version__), "code": None}
    document: dict[str, Any] = {"flavors": {"pytorch": flavor}}
    if inputs:
        document["signature"] = {"inputs": json.dumps(inputs), "params": None}
    (folder / "MLmodel").write_text(yaml.safe_dump(document))
    return folder
