"""The format of a weights file, identified by its content."""

from __future__ import annotations

import json
import re
import zipfile
from enum import Enum
from pathlib import Path

from torchmar_handlers.weights.load_error import LoadError, summary


class Format(Enum):
    """A format of weights; the value is its name, in words that follow "is"."""

    TORCHSCRIPT = "a TorchScript archive"
    EXPORTED = "a torch.export program"
    AOTINDUCTOR = "an AOTInductor package"
    LIBRARY = "a compiled library"
    ONNX = "an ONNX model"
    OPENVINO = "an OpenVINO model"
    SAFETENSORS = "a safetensors file"
    SHARDED = "the index of a safetensors model in several files"
    SAVED = "a file of torch.save"
    LEGACY = "a file of torch.save from before torch 1.6"

    @property
    def needs_model_file(self) -> bool:
        """Whether the format contains only tensors, so that a model file must define the model."""
        return self in (Format.SAFETENSORS, Format.SHARDED, Format.SAVED, Format.LEGACY)


_ZIP = b"PK\3\4"

_LEGACY = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # torch.serialization.MAGIC_NUMBER, as pickle writes it

_LIBRARIES = (b"\x7fELF", b"\xcf\xfa\xed\xfe", b"MZ\x90\0")

# ModelProto begins with ir_version (field 1, a number); one of its other fields follows.
_ONNX_FIELDS = (0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42, 0x72)

# OpenVINO's representation is an XML document; most other XML documents are web pages.
_OPENVINO = re.compile(rb"\s*<\?xml[^>]*>\s*<net[\s>]")

_DOWNLOAD = "download the weights again: what was saved is a login or an error page"

_CONVERT = "build the archive by torchmar build from a recipe that names the file as weights, which converts it"

_STRANGERS = (
    (b"version https://git-lfs", "a git-lfs pointer, not the weights: run `git lfs pull` and build the archive again"),
    (b"<!doctype html", f"a web page: {_DOWNLOAD}"),
    (b"<html", f"a web page: {_DOWNLOAD}"),
    (b"<?xml", f"an XML document: {_DOWNLOAD}"),
    (b"\x1f\x8b", "a gzip file: unpack it and name what is inside"),
    (b"\x89hdf\r\n\x1a\n", f"an HDF5 file, as Keras saves models: {_CONVERT}"),
    (b"gguf", "a GGUF file: convert it to safetensors or a torch format"),
)

KNOWN = (
    "TorchScript, torch.export and AOTInductor (.pt2), ONNX, OpenVINO (.xml with .bin), and with a model file "
    "safetensors or the state dict that torch.save writes"
)


def identify(path: Path) -> Format:
    """Return the format of a file by its content, regardless of its suffix.

    Raises:
        LoadError: there is no such file, it is empty or cut off, or its format cannot be loaded.
    """
    if not path.is_file():
        raise LoadError(f"{path.name}: the archive has no such file: build it again with these weights in it")
    with path.open("rb") as stream:
        head = stream.read(512)
    if not head:
        raise LoadError(f"{path.name} is empty: build the archive again from a whole file")
    if head[4:8] == b"TFL3":
        raise LoadError(f"{path.name} is a TensorFlow Lite model: {_CONVERT}")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if _OPENVINO.match(text):
        return Format.OPENVINO
    for signature, description in _STRANGERS:
        if text.startswith(signature):
            raise LoadError(f"{path.name} is {description}")
    if head.startswith(_ZIP):
        return _zip(path)
    if head.startswith(_LIBRARIES):
        return Format.LIBRARY
    if head[:1] == b"\x80" and head[2:].startswith(_LEGACY):
        return Format.LEGACY
    if head[8:9] == b"{":
        return _safetensors(path, int.from_bytes(head[:8], "little"))
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        raise LoadError(
            f"{path.name} is a pickle that torch.save did not write: save the weights with "
            "torch.save(model.state_dict(), ...)"
        )
    if text.startswith(b"{"):
        return _index(path)
    if len(head) > 2 and head[0] == 0x08 and head[2] in _ONNX_FIELDS:
        return Format.ONNX
    raise LoadError(f"{path.name} is in no format that can be loaded; those are {KNOWN}")


def _zip(path: Path) -> Format:
    try:
        with zipfile.ZipFile(path) as archive:
            listed = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise LoadError(
            f"{path.name} is truncated or damaged ({summary(error)}): "
            "copy or download it again and build the archive anew"
        ) from None
    # Torch puts all entries into one folder, of any name; its older versions did not always.
    names = {*listed, *(name.partition("/")[2] for name in listed)}
    if any(name.startswith("data/aotinductor/") for name in names):
        return Format.AOTINDUCTOR
    if "archive_format" in names or "serialized_exported_program.json" in names:
        return Format.EXPORTED
    if "constants.pkl" in names:
        return Format.TORCHSCRIPT
    if "data.pkl" in names:
        return Format.SAVED
    if {"config.json", "model.weights.h5"} <= names:
        raise LoadError(f"{path.name} is a Keras model: {_CONVERT}")
    raise LoadError(f"{path.name} is a zip file that torch did not write; weights are {KNOWN}")


def _safetensors(path: Path, length: int) -> Format:
    """Compare the size in the header of a safetensors file with the size of the file."""
    size = path.stat().st_size
    try:
        with path.open("rb") as stream:
            stream.seek(8)
            header = json.loads(stream.read(length)) if 8 + length <= size else {}
        ends = [int(tensor["data_offsets"][1]) for name, tensor in header.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise LoadError(f"{path.name} looks like safetensors, and its header is damaged: copy it again") from None
    expected = 8 + length + max(ends, default=0)
    if size < expected:
        raise LoadError(
            f"{path.name} is a truncated safetensors file ({size} of {expected} bytes): "
            "copy or download it again and build the archive anew"
        )
    return Format.SAFETENSORS


def _index(path: Path) -> Format:
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, dict) and isinstance(document.get("weight_map"), dict):
        return Format.SHARDED
    raise LoadError(f"{path.name} is a JSON file, and no index of safetensors; weights are {KNOWN}")
