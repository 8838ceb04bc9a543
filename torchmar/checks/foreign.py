"""Models of other frameworks: recognise a file or folder, and name the way to serve it."""

from __future__ import annotations

from pathlib import Path

from torchmar.conversion import model_formats

_HANDLER = "or load it in a handler of your own, with its framework in the requirements"
_NAMED = "in a recipe with one of torchmar's handlers, and torchmar build will convert it"
_CONVERTED = f"name it as weights: {_NAMED} (pip install keras h5py), {_HANDLER}"
SAVED_MODEL = "a TensorFlow SavedModel"
SAVED_MODEL_REMEDY = (
    f"name its folder as weights: {_NAMED} (pip install openvino), {_HANDLER}, and the folder packed by --extra-files "
    "or files:"
)
_LITE_REMEDY = f"name it as weights: {_NAMED} (pip install openvino), {_HANDLER}"
_GRAPH_REMEDY = f"save it as a SavedModel (tf.saved_model.save) and {SAVED_MODEL_REMEDY}"
_SIGNATURES = (
    # Position of the signature, signature, kind of the file, remedy.
    (4, b"TFL3", "a TensorFlow Lite model", _LITE_REMEDY),
    (0, b"ftrt", "a TensorRT engine", f"serve the ONNX model that it was built from, {_HANDLER}"),
    (0, b"ptrt", "a TensorRT engine", f"serve the ONNX model that it was built from, {_HANDLER}"),
    (0, model_formats.HDF5, "an HDF5 file, as Keras saves models and weights", _CONVERTED),
)
_SUFFIXES = {
    ".pb": ("a TensorFlow graph", _GRAPH_REMEDY),
    ".engine": ("a TensorRT engine", f"serve the ONNX model that it was built from, {_HANDLER}"),
    ".plan": ("a TensorRT engine", f"serve the ONNX model that it was built from, {_HANDLER}"),
    ".trt": ("a TensorRT engine", f"serve the ONNX model that it was built from, {_HANDLER}"),
}
KERAS = ("a Keras model", _CONVERTED)


def by_content(head: bytes) -> tuple[str, str] | None:
    """Return the kind of a file by its first bytes, and the remedy; None: it is of no other framework."""
    return next(((kind, remedy) for at, mark, kind, remedy in _SIGNATURES if head[at:].startswith(mark)), None)


def by_name(name: str) -> tuple[str, str] | None:
    """Return the kind of a file by its name, and the remedy; None: the name shows no kind. The content is unknown."""
    if name.rpartition("/")[2] == "saved_model.pb":
        return f"the graph of {SAVED_MODEL}", SAVED_MODEL_REMEDY
    return next((kind for suffix, kind in _SUFFIXES.items() if name.lower().endswith(suffix)), None)


def folder(path: Path) -> tuple[str, str] | None:
    """Return the kind of a folder, and the remedy; None: it is no model of another framework."""
    if (path / "saved_model.pb").is_file() or (path / "saved_model.pbtxt").is_file():
        return SAVED_MODEL, SAVED_MODEL_REMEDY
    return None
