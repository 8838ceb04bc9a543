"""The formats of models that are converted, recognised by their content."""

from __future__ import annotations

import zipfile
from pathlib import Path

KERAS_ENTRIES = {"config.json", "metadata.json", "model.weights.h5"}
HDF5 = b"\x89HDF\r\n\x1a\n"
TFLITE = b"TFL3"  # identifier after the first four bytes
SAVED_MODEL = ("saved_model.pb", "saved_model.pbtxt")


def is_keras(path: Path) -> bool:
    """Return whether a file is a model of Keras, or its weights, by the content."""
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
    """Return whether a path is the folder of a SavedModel, or a TensorFlow Lite model, by the content."""
    try:
        if path.is_dir():
            return any((path / name).is_file() for name in SAVED_MODEL)
        with path.open("rb") as stream:
            return stream.read(8)[4:] == TFLITE
    except OSError:
        return False
