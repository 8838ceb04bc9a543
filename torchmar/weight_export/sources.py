"""The model to export: weights and model file from a path, an archive or a recipe."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchmar import manifest, recipe
from torchmar.archive import Archive, collect_members, pack_folder
from torchmar.conversion import converting, model_formats
from torchmar.errors import TorchmarError

_OPTIONS = ("dtype", "channels_last")  # options of the handler that change the exported weights


@dataclass(frozen=True)
class Source:
    """A model to export.

    Attributes:
        shown: name of the model in messages.
        folder: folder of its model file, or of the extracted archive.
        weights: file of the weights, absolute or relative to the folder; None: an archive without weights.
        model_file: Python file with the model's class, in the folder.
        options: options of the handler that change the weights.
        archive: archive of the model; None: the weights are not in an archive.
        converted: result of the conversion of a Keras or TensorFlow model; None: it is no such model.
    """

    shown: str
    folder: Path
    weights: str
    model_file: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    archive: Path | None = None
    converted: converting.Conversion | None = None


def source_of(model: Path, model_file: Path | None, scratch: Path) -> Source:
    """Return the model at a path.

    Args:
        model: weights, an archive, a recipe or its folder, or the folder of a SavedModel.
        model_file: the Python file with the model's class, for weights without code.
        scratch: empty folder for extracted files.

    Raises:
        TorchmarError: there is no model, or no model file.
    """
    if not model.exists():
        raise TorchmarError(f"there is no {model}", hint="name weights, an archive (.mar) or a recipe")
    archive = None
    if recipe.is_recipe(model):
        content, folder = recipe.read(model)
        archive = pack_folder(
            collect_members(content, folder, converting.convert(content, folder)), scratch / "packed"
        ).path
    elif _is_archive(model):
        archive = model
    if archive is not None:
        if model_file is not None:
            raise TorchmarError(f"{model} has its own model file", hint="leave --model-file out")
        return _of_archive(model, archive, scratch)
    return _of_weights(model, model_file)


def _of_weights(model: Path, model_file: Path | None) -> Source:
    if model_formats.is_keras(model) or model_formats.is_tensorflow(model):
        if model_file is not None:
            raise TorchmarError(f"{model} has its code in it", hint="leave --model-file out")
        converted = converting.convert_file(model)
        return Source(str(model), converted.file.parent, converted.file.name, converted=converted)
    if model.is_dir():
        raise TorchmarError(
            f"{model} is a folder with neither a recipe nor a SavedModel",
            hint="name the file of the weights in it, an archive (.mar) or a recipe",
        )
    if model_file is None:
        return Source(str(model), model.absolute().parent, model.name)
    if not model_file.is_file():
        raise TorchmarError(
            f"there is no model file {model_file}", hint="--model-file names a Python file with a class"
        )
    if model_file.suffix != ".py":
        raise TorchmarError(f"{model_file} is no Python file", hint="--model-file names a Python file with a class")
    return Source(str(model), model_file.absolute().parent, str(model.absolute()), model_file.name)


def _of_archive(shown: Path, path: Path, scratch: Path) -> Source:
    folder = scratch / "model"
    with Archive(path) as archive:
        described, config = archive.manifest.model, archive.config
        if not described.serialized_file:
            raise TorchmarError(f"{shown} has no weights to export")
        archive.extract(folder)
    section = config.get("handler")
    options = {name: section[name] for name in _OPTIONS if name in section} if isinstance(section, Mapping) else {}
    return Source(str(shown), folder, described.serialized_file, described.model_file, options, path)


def _is_archive(path: Path) -> bool:
    """Return whether a file is a model archive, by its content."""
    if path.is_dir():
        return (path / manifest.PATH).is_file()
    if path.suffix == ".mar" or path.name.endswith((".tar.gz", ".tgz")):
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            return manifest.PATH in archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return False
