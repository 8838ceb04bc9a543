"""The format of a weights file, identified by its content."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import PurePosixPath
from typing import IO

from torchmar.checks import foreign
from torchmar.checks.pickled_files import ZIP, is_tar, open_entry, open_zip
from torchmar.checks.pickles import BROKEN, Budget, scan, shown
from torchmar.conversion import model_formats

_DOWNLOAD = "download it again: what was saved is a login or an error page"

_UNPACK = "unpack it and name what is inside"

_SIGNATURES = (
    (b"version https://git-lfs", "a git-lfs pointer file", "run `git lfs pull`, then build the archive again"),
    (b"<!doctype html", "a web page", _DOWNLOAD),
    (b"<html", "a web page", _DOWNLOAD),
    (b"<?xml", "an XML document", _DOWNLOAD),
    (b"\x1f\x8b", "a gzip file", _UNPACK),
    (b"BZh", "a bzip2 file", _UNPACK),
    (b"\xfd7zXZ\0", "an xz file", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd file", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z file", _UNPACK),
    (b"GGUF", "a GGUF file", ""),
    (b"\x93NUMPY", "a NumPy array", ""),
)

_LIBRARIES = (
    b"\x7fELF",
    b"\xfe\xed\xfa\xce",
    b"\xfe\xed\xfa\xcf",
    b"\xce\xfa\xed\xfe",
    b"\xcf\xfa\xed\xfe",
    b"MZ\x90\0",
)

EMPTY = "it is empty"
"""The damage of an empty file."""

_FILE_VERSION = 10

_EXPORT_SCHEMA = 8

_MAX_HEADER = 100_000_000  # bytes of the header of safetensors, the limit of the format itself

_MAX_PARSED = 16 << 20  # bytes of a header; parsing takes many times that in memory

_MAX_FIELDS = 200_000  # fields of an ONNX model

# OpenVINO's representation is an XML document; most other XML documents in place of weights are error pages.
_OPENVINO = re.compile(rb"<\?xml[^>]*>\s*<net[\s>]")

_CHUNK = 1 << 20


class Format(Enum):
    """A format of weights; the value is its name, in words that follow "is"."""

    TORCHSCRIPT = "a TorchScript archive"
    SAVED = "what torch.save writes"
    LEGACY = "what torch.save wrote before torch 1.6"
    EXPORTED = "a torch.export program"
    AOTINDUCTOR = "an AOTInductor package"
    PACKAGE = "a torch.package archive"
    PICKLE = "a pickle that torch.save did not write"
    ONNX = "an ONNX model"
    OPENVINO = "an OpenVINO model"
    SAFETENSORS = "a safetensors file"
    LIBRARY = "a compiled library"
    ZIP = "a zip file that torch did not write"
    EMPTY = "empty"
    OTHER = "in no format that torchmar knows"


@dataclass(frozen=True)
class Weights:
    """A weights file: its format, and the details that the checks need.

    Args:
        format: the format, identified by the content.
        detail: a more precise name of the format; empty: there is none.
        torch_version: version of torch that wrote the file, if the file records it.
        too_new: the part of the file that is newer than torchmar knows, such as ``file format version 12``; empty if
            nothing is.
        damage: the reason why the file cannot be read; empty: it seems complete.
        external: files with the tensors of an ONNX or OpenVINO model, relative to the model's folder.
        remedy: the remedy for a file of the format OTHER; empty: none is known.
    """

    format: Format
    detail: str = ""
    torch_version: str | None = None
    too_new: str = ""
    damage: str = ""
    external: tuple[str, ...] = ()
    remedy: str = ""

    @property
    def description(self) -> str:
        """The kind of the file, in words that follow "is"."""
        return self.detail or self.format.value


def identify(stream: IO[bytes], name: str) -> Weights:
    """Return the format of a file and its details, by its content.

    Args:
        stream: the file, seekable.
        name: name of the file, which decides if the content is too short.
    """
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    head = stream.read(512)
    stream.seek(0)
    if not head:
        return Weights(Format.EMPTY, damage=EMPTY)
    if head.startswith(ZIP):
        return _zip(stream)
    if head.startswith(_LIBRARIES):
        return Weights(Format.LIBRARY)
    if other := foreign.by_content(head):
        return Weights(Format.OTHER, other[0], remedy=other[1])
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if _OPENVINO.match(text):
        return _openvino(stream, name)
    for signature, description, remedy in _SIGNATURES:
        if head.startswith(signature) or text.startswith(signature):
            return Weights(Format.OTHER, description, remedy=remedy)
    if is_tar(head):
        return Weights(Format.OTHER, "a tar file", remedy=_UNPACK)
    if name.endswith(".safetensors") or head[8:9] == b"{":
        weights = _safetensors(stream, size)
        if weights:
            return weights
    result = scan(stream, Budget(opcodes=100, bytes=_CHUNK))
    stream.seek(0)
    if result.legacy:
        return Weights(Format.LEGACY)
    if not result.problem or (head[0] == 0x80 and head[1:2] <= b"\x05"):
        return Weights(Format.PICKLE)
    if weights := _onnx(stream, size, name):
        return weights
    foreign_kind = foreign.by_name(name) or ("", "")
    return Weights(Format.OTHER, foreign_kind[0], remedy=foreign_kind[1])


def _zip(stream: IO[bytes]) -> Weights:
    try:
        with open_zip(stream) as archive:
            entries = {}
            for entry in archive.infolist():
                if entry.header_offset + entry.compress_size > archive.start_dir:
                    raise zipfile.BadZipFile(f"{shown(entry.filename)} reaches beyond its end")
                # torch stores all entries in one folder; the name of the folder does not matter.
                entries[entry.filename.partition("/")[2]] = entry
            return _zip_of(archive, entries)
    except BROKEN as error:
        return Weights(Format.ZIP, "a damaged zip file", damage=shown(str(error)))


def _zip_of(archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo]) -> Weights:
    def number(name: str) -> int:
        with open_entry(archive, entries[name]) as stream:
            text = stream.read(20).strip()
        return int(text) if text.isdigit() else 0

    def has(*folders: str) -> bool:
        return any(name.startswith(folders) for name in entries)

    versions = [number(name) for name in ("version", ".data/version") if name in entries]
    too_new = next((f"file format version {version}" for version in versions if version > _FILE_VERSION), "")
    program = next(
        (
            entry
            for name, entry in entries.items()
            if name == "serialized_exported_program.json" or re.fullmatch(r"models/[^/]+\.json", name)
        ),
        None,
    )
    if has("data/aotinductor/"):
        return Weights(Format.AOTINDUCTOR, too_new=too_new)
    if program or "archive_format" in entries:
        return _exported(archive, program, too_new)
    if ".data/extern_modules" in entries:
        return Weights(Format.PACKAGE, too_new=too_new)
    if "constants.pkl" in entries or (has("code/") and "data.pkl" not in entries):
        return Weights(Format.TORCHSCRIPT, too_new=too_new)
    if "data.pkl" in entries:
        return Weights(Format.SAVED, too_new=too_new)
    if {entry.filename for entry in archive.infolist()} >= model_formats.KERAS_ENTRIES:
        return Weights(Format.OTHER, foreign.KERAS[0], remedy=foreign.KERAS[1])
    return Weights(Format.ZIP)


def _exported(archive: zipfile.ZipFile, program: zipfile.ZipInfo | None, too_new: str) -> Weights:
    """Read the versions at the end of an exported program, without the graph before them, which may be huge."""
    version, schema, rest = None, 0, b""
    if program:
        with open_entry(archive, program) as stream:
            for _ in range(_MAX_PARSED // _CHUNK):
                text = rest + stream.read(_CHUNK)
                if len(text) == len(rest):
                    break
                if versions := re.findall(rb'"torch_version": ?"([\w.+-]{1,64})"', text):
                    version = versions[-1].decode()
                if versions := re.findall(rb'"schema_version": ?\{"major": ?(\d{1,9})', text):
                    schema = int(versions[-1])
                rest = text[-200:]
    if schema > _EXPORT_SCHEMA:
        too_new = f"export schema version {schema}"
    return Weights(Format.EXPORTED, torch_version=version, too_new=too_new)


def _safetensors(stream: IO[bytes], size: int) -> Weights | None:
    """Read the header of a safetensors file; None: the file is of another format."""
    weights = Weights(Format.SAFETENSORS)
    start = stream.read(9)
    stream.seek(0)
    length = int.from_bytes(start[:8], "little")
    if start[8:] != b"{" or length > _MAX_HEADER:
        return None
    if 8 + length > size:
        return replace(weights, damage=f"its header has {length} bytes, and the file {size}")
    if length > _MAX_PARSED:
        return weights
    stream.seek(8)
    text = stream.read(length)
    stream.seek(0)
    try:
        header = json.loads(text)
        ends = [
            int(tensor["data_offsets"][1])
            for name, tensor in header.items()
            if name != "__metadata__" and 0 <= int(tensor["data_offsets"][0]) <= int(tensor["data_offsets"][1])
        ]
        tensors = len(header) - ("__metadata__" in header)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, OverflowError):
        return replace(weights, damage="its header is not that of safetensors")
    if len(ends) != tensors:
        return replace(weights, damage="a tensor in it ends before it starts")
    expected = 8 + length + max(ends, default=0)
    if expected != size:
        return replace(weights, damage=f"its tensors end at byte {expected}, and the file at {size}")
    return weights


class _Protobuf:
    """Read the fields of the messages in a file; their number is bounded."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._left = _MAX_FIELDS

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield the number, start and end of every field; a numeric field has no content. Raises ValueError."""
        while start < end and self._left:
            self._left -= 1
            self._stream.seek(start)
            head = self._stream.read(min(20, end - start))
            tag, consumed = _varint(head, 0)
            length = 0
            if tag & 7 == 0:
                _, consumed = _varint(head, consumed)
            elif tag & 7 == 2:
                length, consumed = _varint(head, consumed)
            elif tag & 7 in (1, 5):
                consumed += 8 if tag & 7 == 1 else 4
            else:
                raise ValueError("it has a field of no known type")
            if tag < 8:
                raise ValueError("it has a field without a number")
            start += consumed
            yield tag >> 3, start, start + length
            start += length

    def text(self, start: int, end: int) -> str:
        """Return the content of a field as text; a name longer than any path is truncated."""
        self._stream.seek(start)
        return self._stream.read(min(end - start, 4096)).decode("utf-8", "replace")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number at ``at`` and the position of its end."""
    value = 0
    for shift, byte in enumerate(data[at : at + 10]):
        value |= (byte & 127) << 7 * shift
        if byte < 128:
            return value, at + shift + 1
    raise ValueError("a number in it does not end")


