"""The forms of an archive that TorchServe reads: a zip, a ``.tar.gz``, a folder.

Each lists what it declares, hostile entries included, and opens those that are files. What
a form finds wrong with itself is in its ``flaws``; nothing here trusts a number that a file
says about itself.
"""

from __future__ import annotations

import gzip
import io
import itertools
import os
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, Protocol

from torchmar.archive.layout import MAX_MEMBERS, MAX_RATIO, RATIO_FROM, Entry, EntryKind, Flaw, Kind
from torchmar.errors import ArchiveError

DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    struct.error,
    OSError,
)
"""What reading a member raises when its bytes are not what the archive says."""

_MAX_DIRECTORY = 64 << 20  # bytes of a zip's directory: 100,000 members with long names
_CHUNK = 1 << 20


class Window(io.RawIOBase):
    """A part of a file, as if it were a file of its own."""

    def __init__(self, path: Path, offset: int, size: int) -> None:
        self._stream = open(path, "rb", buffering=0)
        self._offset, self._size, self._position = offset, size, 0

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: max(0, self._size - self._position)]
        self._stream.seek(self._offset + self._position)
        count = self._stream.readinto(view) or 0
        self._position += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError("a position before the start")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._stream.close()
        super().close()


class Form(Protocol):
    """An opened archive of any form."""

    name: str
    entries: list[Entry]
    flaws: list[Flaw]
    refused: list[Flaw]
    """What TorchServe's frontend refuses although other readers do not."""

    def open(self, entry: Entry) -> IO[bytes]:
        """Open a file for reading."""
        ...

    def close(self) -> None:
        """Let go of files and temporary folders."""
        ...


def open_form(path: Path) -> Form:
    """Open an archive by what it is, not by what it is called.

    Raises:
        ArchiveError: there is nothing, or it cannot be read, or it is none of the forms.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return FolderForm(archive_folder(path))
        if not stat.S_ISREG(mode):  # a pipe: to open it would wait for whoever writes to it
            raise ArchiveError(f"{path} is not an archive: it is neither a file nor a folder")
        with path.open("rb") as stream:
            start = stream.read(4)
        return TarForm(path) if start[:2] == b"\x1f\x8b" else ZipForm(path)
    except FileNotFoundError:
        raise ArchiveError(f"{path} does not exist") from None
    except OSError as error:
        raise ArchiveError(f"{path} cannot be read: {error.strerror or error}") from None


def archive_folder(path: Path) -> Path:
    """Return the folder with an archive's ``MAR-INF``: the only folder in ``path``, if only that has one, or ``path``.

    A packed archive unpacks to such an outer folder; TorchServe loads both.
    """
    if not (path / "MAR-INF").is_dir():
        content = list(path.iterdir())
        if len(content) == 1 and (content[0] / "MAR-INF").is_dir():
            return content[0]
    return path


class ZipForm:
    """A ``.mar``: a zip whose directory and local headers agree."""

    name = "zip"

    def __init__(self, path: Path) -> None:
        self.entries: list[Entry] = []
        self.flaws: list[Flaw] = []
        self.refused: list[Flaw] = []
        size = path.stat().st_size
        if why := _directory_too_large(path, size):
            raise ArchiveError(f"{path} is not an archive: {why}")
        try:
            self._zip = zipfile.ZipFile(path)
        except DAMAGED as error:
            raise ArchiveError(f"{path} is not an archive: {error}", hint="a .mar is a zip file") from None
        with path.open("rb") as stream:
            if stream.read(4) not in (b"PK\x03\x04", b"PK\x05\x06"):
                what = "the file does not begin with a member, where TorchServe's frontend begins to read"
                self.refused.append(Flaw(Kind.INCONSISTENT, "", what))
            ends = []
            for info in self._zip.infolist():
                entry, start, end = self._read(stream, info)
                self.entries.append(entry)
                ends.append((start, end, entry.name))
        ends.sort()
        for (_, end, name), (start, _, other) in itertools.pairwise(ends):
            if end > start:
                self._inconsistent(other, f"shares bytes with {name!r}")
        if ends and ends[-1][1] > self._zip.start_dir:
            self._inconsistent(ends[-1][2], "reaches into the directory")
        self._infos = {_plain(info.orig_filename): info for info in self._zip.infolist()}

    def open(self, entry: Entry) -> IO[bytes]:
        """Open a member."""
        return self._zip.open(self._infos[entry.name])

    def close(self) -> None:
        """Close the file."""
        self._zip.close()

    def _read(self, stream: IO[bytes], info: zipfile.ZipInfo) -> tuple[Entry, int, int]:
        """Compare a member's local header with its directory entry; return it and where it lies in the file."""
        # The name with everything that zipfile cuts off at a NUL: a reader in C would see another.
        name = info.orig_filename
        mode = info.external_attr >> 16 if info.create_system == 3 else 0
        stream.seek(info.header_offset)
        header = stream.read(30)
        start = end = info.header_offset
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            self._inconsistent(name, "has no local header")
        else:
            flags, method, crc, packed, size, name_length, extra_length = struct.unpack("<6xHH4xIIIHH", header)
            raw = stream.read(name_length)
            start = info.header_offset + 30 + name_length + extra_length
            end = start + info.compress_size
            if raw.decode("utf-8" if flags & 0x800 else "cp437", "replace") != name:
                self._inconsistent(name, "is called otherwise in its local header")
            # With bit 3 the local header leaves these for later; with Zip64 they stand in its extra field.
            has_sizes = not flags & 8 and 0xFFFFFFFF not in (packed, size)
            if has_sizes and (crc, packed, size) != (info.CRC, info.compress_size, info.file_size):
                self._inconsistent(name, "has another size or checksum in its local header")
            if flags & 1 or info.flag_bits & 1:
                self._inconsistent(name, "is encrypted; TorchServe has no password")
            if method != info.compress_type or method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                self._inconsistent(name, "is compressed in a way that TorchServe does not read")
            if flags & 8 and method == zipfile.ZIP_STORED:
                what = f"the member {name!r} is stored, and its size stands behind it, which Java does not read"
                self.refused.append(Flaw(Kind.INCONSISTENT, name, what))
        stored = info.compress_type == zipfile.ZIP_STORED
        if stored and info.compress_size != info.file_size:
            self._inconsistent(name, "is stored, and yet of another size than its content")
        entry = Entry(
            _plain(name),
            info.file_size,
            "folder" if name.endswith("/") else _kind(mode) if mode else "file",
            packed=None if stored else info.compress_size,
            offset=start if stored else None,
            crc=info.CRC,
        )
        return entry, info.header_offset, end

    def _inconsistent(self, name: str, what: str) -> None:
        self.flaws.append(Flaw(Kind.INCONSISTENT, name, f"the member {name!r} {what}"))


