"""Shared code of the services: load a TorchScript program, decode bodies to inputs, make answers from outputs.

A service is configured by environment variables: SERVE_MODEL (``tiny``, ``big`` or ``resnet``), SERVE_FILE,
SERVE_WORKERS, SERVE_BATCH (requests), SERVE_DELAY (milliseconds), SERVE_PORT.
"""

import io
import json
import os
from typing import Any

import numpy as np
import torch
from PIL import Image

MODEL = os.environ["SERVE_MODEL"]
FILE = os.environ["SERVE_FILE"]
WORKERS = int(os.environ["SERVE_WORKERS"])
BATCH = int(os.environ["SERVE_BATCH"])
DELAY = int(os.environ["SERVE_DELAY"])
PORT = int(os.environ["SERVE_PORT"])
IMAGES = MODEL == "resnet"

_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)


def load() -> torch.jit.ScriptModule:
    """Return the TorchScript program in SERVE_FILE."""
    program: torch.jit.ScriptModule = torch.jit.load(FILE)
    program.eval()
    return program


def decode(body: bytes) -> torch.Tensor:
    """Return the input in a body: an image, or a list of numbers in JSON."""
    return picture(Image.open(io.BytesIO(body))) if IMAGES else torch.tensor(json.loads(body))


def picture(image: Image.Image) -> torch.Tensor:
    """Return an image as the input of ImageNet's models: 256 pixels on the short side, 224 from the middle."""
    image = image.convert("RGB")
    width, height = image.size
    ratio = 256 / min(width, height)
    image = image.resize((int(width * ratio), int(height * ratio)), Image.Resampling.BILINEAR)
    left, top = round((image.width - 224) / 2), round((image.height - 224) / 2)
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32) / 255
    return torch.from_numpy(((pixels - _MEAN) / _STD).transpose(2, 0, 1))


def predict(model: torch.jit.ScriptModule, inputs: list[torch.Tensor]) -> list[Any]:
    """Return an answer for each input: a list of numbers, or the five most probable classes."""
    with torch.inference_mode():
        output = model(torch.stack(inputs))
        if not IMAGES:
            answers: list[Any] = output.tolist()
            return answers
        values, classes = output.softmax(1).topk(5)
    rows = zip(classes.tolist(), values.tolist(), strict=True)
    return [{str(label): value for label, value in zip(labels, numbers, strict=True)} for labels, numbers in rows]