def _openvino(stream: IO[bytes], name: str) -> Weights:
    """Read a model of OpenVINO: whether it is complete, and whether it has tensors, which are in a separate file."""
    rest, has_tensors = b"", False
    while chunk := stream.read(_CHUNK):
        text = rest + chunk
        has_tensors = has_tensors or b' offset="' in text
        rest = text[-64:]
    stream.seek(0)
    external = (f"{PurePosixPath(name).stem}.bin",) if has_tensors else ()
    damage = "" if rest.rstrip().endswith(b"</net>") else "it does not end with </net>"
    return Weights(Format.OPENVINO, damage=damage, external=external)


def _onnx(stream: IO[bytes], size: int, name: str) -> Weights | None:
    """Read an ONNX model, only its outermost fields and its tensors; None: the file is of another format.

    The numbers are those of onnx.proto: ModelProto has ir_version 1, producer_name 2, producer_version 3 and
    graph 7, and nothing beyond 25. It begins with ir_version in every file that an exporter wrote.
    """
    message = _Protobuf(stream)
    fields: dict[int, str] = {}
    external: list[str] = []
    damage = ""
    try:
        for number, start, end in message.fields(0, size):
            if number > 25 or not (fields or number == 1):
                return None
            fields[number] = message.text(start, end) if number in (2, 3) else ""
            if end > size:
                damage = f"a part of it ends at byte {end}, and the file at {size}"
            elif number == 7:
                external += _external(message, start, end)
    except ValueError as error:
        damage = str(error)
    if not fields or (7 not in fields and not name.endswith(".onnx")):
        return None
    version = fields.get(3) if fields.get(2) == "pytorch" else None
    return Weights(Format.ONNX, torch_version=version, damage=damage, external=tuple(dict.fromkeys(external)))


def _external(message: _Protobuf, start: int, end: int) -> Iterator[str]:
    """Yield the files that contain the tensors of a graph.

    GraphProto has initializer 5, TensorProto external_data 13, and external_data has key 1 and value 2. Tensors that
    are attributes of nodes are not examined.
    """
    for number, *tensor in message.fields(start, end):
        if number == 5:
            for part, *entry in message.fields(*tensor):
                if part == 13:
                    pair = {side: message.text(*place) for side, *place in message.fields(*entry)}
                    if pair.get(1) == "location" and pair.get(2):
                        yield pair[2]