class FolderForm:
    """An archive as a folder (``no-archive``).

    Links are followed, as TorchServe's workers follow them: DVC and the caches of model hubs link to files elsewhere,
    Kubernetes mounts files as links into a folder ``..data``. A link that leads nowhere stays a link.
    """

    name = "folder"

    def __init__(self, path: Path) -> None:
        self.entries: list[Entry] = []
        self.flaws: list[Flaw] = []
        self.refused: list[Flaw] = []
        self._path = path
        if not (path / "MAR-INF").is_dir():
            raise ArchiveError(
                f"{path} is a folder, not an archive",
                hint="an archive has a folder MAR-INF, the folder of a recipe an archive.yaml",
            )
        for folder, names, files in os.walk(path, followlinks=True):
            # Of a mount's revisions, ``..data`` and others, the files are linked beside them.
            names[:] = sorted(name for name in names if not name.startswith("..") and not _is_above(Path(folder), name))
            for name in sorted(files):
                file = Path(folder, name)
                try:
                    status = file.stat()
                except OSError:  # a link to nothing, or to itself
                    status = file.lstat()
                inside = file.relative_to(path).as_posix()
                self.entries.append(Entry(inside, status.st_size, _kind(status.st_mode)))
                if len(self.entries) > MAX_MEMBERS:
                    return  # more than any archive has: links that lead in circles

    def open(self, entry: Entry) -> IO[bytes]:
        """Open a file."""
        return open(self._path / entry.name, "rb")

    def close(self) -> None:
        """Do nothing: there is nothing to let go of."""


