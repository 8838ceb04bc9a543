"""The pickles in a file: plain, in torch's zips, in nested zips, in arrays of objects."""

from __future__ import annotations

import json
import os
import pickle
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO

from torchmar.checks.finding import Code, Finding
from torchmar.checks.pickles import BROKEN, COMPUTED, Budget, TooLarge, allowed, scan, shown

ZIP = b"PK\x03\x04"
"""The first bytes of a file that torch reads as a zip; torch reads no further either."""

PICKLED = (".pkl", ".pickle", ".joblib", ".bin", ".pt", ".pth", ".ckpt", ".npy", ".npz")
"""The suffixes of files that may contain pickles."""

_SURELY_PICKLED = (".pkl", ".pickle", ".joblib", ".debug_pkl")

_MAX_NAMES = 50  # rejected imports of one pickle that have a finding each

_MAX_DIRECTORY = 16 << 20  # bytes of a zip's directory

_MAX_CONFIG = 16 << 20
_MAX_ARRAY_HEADER = 1 << 20

_MAX_DEPTH = 3  # depth of zips in zips


def open_zip(stream: IO[bytes]) -> zipfile.ZipFile:
    """Open a zip that has the same directory for every reader.

    A comment, or bytes between the directory and its end record, may make two readers (Python's and torch's)
    find two directories in one file; torch writes neither.

    Raises:
        zipfile.BadZipFile: the zip is damaged or ambiguous, or its directory is larger than any that torch wrote.
    """
    size = stream.seek(0, os.SEEK_END)
    tail_size = min(size, 98)
    stream.seek(size - tail_size)
    tail = stream.read(tail_size)
    end = tail[-22:]
    if len(end) < 22 or not end.startswith(b"PK\x05\x06") or end[20:] != b"\0\0":
        raise zipfile.BadZipFile(
            "the zip's directory is not at its end; the file is cut off, or has something after it"
        )
    length, start = struct.unpack("<LL", end[12:20])
    offset = size - 22
    if tail[-42:-38] == b"PK\x06\x07":
        offset -= 76
        if struct.unpack("<Q", tail[-34:-26]) != (offset,) or not tail.startswith(b"PK\x06\x06"):
            raise zipfile.BadZipFile("the zip's directory is inconsistent")
        length, start = struct.unpack("<QQ", tail[40:56])
    if start + length != offset:
        raise zipfile.BadZipFile("the zip's directory is not at the place that its end record declares")
    if length > _MAX_DIRECTORY:
        raise zipfile.BadZipFile(f"the zip's directory has {length} bytes, more than any model needs")
    stream.seek(0)
    return zipfile.ZipFile(stream)


def open_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> IO[bytes]:
    """Open an entry of a zip. Raises one of BROKEN."""
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise zipfile.BadZipFile(f"{shown(entry.filename)} is compressed in a way that torch does not read")
    return archive.open(entry)


def may_hold_pickles(name: str) -> bool:
    """Return whether the name of a file is that of a file that may contain pickles."""
    return name.lower().endswith((*PICKLED, *_SURELY_PICKLED))


