"""The conversion of a model when an archive is built: the choice of the converter, its process and its result."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchmar.conversion import cache, recipe_job
from torchmar.conversion.model_formats import is_keras, is_tensorflow
from torchmar.conversion.starting import ConversionError, run
from torchmar.errors import ArchiveError
from torchmar.handler_names import CARRIED_PACKAGE
from torchmar.package_versions import installed_version
from torchmar.recipe import Recipe


@dataclass(frozen=True)
class _Converter:
    """A converter for a kind of models.

    Args:
        source: kind of the source, in words that follow "is".
        module: module of this package, which runs in a separate process.
        needs: packages that the process needs.
        compares_with: packages that the process uses if they are installed.
        suffix: suffix of the result.
        note: note about packages on the server.
    """

    source: str
    module: str
    needs: tuple[str, ...]
    compares_with: tuple[str, ...]
    suffix: str
    note: str


_KERAS = _Converter(
    "a Keras model", "keras_program", ("keras", "h5py", "torch"), (), ".pt2", "the server needs none of Keras"
)
_TENSORFLOW = _Converter(
    "a TensorFlow model",
    "tensorflow_model",
    ("openvino",),
    ("tensorflow", "ai_edge_litert"),
    ".xml",
    "the server needs OpenVINO, too, and no TensorFlow",
)


@dataclass(frozen=True)
class Conversion:
    """A converted model.

    Attributes:
        source: file of the original model.
        file: converted file; `files` has all files.
        difference: largest difference between the answers of both, relative to the largest output, or to 1.
        random: number of random inputs in the comparison.
        samples: number of samples of the recipe in the comparison.
        notes: other differences.
    """

    source: Path
    file: Path
    difference: float
    random: int
    samples: int
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """The converted file, and for a model of OpenVINO the file with its weights."""
        binary = self.file.with_suffix(".bin")
        return (self.file, binary) if self.file.suffix == _TENSORFLOW.suffix and binary.is_file() else (self.file,)

    def show(self) -> str:
        """Return a line that describes the conversion."""
        count = f"{self.random} random inputs" + (f" and {self.samples} samples" * bool(self.samples))
        difference = f"largest difference {self.difference:.1e} on {count}"
        return f"{self.file.name} of {self.source.name}: {'; '.join([difference, *self.notes])}"


def convert(recipe: Recipe, folder: Path) -> Conversion | None:
    """Convert the weights of a recipe if they are a model of Keras or TensorFlow; return None for others.

    A handler that does not use ``torchmar_handlers`` loads weights itself, and gets the original file.

    Args:
        recipe: its weights, handler and samples.
        folder: folder to which the recipe's file names are relative.

    Raises:
        ArchiveError: the model cannot be converted, or a package for the conversion is not installed.
    """
    if recipe.weights is None or recipe.model_file:
        return None
    source = folder / recipe.weights
    converter = _KERAS if is_keras(source) else _TENSORFLOW if is_tensorflow(source) else None
    if converter is None:
        return None
    if not recipe_job.loads_programs(recipe, folder):
        if source.is_dir():
            raise ArchiveError(
                f"{source} is a folder, a SavedModel, and the handler {recipe.handler} has nothing of torchmar's",
                hint="for a handler that loads TensorFlow itself, name the folder under files: and not as weights:, "
                f"or use one of torchmar's ({CARRIED_PACKAGE}.tensors), for which it is converted",
            )
        return None
    return _converted(
        source,
        converter,
        recipe_job.job_of(recipe, folder),
    )


def convert_file(source: Path) -> Conversion:
    """Convert a model of Keras or TensorFlow without the requirements of a handler.

    Args:
        source: model for which `is_keras` or `is_tensorflow` is true.

    Raises:
        ArchiveError: for the reasons of `convert`.
    """
    converter = _KERAS if is_keras(source) else _TENSORFLOW
    return _converted(source, converter, {"channels_first": False, "drop_activations": [], "samples": []})


def _converted(source: Path, converter: _Converter, job: Mapping[str, Any]) -> Conversion:
    versions = _versions(source, converter)
    entry = cache.root() / cache.key(source, job, versions)
    name = source.resolve().name if source.is_dir() else source.stem
    file = f"{name}{converter.suffix}"
    record = cache.load(entry)
    if record is None:
        try:
            record = cache.store(entry, lambda folder, work: _child(source, folder / file, work, job, converter))
        except OSError as error:
            raise ArchiveError(f"{source} cannot be converted in {entry.parent}: {error.strerror or error}") from None
    notes = tuple(record["notes"])
    return Conversion(source, entry / file, record["difference"], record["random"], record["samples"], notes)


def _versions(source: Path, converter: _Converter) -> dict[str, str]:
    missing = [name for name in converter.needs if importlib.util.find_spec(name) is None]
    if missing:
        raise ArchiveError(
            f"{source} is {converter.source}, which is converted when the archive is built, and {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not installed",
            hint=f"pip install {' '.join(missing)}; {converter.note}",
        )
    packages = [*converter.needs, *(name for name in converter.compares_with if importlib.util.find_spec(name))]
    # Empty if tensorflow is installed by a package with another name, such as tensorflow-cpu.
    return {name: installed_version(name) for name in packages}


def _child(source: Path, target: Path, work: Path, job: Mapping[str, Any], converter: _Converter) -> dict[str, Any]:
    """Run the conversion in a separate process in an empty folder, so that it imports no file of the user."""
    document = {**job, "source": str(source.absolute()), "target": str(target)}
    environment = {
        "KERAS_BACKEND": "torch",
        "KERAS_HOME": str(work),  # so that all users have the same settings
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "",  # a program made on the CPU runs on every device
        "PYTHONHASHSEED": "0",
    }
    try:
        return run(converter.module, document, work, environment)
    except ConversionError as error:
        upgrade = f"pip install --upgrade {' '.join(converter.needs)}"
        message = f"{source} cannot be converted: {error.message}"
        raise ArchiveError(message, hint=upgrade if error.crashed else error.hint) from None
