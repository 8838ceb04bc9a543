"""The job of converting a recipe's weights: layout of images, last activations, samples."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from torchmar.handler_names import CARRIED_PACKAGE
from torchmar.recipe import Recipe

_OF_IMAGES = ("image_classifier", "image_segmenter", "object_detector")
_OF_SCORES = ("image_classifier", "text_classifier")
_IMPORT = re.compile(rb"^\s*(from|import)\s+" + CARRIED_PACKAGE.encode() + rb"\b", re.MULTILINE)
_MAX_SAMPLE = 16 << 20  # largest size of a sample for the comparison


def job_of(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Return the job of a recipe's conversion.

    Args:
        recipe: recipe, with its handler, configuration and samples.
        folder: folder to which the recipe's file names are relative.
    """
    return {
        "channels_first": _handler(recipe) in _OF_IMAGES,
        "drop_activations": _dropped(recipe, folder),
        "samples": list(_samples(recipe, folder)),
    }


def loads_programs(recipe: Recipe, folder: Path) -> bool:
    """Return whether the handler is one of torchmar's, or imports one."""
    module = recipe.handler.partition(":")[0]
    if not module.endswith(".py"):
        return bool(_handler(recipe))
    try:
        return re.search(_IMPORT, (folder / module).read_bytes()) is not None
    except OSError:
        return False


def _handler(recipe: Recipe) -> str:
    """Return the name of the handler if it is one of torchmar's, otherwise an empty text."""
    package, _, name = recipe.handler.partition(":")[0].partition(".")
    return name if package == CARRIED_PACKAGE else ""


def _dropped(recipe: Recipe, folder: Path) -> list[str]:
    """Return the activations at the end of a model that the handler computes itself."""
    handler = _handler(recipe)
    if handler in _OF_SCORES:
        return ["softmax"]
    if handler != "tabular_classifier":
        return []
    section: Any = None
    if not isinstance(recipe.config, str):
        section = recipe.config.handler
    else:
        try:
            document = yaml.safe_load((folder / recipe.config).read_bytes())
            section = document.get("handler") if isinstance(document, dict) else None
        except (OSError, ValueError, yaml.YAMLError):
            section = None
    activation = section.get("activation", "auto") if isinstance(section, Mapping) else "auto"
    return {"auto": ["softmax", "sigmoid"], "softmax": ["softmax"], "sigmoid": ["sigmoid"]}.get(str(activation), [])


def _samples(recipe: Recipe, folder: Path) -> Iterator[Any]:
    """Yield the samples that may be tensors: JSON values, and NumPy arrays in base64."""
    for sample in recipe.samples:
        if sample.explain or sample.status != 200:
            continue
        if sample.input is None:
            yield sample.json_body
            continue
        file = folder / sample.input
        try:
            if file.suffix not in (".json", ".npy") or file.stat().st_size > _MAX_SAMPLE:
                continue
            content = file.read_bytes()
            yield json.loads(content) if file.suffix == ".json" else {"npy": base64.b64encode(content).decode()}
        except (OSError, ValueError):
            continue