class Inspector:
    """Find the imports of the pickles in several files, within one budget.

    Args:
        rejected: code of an import that is not permitted.
        broken: code of a pickle that cannot be read to its end.
        remedy: remedy for both codes.
        budget: effort that may be spent; shared with other inspectors.
    """

    def __init__(self, rejected: Code, broken: Code, remedy: str, budget: Budget) -> None:
        self.rejected = rejected
        self.broken = broken
        self.remedy = remedy
        self.budget = budget
        self.beyond = ""  # first opcode that torch.load(weights_only=True) does not read

    def file(self, stream: IO[bytes], place: str, *, torchscript: bool = False, depth: int = 0) -> Iterator[Finding]:
        """Yield the problems of the pickles in a file: a pickle, a zip or an array of objects."""
        for finding in self._file(stream, place, torchscript, depth):
            if self.budget.findings <= 0:
                return
            self.budget.findings -= 1
            yield finding

    def _file(self, stream: IO[bytes], place: str, torchscript: bool, depth: int) -> Iterator[Finding]:
        try:
            # Opening a member has a cost even if it is empty.
            self.budget.spend(opcodes=100)
            head = stream.read(512)
            stream.seek(0)
            if head.startswith(ZIP):
                yield from self._zip(stream, place, torchscript, depth)
            elif is_tar(head):
                yield self._broken(place, "it is a tar file, as torch 0.1 saved; torch.load would run what it holds")
            elif head.startswith(b"\x93NUMPY"):
                if _seek_objects(stream):
                    yield from self._pickles(stream, place, torchscript, sure=True)
            else:
                header = len(head) > 1 and head[0] == 0x80 and head[1] <= pickle.HIGHEST_PROTOCOL
                sure = header or (bool(head) and place.lower().endswith(_SURELY_PICKLED))
                yield from self._pickles(stream, place, torchscript, sure=sure)
        except TooLarge as error:
            yield self._broken(place, str(error), too_large=True)
        except BROKEN as error:
            yield self._broken(place, f"it is damaged ({shown(str(error))})")

    def _zip(self, stream: IO[bytes], place: str, torchscript: bool, depth: int) -> Iterator[Finding]:
        if depth == _MAX_DEPTH:
            raise TooLarge("it holds zips in zips in zips")
        with open_zip(stream) as archive:
            entries = archive.infolist()
            suffixes = self._pickled_by_config(archive)
            for entry in entries:
                # An extra field may give an entry a second name; a reader may take either name.
                names = (entry.filename, entry.orig_filename)
                if any(may_hold_pickles(name) or name.endswith(suffixes) for name in names):
                    entry_place = f"{place}!{shown(entry.orig_filename)}"
                    # TorchScript's unpickler restores objects of these classes, in any file.
                    script = torchscript or PurePosixPath(entry.filename).name.startswith("custom_obj_")
                    yield from self._entry(archive, entry, entry_place, script, depth)

    def _entry(
        self, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, place: str, torchscript: bool, depth: int
    ) -> Iterator[Finding]:
        try:
            with open_entry(archive, entry) as stream:
                if stream.read(4) != ZIP:
                    stream.seek(0)
                    yield from self._file(stream, place, torchscript, depth)
                    return
                stream.seek(0)
                # A zip needs seeking in both directions, which an entry of a zip does not have.
                with tempfile.TemporaryFile() as copy:
                    while chunk := stream.read(1 << 20):
                        self.budget.spend(bytes=len(chunk))
                        copy.write(chunk)
                    copy.seek(0)
                    yield from self._file(copy, place, torchscript, depth + 1)
        except TooLarge as error:
            yield self._broken(place, str(error), too_large=True)
        except BROKEN as error:
            yield self._broken(place, f"it is damaged ({shown(str(error))})")

    def _pickled_by_config(self, archive: zipfile.ZipFile) -> tuple[str, ...]:
        """Return the ends of the names that torch.export unpickles although their suffixes do not show it."""
        parts = {entry.orig_filename.rpartition("/")[2] for entry in archive.infolist()}
        suffixes = [part for part in parts if part.startswith(("custom_obj_", "opaque_obj_"))]
        for entry in archive.infolist():
            if entry.orig_filename.endswith(("_weights_config.json", "_constants_config.json")):
                with open_entry(archive, entry) as stream:
                    text = stream.read(_MAX_CONFIG)
                self.budget.spend(bytes=len(text))
                try:
                    config = json.loads(text)
                except (ValueError, RecursionError):
                    raise ValueError(f"{shown(entry.orig_filename)} is not JSON") from None
                payloads = config.get("config") if isinstance(config, dict) else None
                for payload in payloads.values() if isinstance(payloads, dict) else ():
                    if isinstance(payload, dict) and payload.get("use_pickle"):
                        suffixes.append(str(payload.get("path_name")))
        return tuple(filter(None, suffixes))

    def _pickles(self, stream: IO[bytes], place: str, torchscript: bool, *, sure: bool) -> Iterator[Finding]:
        """Yield the findings about a sequence of pickles; unless ``sure``, only if the data look like pickles."""
        result = scan(stream, self.budget)
        names = [imported for imported in result.imports if not allowed(imported.name, torchscript)]
        damaged = result.problem and not result.too_large
        if not sure and damaged and not any(_plausible(imported.name) for imported in names):
            return
        self.beyond = self.beyond or result.beyond
        for imported in names[:_MAX_NAMES]:
            description = f"{imported.name} (byte {imported.offset})"
            cause = f"the pickle imports {description}, which torch.load(weights_only=True) refuses"
            yield Finding(self.rejected, place, cause, self.remedy)
        if len(names) > _MAX_NAMES:
            cause = (
                f"the pickle imports {len(names) - _MAX_NAMES} more names that torch.load(weights_only=True) refuses"
            )
            yield Finding(self.rejected, place, cause, self.remedy)
        if result.problem:
            yield self._broken(place, result.problem, too_large=result.too_large)

    def _broken(self, place: str, problem: str, *, too_large: bool = False) -> Finding:
        """Return the finding about a file that was not read to its end; a file that is only large may still load."""
        cause = f"what it imports is not known to the end: {problem}"
        return Finding(self.broken, place, cause, self.remedy, works=too_large)


def is_tar(head: bytes) -> bool:
    """Return whether the first 512 bytes of a file are the header of a tar."""
    try:
        tarfile.TarInfo.frombuf(head[:512], "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return False
    return True


def _seek_objects(stream: IO[bytes]) -> bool:
    """Seek to the pickle of a ``.npy`` file; False: the file contains plain numbers."""
    start = stream.read(10)
    (length,) = struct.unpack("<H", start[8:10])
    if start[6:7] != b"\x01":
        length += struct.unpack("<H", stream.read(2))[0] << 16
    if length > _MAX_ARRAY_HEADER:
        raise TooLarge("the header of the array is too large")
    header = stream.read(length)
    return b"O" in header or b"object" in header


def _plausible(name: str) -> bool:
    """Return whether Python could import a name, and it is not random bytes."""
    return name == COMPUTED or all(part.isidentifier() for part in name.split("."))
