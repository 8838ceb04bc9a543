"""The common parts of recipes with weights: the text of the recipe, and labels beside the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchmar.errors import TorchmarError
from torchmar.recipe import FILE_NAME
from torchmar.scaffolding.templates import render

_FILES = ("labels.json", "index_to_name.json", "config.json")


@dataclass(frozen=True)
class Laid:
    """The files of an archive.

    Attributes:
        files: content by path in the folder of the archive.
        copied: further files to copy, by their paths in the folder.
        notes: steps that remain for the user.
    """

    files: dict[str, bytes]
    copied: dict[str, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def write(
    *,
    name: str,
    weights: Path,
    handler: str,
    sample: str,
    description: str,
    more: str = "",
    options: str = "",
) -> bytes:
    """Return a recipe.

    Args:
        name: name of the model.
        weights: file of the model.
        handler: a handler of torchmar, or a file.
        sample: path of the sample request.
        description: description of the archive.
        more: further keys of the recipe, in YAML.
        options: further keys of ``config``, in YAML, indented.
    """
    return render(
        "weights_archive.yaml",
        name=name,
        description=description,
        handler=handler,
        weights=weights.name,
        more=more,
        options=options,
        sample=sample,
    )


def labels(weights: Path, classes: int) -> tuple[str, list[str]]:
    """Return the key ``labels`` of a recipe, and notes about it.

    Labels are read from a file beside the weights: ``labels.json`` (a list), ``index_to_name.json`` or the
    ``config.json`` of transformers (``id2label``).

    Args:
        weights: file of the model.
        classes: number of the model's classes; 0: not known.

    Raises:
        TorchmarError: the file with labels is not JSON.
    """
    count = f"{classes} classes" if classes else "classes"
    missing = f"# labels: labels.json # a list of the {count}, in the order of the model's outputs\n"
    for file in (weights.parent / name for name in _FILES):
        if not file.is_file():
            continue
        try:
            names = _listed(json.loads(file.read_bytes()))
        except ValueError as error:
            raise TorchmarError(f"{file} is not JSON: {error}") from None
        if names is None:
            continue
        if classes and len(names) != classes:
            note = f"{file.name} beside the weights has {len(names)} labels, and the model {classes} classes: not used"
            return missing, [note]
        listed = ", ".join(json.dumps(label, ensure_ascii=False) for label in names)
        return f"labels: [{listed}] # of {file.name} beside the weights\n", []
    return missing, [f"{FILE_NAME}: list the labels of the {count}; until then answers have their numbers"]


def _listed(document: Any) -> list[str] | None:
    """Return labels in the order of the classes; None: the document has none."""
    if isinstance(document, Mapping):
        document = document.get("id2label", document)
        if not isinstance(document, Mapping) or {str(key) for key in document} != set(map(str, range(len(document)))):
            return None
        by_index = {int(key): value for key, value in document.items()}
        document = [by_index[index] for index in range(len(by_index))]
    if not isinstance(document, list) or not document or not all(isinstance(label, str | int) for label in document):
        return None
    return [str(label) for label in document]
