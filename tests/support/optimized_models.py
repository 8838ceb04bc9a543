"""Small models with optimised weights beside them, whose answers show which weights were used."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

SHIFT = 4.0
"""The difference of the optimised weights' score of class 2, larger than any rounding."""


class ImageNet(nn.Module):
    """Scores of three classes for images of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return scores, ``(n, 3)``."""
        scores: torch.Tensor = self.head(torch.relu(self.conv(image)).mean((2, 3)))
        return scores


class TableNet(nn.Module):
    """Scores of three classes for rows of four numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(4, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, row: torch.Tensor) -> torch.Tensor:
        """Return scores, ``(n, 3)``."""
        scores: torch.Tensor = self.head(torch.tanh(self.hidden(row)))
        return scores


class TextNet(nn.Module):
    """Scores of three classes for texts of five words; the mask comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, attention_mask: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Return scores, ``(n, 3)``."""
        embedded = self.embedding(input_ids) * attention_mask[:, :, None]
        scores: torch.Tensor = self.head(torch.tanh(embedded).sum(1))
        return scores


class Swapped(nn.Module):
    """The same model with the ids first."""

    def __init__(self, other: TextNet) -> None:
        super().__init__()
        self.other, self.head = other, other.head

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return scores, ``(n, 3)``."""
        scores: torch.Tensor = self.other(attention_mask, input_ids)
        return scores


def net(kind: type[nn.Module]) -> Any:
    """Return a model with the same weights in every call."""
    torch.manual_seed(0)
    return kind().eval().requires_grad_(False)


def save_script(model: nn.Module, file: Path) -> None:
    """Write TorchScript."""
    with _quietly():
        torch.jit.script(model).save(str(file))


def save_onnx(
    model: Any, file: Path, *examples: torch.Tensor, names: Sequence[str] = ("input",), shift: float = SHIFT
) -> None:
    """Write an ONNX model that adds ``shift`` to the score of class 2, for batches (and texts) of any size."""
    with torch.no_grad():
        model.head.bias[2] += shift
    file.parent.mkdir(exist_ok=True)
    axes = {0: "rows", 1: "tokens"} if len(examples) > 1 else {0: "rows"}
    with _quietly():
        torch.onnx.export(
            model,
            examples,
            file,
            dynamo=False,  # the newer exporter takes seconds
            dynamic_axes=dict.fromkeys(names, axes) | {"scores": {0: "rows"}},
            input_names=list(names),
            output_names=["scores"],
        )
    with torch.no_grad():
        model.head.bias[2] -= shift


def image_project(folder: Path, section: Any, **keys: Any) -> Path:
    """Write the recipe of an image classifier with ``net.pt``; ``optimized`` beside it is packed if it exists."""
    options = {"mode": "L", "resize": None, "optimized": section, **keys.pop("options", {})}
    return _project(folder, "image_classifier", {key: value for key, value in options.items() if value}, **keys)


def table_project(folder: Path, section: Any, **keys: Any) -> Path:
    """Write the recipe of a tabular classifier with ``net.pt``."""
    columns = [{"name": name} for name in "abcd"]
    return _project(folder, "tabular_classifier", {"columns": columns, "optimized": section}, **keys)


def text_project(folder: Path, section: Any, **keys: Any) -> Path:
    """Write the recipe of a text classifier with ``net.pt`` and ``tokenizer.json``."""
    files = {"tokenizer.json": "tokenizer.json", "optimized": "optimized"}
    return _project(folder, "text_classifier", {"optimized": section} if section else {}, files=files, **keys)


def _project(
    folder: Path, kind: str, options: dict[str, Any], more_config: dict[str, Any] | None = None, **keys: Any
) -> Path:
    files = {"optimized": "optimized"} if (folder / "optimized").is_dir() else {}
    document: dict[str, Any] = {
        "name": "net",
        "version": "1.0",
        "handler": f"torchmar_handlers.{kind}",
        "weights": "net.pt",
    }
    config = {"responseTimeout": 60, "handler": options, **(more_config or {})}
    document |= {"config": config, "files": files, **keys}
    (folder / "archive.yaml").write_text(json.dumps(document))
    return folder


def image(number: int = 0) -> np.ndarray[Any, Any]:
    """Return an image as the model's input, ``(1, 8, 8)``."""
    return np.random.default_rng(number).standard_normal((1, 8, 8)).astype(np.float32)


def npy(array: np.ndarray[Any, Any]) -> bytes:
    """Return an array as a file."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def probabilities(model: nn.Module, array: np.ndarray[Any, Any], shift: float = 0) -> list[float]:
    """Return the answer of a model with a shift, by class."""
    scores = model(torch.from_numpy(array)[None])[0]
    scores[2] += shift
    return [round(value, 6) for value in scores.softmax(0).tolist()]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
