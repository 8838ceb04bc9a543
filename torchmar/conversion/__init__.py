"""Models of Keras and TensorFlow, converted when an archive is built.

::

    model.keras, model.h5            --a process with Keras on torch-> model.pt2
    SavedModel folder, model.tflite  --a process with OpenVINO-------> model.xml and model.bin

The answers of both are compared. The server and its workers need neither Keras nor TensorFlow, and the process that
builds imports none of them, nor torch. An unchanged source is not converted again: results are in
``$XDG_CACHE_HOME/torchmar/converted`` by the digest of all that they depend on.
"""

from __future__ import annotations

import atexit
import base64
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import torchmar
from torchmar.conversion.starting import ConversionError, run
from torchmar.errors import ArchiveError
from torchmar.handler_names import CARRIED_PACKAGE
from torchmar.recipe import Recipe

KERAS_ENTRIES = {"config.json", "metadata.json", "model.weights.h5"}
HDF5 = b"\x89HDF\r\n\x1a\n"
TFLITE = b"TFL3"  # after the first four bytes
SAVED_MODEL = ("saved_model.pb", "saved_model.pbtxt")


@dataclass(frozen=True)
class _Converter:
    """A way of conversion.

    Args:
        source: what is converted, in words that follow "is".
        module: of this package, which a process of its own runs.
        needs: the packages of this process.
        compares_with: packages that it uses if they are there.
        suffix: of the result.
        note: what to know about packages on the server.
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

_OF_IMAGES = ("image_classifier", "image_segmenter", "object_detector")
_OF_SCORES = ("image_classifier", "text_classifier")
_IMPORT = re.compile(rb"^\s*(from|import)\s+" + CARRIED_PACKAGE.encode() + rb"\b", re.MULTILINE)
_MAX_SAMPLE = 16 << 20  # bytes of a sample that answers are compared on
_KEPT = 30 * 24 * 3600.0  # seconds that a conversion is kept after its last use
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Conversion:
    """A converted model.

    Attributes:
        source: the model's own file.
        file: the converted one; `files` are all.
        difference: the largest between the answers of both, relative to the largest output, or to 1.
        random: the number of random inputs that they were compared on.
        samples: the number of samples of the recipe that they were compared on.
        notes: what else differs.
    """

    source: Path
    file: Path
    difference: float
    random: int
    samples: int
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """The converted file, and the file beside it that has the weights of a model of OpenVINO."""
        beside = self.file.with_suffix(".bin")
        return (self.file, beside) if self.file.suffix == _TENSORFLOW.suffix and beside.is_file() else (self.file,)

    def show(self) -> str:
        """Return a line that describes it."""
        count = f"{self.random} random inputs" + (f" and {self.samples} samples" * bool(self.samples))
        difference = f"largest difference {self.difference:.1e} on {count}"
        return f"{self.file.name} of {self.source.name}: {'; '.join([difference, *self.notes])}"


def is_keras(path: Path) -> bool:
    """Return whether a file is a model of Keras, or weights of one, by its content."""
    try:
        with path.open("rb") as stream:
            head = stream.read(len(HDF5))
        if head == HDF5:
            return True
        if not head.startswith(b"PK\3\4"):
            return False
        with zipfile.ZipFile(path) as archive:
            return set(archive.namelist()) >= KERAS_ENTRIES
    except (OSError, zipfile.BadZipFile, ValueError):
        return False


def is_tensorflow(path: Path) -> bool:
    """Return whether a path is the folder of a SavedModel, or a TensorFlow Lite model by its content."""
    try:
        if path.is_dir():
            return any((path / name).is_file() for name in SAVED_MODEL)
        with path.open("rb") as stream:
            return stream.read(8)[4:] == TFLITE
    except OSError:
        return False


def convert(recipe: Recipe, folder: Path) -> Conversion | None:
    """Convert the weights of a recipe if they are a model of Keras or TensorFlow; return None for others.

    A handler that has nothing of ``torchmar_handlers`` loads what it likes, and gets the file itself.

    Args:
        recipe: its weights, handler and samples.
        folder: what the file names of the recipe are relative to.

    Raises:
        ArchiveError: the model cannot be converted, or what converts it is not installed.
    """
    if recipe.weights is None or recipe.model_file:
        return None
    source = folder / recipe.weights
    converter = _KERAS if is_keras(source) else _TENSORFLOW if is_tensorflow(source) else None
    if converter is None:
        return None
    if not _loads_programs(recipe, folder):
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
        {
            "channels_first": _handler(recipe) in _OF_IMAGES,
            "drop_activations": _dropped(recipe, folder),
            "samples": list(_samples(recipe, folder)),
        },
    )


def convert_file(source: Path) -> Conversion:
    """Convert a model of Keras or TensorFlow as it is, for no handler.

    Args:
        source: for which `is_keras` or `is_tensorflow` is true.

    Raises:
        ArchiveError: as `convert` does.
    """
    converter = _KERAS if is_keras(source) else _TENSORFLOW
    return _converted(source, converter, {"channels_first": False, "drop_activations": [], "samples": []})


def _converted(source: Path, converter: _Converter, job: Mapping[str, Any]) -> Conversion:
    versions = _versions(source, converter)
    entry = _cache() / _key(source, job, versions)
    name = source.resolve().name if source.is_dir() else source.stem
    target = entry / f"{name}{converter.suffix}"
    record = _cached(entry)
    if record is None:
        record = _run(source, target, job, converter)
    return Conversion(source, target, record["difference"], record["random"], record["samples"], tuple(record["notes"]))


def _versions(source: Path, converter: _Converter) -> dict[str, str]:
    missing = [name for name in converter.needs if importlib.util.find_spec(name) is None]
    if missing:
        raise ArchiveError(
            f"{source} is {converter.source}, which is converted when the archive is built, and {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not installed",
            hint=f"pip install {' '.join(missing)}; {converter.note}",
        )
    found = [*converter.needs, *(name for name in converter.compares_with if importlib.util.find_spec(name))]
    return {name: _version(name) for name in found}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except (
        importlib.metadata.PackageNotFoundError
    ):  # tensorflow is in a package of another name, such as tensorflow-cpu
        return ""


def _loads_programs(recipe: Recipe, folder: Path) -> bool:
    """Return whether the handler is one of torchmar's, or imports them."""
    module = recipe.handler.partition(":")[0]
    if not module.endswith(".py"):
        return bool(_handler(recipe))
    try:
        return re.search(_IMPORT, (folder / module).read_bytes()) is not None
    except OSError:
        return False


