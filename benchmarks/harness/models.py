"""The models that are served: programs of random but fixed weights, their requests and expected answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from handlers import photographs
from torchmar import archive, recipe

JSON, JPEG = "application/json", "image/jpeg"
BATCH, DELAY = 16, 1  # requests, milliseconds: the same for all sides with batches
STEPS = 15  # steps of integrated gradients in TorchServe's handler
WIDTH = 4096  # width of the layers of the large model: 64 MiB each

# TorchServe's base handler accepts no bodies of clients; in its documentation, preprocess is overridden.
_ROWS = """
import torch
from ts.torch_handler.base_handler import BaseHandler


class Rows(BaseHandler):
    def preprocess(self, data):
        return torch.as_tensor([row.get("data") or row.get("body") for row in data], device=self.device)
"""
# The steps of ts.torch_handler.image_classifier, for machines without torchvision.
_IMAGES = """
import numpy as np
import torch
from PIL import Image
from ts.torch_handler.vision_handler import VisionHandler
from ts.utils.util import map_class_to_label

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


class Images(VisionHandler):
    def image_processing(self, image):
        ratio = 256 / min(image.size)
        image = image.resize([int(side * ratio) for side in image.size], Image.Resampling.BILINEAR)
        left, top = [round((side - 224) / 2) for side in image.size]
        pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32) / 255
        return torch.from_numpy(((pixels - MEAN) / STD).transpose(2, 0, 1))

    def postprocess(self, data):
        values, classes = torch.topk(data.softmax(1), 5, dim=1)
        return map_class_to_label(values.tolist(), self.mapping, classes.tolist())
"""
# TorchServe's own, without the classes that need torchvision: the client sends floats.
_EXPLAINED = """
from ts.torch_handler.vision_handler import VisionHandler


class Explained(VisionHandler):
    pass
"""
# Carried inside the archive, where it comes first: Pillow decodes on all sides.
_NO_DECODER = 'raise ImportError("left out, so that all sides decode alike")\n'

_CONFIG = {"minWorkers": 1, "maxWorkers": 1, "batchSize": BATCH, "maxBatchDelay": DELAY, "responseTimeout": 300}


@dataclass(frozen=True)
class Model:
    """A model, its requests and their answers.

    Attributes:
        name: name of the model, on every side.
        weights: the TorchScript program.
        stores: model stores with its archive: ``stock`` with TorchServe's handler, ``ours`` with torchmar's,
            ``bare`` with TorchServe's handler and no configuration.
        content_type: content type of the bodies.
        bodies: bodies of the requests.
        expected: expected answers.
        same: function that returns whether an answer is the expected one, within the rounding of floats.
        explain: whether explanations are requested.
    """

    name: str
    weights: Path
    stores: Mapping[str, Path]
    content_type: str
    bodies: tuple[bytes, ...]
    expected: tuple[Any, ...]
    same: Callable[[Any, Any], bool]
    explain: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def file(self) -> str:
        """The file name of the model's archive in each of the stores."""
        return f"{self.name}-1.0.mar"


def tiny(folder: Path) -> Model:
    """Return a perceptron of 64 features, which needs almost no computation."""
    torch.manual_seed(0)
    return _rows(folder, "tiny", nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)), 64)


def big(folder: Path, size: int) -> Model:
    """Return a perceptron with ``size`` bytes of weights."""
    torch.manual_seed(0)
    layers = [nn.Linear(WIDTH, WIDTH) for _ in range(max(1, round(size / WIDTH**2 / 4)))]
    return _rows(folder, "big", nn.Sequential(nn.Linear(64, WIDTH), *layers, nn.Linear(WIDTH, 10)), 64)


def resnet(folder: Path) -> Model:
    """Return ResNet-18; photographs of 640x480 are its requests."""
    folder, program = _traced(folder, "resnet", random_resnet18(), torch.zeros(1, 3, 224, 224))
    images = photographs(16)
    try:
        import torchvision  # noqa: F401
    except ImportError:
        stock = "stock.py"
        (folder / stock).write_text(_IMAGES)
    else:
        stock = "image_classifier"
    (folder / "simplejpeg.py").write_text(_NO_DECODER)
    return Model(
        "resnet",
        folder / "resnet.pt",
        _packed(
            folder, "resnet", stock, "torchmar_handlers.image_classifier", files={"simplejpeg.py": "simplejpeg.py"}
        ),
        JPEG,
        tuple(images),
        tuple(_classified(program, image) for image in images),
        _same_classes,
    )


def digits(folder: Path) -> Model:
    """Return a small convolutional network for explanations: integrated gradients for class 0."""
    torch.manual_seed(0)
    last = nn.Linear(32 * 6 * 6, 10)
    nn.init.normal_(last.weight)  # so that attributions are not smaller than the rounding of an answer
    layers = nn.Sequential(
        *(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), last),
    )
    folder, program = _traced(folder, "digits", layers, torch.zeros(1, 1, 32, 32))
    (folder / "stock.py").write_text(_EXPLAINED)
    from captum.attr import IntegratedGradients

    inputs = [torch.rand(1, 32, 32).mul(1000).round().div(1000) for _ in range(4)]
    explained = [IntegratedGradients(program).attribute(tensor[None], target=0, n_steps=STEPS)[0] for tensor in inputs]
    return Model(
        "digits",
        folder / "digits.pt",
        _packed(
            folder,
            "digits",
            "stock.py",
            "torchmar_handlers.image_classifier",
            handler={"mode": "L", "resize": [32, 32]},
        ),
        JSON,
        tuple(json.dumps(tensor.tolist()).encode() for tensor in inputs),
        tuple(one.tolist() for one in explained),
        _same_attributions,
        explain=True,
        headers={"Explain-Target": "0", "Explain-N-Steps": str(STEPS)},
    )