class TarForm:
    """A ``.tar.gz``, unpacked to a temporary folder: a gzip stream cannot be read but from its start.

    torch-model-archiver puts everything below a folder with the model's name, and TorchServe cuts off the
    outermost folder of every name, be it ``.``, and whether or not it is the same for all; that is left out here.
    """

    def __init__(self, path: Path) -> None:
        self.entries: list[Entry] = []
        self.flaws: list[Flaw] = []
        self.refused: list[Flaw] = []
        self.name = "tar.gz"
        self._folder = Path(tempfile.mkdtemp(prefix="torchmar-tar-"))
        self._files: dict[str, Path] = {}
        try:
            self._unpack(path)
        except (tarfile.TarError, *DAMAGED) as error:
            self.close()
            if isinstance(error, OSError) and error.errno:
                raise
            raise ArchiveError(f"{path} is not an archive: {error or 'it is truncated'}") from None
        except BaseException:
            self.close()
            raise

    def _unpack(self, path: Path) -> None:
        found: list[tuple[str, tarfile.TarInfo, Path]] = []
        limit = max(RATIO_FROM, MAX_RATIO * path.stat().st_size)
        limit = min(limit, shutil.disk_usage(self._folder).free)
        total = 0
        with gzip.open(path) as unzipped, tarfile.open(fileobj=unzipped, mode="r|") as archive:
            for number, info in enumerate(archive):
                total += info.size + 512
                if total > limit:
                    self.flaws.append(Flaw(Kind.BOMB, info.name, f"it would grow to more than {limit} bytes"))
                    break
                file = self._folder / str(number)  # the name that the archive gives is not trusted with the disk
                if info.isfile() and (content := archive.extractfile(info)):
                    with file.open("wb") as stream:
                        shutil.copyfileobj(content, stream, _CHUNK)
                found.append((info.name, info, file))
        cut = {name: _without_outermost(name) for name, _, _ in found}
        if "MAR-INF/MANIFEST.json" not in cut.values():
            # TorchServe would find no manifest; its content can be listed all the same.
            self.name = "tar.gz without one folder around it"
            found = [(name.removeprefix("./"), info, file) for name, info, file in found]
            top = _outermost(name for name, _, _ in found)
            cut = {name: name.removeprefix(top) for name, _, _ in found if name not in (".", top.rstrip("/"))}
        for name, info, file in found:
            if not cut.get(name) or (info.isdir() and "/" not in name):
                continue
            kind: EntryKind = "file" if info.isfile() else "folder" if info.isdir() else "special"
            if info.issym() or info.islnk():
                kind = "link"
            inside = _plain(cut[name])
            self.entries.append(Entry(inside, info.size, kind))
            self._files.setdefault(inside, file)

    def open(self, entry: Entry) -> IO[bytes]:
        """Open a member."""
        return self._files[entry.name].open("rb")

    def close(self) -> None:
        """Remove the temporary folder."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _without_outermost(name: str) -> str:
    if name.startswith("/") or ".." in name.split("/"):
        return name  # a flaw, which is reported by this name
    return name.partition("/")[2] if "/" in name else name


def _plain(name: str) -> str:
    """Return a name without its ``.`` and empty parts, where it is a path below a folder with some of these."""
    parts = name.split("/")
    if name.startswith("/") or ".." in parts:
        return name  # a flaw, which is reported by this name
    plain = "/".join(part for part in parts if part not in ("", "."))
    return f"{plain}/" if name.endswith("/") and plain else plain or name


def _is_above(folder: Path, name: str) -> bool:
    """Return whether a folder is a link to one that it lies in."""
    path = folder / name
    return path.is_symlink() and path.resolve() in (folder.resolve(), *folder.resolve().parents)


def _outermost(names: Iterable[str]) -> str:
    """Return the folder, ``model/``, that all names begin with and that has the manifest; empty: none."""
    found = set(names)
    tops = {name.partition("/")[0] for name in found}
    top = f"{tops.pop()}/" if len(tops) == 1 else ""
    return top if f"{top}MAR-INF/MANIFEST.json" in found else ""


def _kind(mode: int) -> EntryKind:
    if stat.S_ISDIR(mode):
        return "folder"
    if stat.S_ISLNK(mode):
        return "link"
    return "file" if stat.S_ISREG(mode) or not stat.S_IFMT(mode) else "special"


def _directory_too_large(path: Path, size: int) -> str:
    """Return why a zip's directory should not even be read: zipfile takes all of it into memory."""
    with path.open("rb") as stream:
        stream.seek(max(0, size - (1 << 16) - 22 - 20))
        tail = stream.read()
        end = tail.rfind(b"PK\x05\x06")
        if end < 0 or len(tail) - end < 22:
            return "it has no zip directory; it may be truncated" if size else "it is empty"
        (directory,) = struct.unpack_from("<I", tail, end + 12)
        if directory == 0xFFFFFFFF and tail[max(0, end - 20) :].startswith(b"PK\x06\x07"):
            (position,) = struct.unpack_from("<Q", tail, end - 20 + 8)
            stream.seek(min(position, size))
            record = stream.read(56)
            directory = struct.unpack_from("<Q", record, 40)[0] if len(record) == 56 else directory
    return f"its directory has {directory} bytes" if directory > _MAX_DIRECTORY else ""