def _handler(recipe: Recipe) -> str:
    """Return the name of the handler if it is one of torchmar's; else an empty one."""
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
    """Yield the samples that may be tensors: JSON values, and arrays of NumPy in base64."""
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


def _cache() -> Path:
    """Return the folder of conversions; a temporary one if it cannot be written."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        root = cache.absolute() / "torchmar" / "converted"
        root.mkdir(parents=True, exist_ok=True)
        if os.access(root, os.W_OK):
            return root
    except (OSError, RuntimeError):
        pass
    folder = tempfile.mkdtemp(prefix="torchmar-converted-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _key(source: Path, job: Mapping[str, Any], versions: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    files = [source] if not source.is_dir() else sorted(path for path in source.rglob("*") if path.is_file())
    try:
        for file in files:
            digest.update(json.dumps([file.relative_to(source).as_posix(), file.stat().st_size]).encode())
            with file.open("rb") as stream:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
    except OSError as error:
        raise ArchiveError(f"{source} cannot be read: {error.strerror}") from None
    code = [file.read_bytes() for file in sorted(Path(__file__).parent.rglob("*.py"))]
    facts = [source.stem, torchmar.__version__, dict(job), dict(versions), sys.version_info[:2]]
    digest.update(b"".join(hashlib.sha256(one).digest() for one in [json.dumps(facts).encode(), *code]))
    return digest.hexdigest()[:32]


def _cached(entry: Path) -> dict[str, Any] | None:
    try:
        record = json.loads((entry / "record.json").read_bytes())
        if any((entry / name).stat().st_size != size for name, size in record["files"].items()):
            return None
        os.utime(entry)
        return dict(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _run(source: Path, target: Path, job: Mapping[str, Any], converter: _Converter) -> dict[str, Any]:
    entry = target.parent
    _prune(entry.parent)
    part = Path(tempfile.mkdtemp(prefix=".part-", dir=entry.parent))
    try:
        work = part / "work"
        work.mkdir()
        record = _child(source, part / target.name, work, job, converter)
        shutil.rmtree(work)
        record["files"] = {file.name: file.stat().st_size for file in part.iterdir()}
        (part / "record.json").write_text(json.dumps(record), encoding="utf-8")
        if entry.exists():  # damaged, or another process was faster
            shutil.rmtree(entry, ignore_errors=True)
        try:
            part.rename(entry)
        except OSError:
            if _cached(entry) is None:
                raise
        return record
    except OSError as error:
        raise ArchiveError(f"{source} cannot be converted in {entry.parent}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _child(source: Path, target: Path, work: Path, job: Mapping[str, Any], converter: _Converter) -> dict[str, Any]:
    """Run the conversion in a process of its own, in an empty folder, so that it imports no file of the user's."""
    document = {**job, "source": str(source.absolute()), "target": str(target)}
    environment = {
        "KERAS_BACKEND": "torch",
        "KERAS_HOME": str(work),  # the same settings for every user
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


def _prune(root: Path) -> None:
    """Remove conversions that were not used for a month, and what a killed process left."""
    for entry in root.iterdir():
        try:
            if time.time() - entry.stat().st_mtime > _KEPT:
                shutil.rmtree(entry, ignore_errors=True)
        except OSError:
            continue