def _rows(folder: Path, name: str, layers: nn.Module, width: int) -> Model:
    folder, program = _traced(folder, name, layers, torch.zeros(1, width))
    (folder / "stock.py").write_text(_ROWS)
    inputs = [torch.rand(width).mul(1000).round().div(1000) for _ in range(8)]
    with torch.inference_mode():
        answers = [program(tensor[None])[0].tolist() for tensor in inputs]
    return Model(
        name,
        folder / f"{name}.pt",
        _packed(folder, name, "stock.py", "torchmar_handlers.tensors"),
        JSON,
        tuple(json.dumps([round(value, 3) for value in tensor.tolist()]).encode() for tensor in inputs),
        tuple(answers),
        _same_numbers,
    )


def _traced(folder: Path, name: str, module: nn.Module, example: Tensor) -> tuple[Path, Any]:
    """Write a module as a TorchScript program into a separate folder; return the path and the program."""
    home = folder / f"model-{name}"
    home.mkdir()
    program = torch.jit.trace(module.eval().requires_grad_(False), example)
    torch.jit.save(program, home / f"{name}.pt")
    return home, program


def _packed(folder: Path, name: str, stock: str, ours: str, **more: Any) -> dict[str, Path]:
    """Return a store for each way to serve a program."""
    files = more.pop("files", {})
    ways: dict[str, dict[str, Any]] = {
        "stock": {"handler": stock, "config": _CONFIG},
        "bare": {"handler": stock},
        "ours": {"handler": ours, "config": {**_CONFIG, **more}, "files": files},
    }
    for way, keys in ways.items():
        document = {"name": name, "version": "1.0", "weights": f"{name}.pt", **keys}
        made = recipe.Recipe.model_validate(document)
        archive.pack(archive.collect_members(made, folder), folder / way / f"{name}-1.0.mar")
    return {way: folder / way for way in ways}


def random_resnet18() -> nn.Module:
    """Return ResNet-18 with random weights."""
    torch.manual_seed(0)
    try:
        from torchvision.models import resnet18
    except ImportError:
        model: nn.Module = _ResNet18()
    else:
        model = resnet18()
    # Random weights distinguish images little: larger weights, so that no two classes are almost equal.
    last = [part for part in model.modules() if isinstance(part, nn.Linear)][-1]
    nn.init.normal_(last.weight, std=0.3)
    return model


class _ResNet18(nn.Sequential):
    """The layers of torchvision's ResNet-18."""

    def __init__(self) -> None:
        blocks: list[nn.Module] = []
        channels = 64
        for wanted in (64, 128, 256, 512):
            blocks += [_Block(channels, wanted), _Block(wanted, wanted)]
            channels = wanted
        stem = (nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        super().__init__(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


class _Block(nn.Module):
    def __init__(self, inward: int, outward: int) -> None:
        super().__init__()
        stride = outward // inward
        self.path = nn.Sequential(
            *(nn.Conv2d(inward, outward, 3, stride, 1, bias=False), nn.BatchNorm2d(outward), nn.ReLU()),
            *(nn.Conv2d(outward, outward, 3, 1, 1, bias=False), nn.BatchNorm2d(outward)),
        )
        shorter = (nn.Conv2d(inward, outward, 1, stride, bias=False), nn.BatchNorm2d(outward))
        self.short = nn.Sequential(*shorter) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.path(x) + self.short(x))


def _classified(program: Any, image: bytes) -> dict[str, float]:
    """Return the probabilities of all classes, by the steps of TorchServe's handler."""
    import io

    import numpy as np
    from PIL import Image

    opened = Image.open(io.BytesIO(image)).resize((341, 256), Image.Resampling.BILINEAR).crop((58, 16, 282, 240))
    pixels = np.asarray(opened, np.float32) / 255
    pixels = (pixels - np.array([0.485, 0.456, 0.406], np.float32)) / np.array([0.229, 0.224, 0.225], np.float32)
    with torch.inference_mode():
        scores = program(torch.from_numpy(pixels.transpose(2, 0, 1))[None]).softmax(1)[0]
    return {str(label): value for label, value in enumerate(scores.tolist())}


def _same_classes(found: Any, expected: Any) -> bool:
    """Return whether five classes have their expected probabilities, and the most probable class is among them.

    A resize with other rounding changes a probability by some thousandths.
    """
    best = max(expected, key=expected.__getitem__)
    return len(found) == 5 and best in found and all(abs(found[key] - expected[key]) < 0.01 for key in found)


def _same_numbers(found: Any, expected: Any) -> bool:
    return len(found) == len(expected) and all(abs(a - b) < 1e-4 for a, b in zip(found, expected, strict=True))


def _same_attributions(found: Any, expected: Any) -> bool:
    left, right = torch.tensor(found), torch.tensor(expected)
    return left.shape == right.shape and bool((left - right).norm() < 1e-3 * right.norm())
