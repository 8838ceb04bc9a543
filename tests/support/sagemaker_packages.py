"""Packages for SageMaker's PyTorch toolkit: a TorchScript model alone, with functions, and with transform_fn."""

from __future__ import annotations

import tarfile
from pathlib import Path

import torch

NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, values):
        return self.layer(values)
"""
# One function with context, one with a default content type, and a module beside the script.
FUNCTIONS = """
import json, os
import torch
from net import Net

def model_fn(model_dir, context):
    net = Net()
    net.load_state_dict(torch.load(os.path.join(model_dir, "weights.pth"), weights_only=True))
    return {"net": net, "folder": os.path.basename(os.path.dirname(os.path.abspath(__file__)))}

def input_fn(request_body, request_content_type="application/json"):
    if request_content_type == "text/plain":
        return torch.tensor([[float(part) for part in request_body.decode("utf-8").split()]])
    if request_content_type == "application/json":
        return torch.tensor(json.loads(request_body)["values"])
    raise ValueError("Unsupported content type: " + request_content_type)

def predict_fn(data, model):
    with torch.no_grad():
        return {"scores": model["net"](data).tolist(), "folder": model["folder"]}

def output_fn(prediction, accept):
    if accept == "text/csv":
        return "\\n".join(",".join(map(str, row)) for row in prediction["scores"]), "text/csv"
    return json.dumps(prediction)
"""
TRANSFORM = """
import json

def pre_model_fn(model_dir):
    global seen
    seen = ["pre_model_fn"]

def model_fn(model_dir):
    seen.append("model_fn")
    return "model"

def model_warmup_fn(model_dir, model):
    seen.append("model_warmup_fn")

class Refused(Exception):
    status_code, message, phrase = 422, "no such customer", "no such customer"

def transform_fn(model, data, content_type, accept, context):
    if data == b"refuse":
        raise Refused()
    return json.dumps([model, len(data), content_type, accept, seen]), "application/json"
"""


def write(folder: Path) -> dict[str, Path]:
    """Write the content of each package to a separate folder; return the folders by name."""
    torch.manual_seed(5)
    net = torch.nn.Linear(3, 2)
    packages = {name: folder / name for name in ("plain", "functions", "transform")}
    for package in packages.values():
        (package / "code").mkdir(parents=True)
    (packages["plain"] / "code").rmdir()
    torch.jit.save(torch.jit.script(net), packages["plain"] / "model.pt")
    weights = {f"layer.{name}": value for name, value in net.state_dict().items()}
    torch.save(weights, packages["functions"] / "weights.pth")
    (packages["functions"] / "code" / "net.py").write_text(NET)
    (packages["functions"] / "code" / "inference.py").write_text(FUNCTIONS)
    (packages["transform"] / "code" / "inference.py").write_text(TRANSFORM)
    return packages


def packed(folder: Path) -> Path:
    """Pack a folder as SageMaker's tools do; return ``model.tar.gz`` beside it."""
    file = folder.with_name(f"{folder.name}.tar.gz")
    with tarfile.open(file, "w:gz") as archive:
        archive.add(folder, ".")
    return file
