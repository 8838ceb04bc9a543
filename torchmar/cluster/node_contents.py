"""Contents of archives on the nodes of a cluster: packed by the front, copied once to each node, checked, extracted.

The front packs the folder of an archive that it has admitted and extracted, with the packages that were installed for
it. A node keeps a content while any of its replicas uses it. Contents of killed replicas are removed, or used again, by
the next replica. A content whose files have changed on the node is copied again.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from torchmar import atomic, file_lock
from torchmar.archive import file_digest
from torchmar.archive.built_archive import show_size
from torchmar.errors import ArchiveError

CHUNK = 32 << 20  # size of a read request; Ray keeps each chunk in its object store until it is read
_CONTENT, _PACKAGES = "content", "packages"
_COMPLETE = "complete"  # name of a file with the stamps of all others, written last
_TIME = 315_532_800  # time of all files: the beginning of 1980, the earliest time in zip files
_Stamps = dict[str, list[int]]


@dataclass(frozen=True)
class PackedContent:
    """A packed content on the front's disk.

    Attributes:
        path: path of the file.
        digest: SHA-256 of the file.
        size: size of the file in bytes.
        packages: whether it has installed packages beside the archive's content.
    """

    path: str
    digest: str
    size: int
    packages: bool


class NodeContent:
    """A content on this node, held until it is closed.

    Attributes:
        folder: folder with the content of the archive.
        packages: the folder with installed packages; empty: there are none.
    """

    def __init__(self, place: Path, packed: PackedContent, descriptor: int) -> None:
        self.folder = str(place / _CONTENT)
        self.packages = str(place / _PACKAGES) if packed.packages else ""
        self._place, self._descriptor = place, descriptor

    def close(self) -> None:
        """Release the content; the last user removes it."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another replica uses it
            pass
        else:
            shutil.rmtree(self._place, ignore_errors=True)
            _lock_of(self._place).unlink(missing_ok=True)
        os.close(self._descriptor)


def pack(folder: Path, packages: Path | None, target: Path) -> PackedContent:
    """Pack the content of an archive; equal files give equal bytes, so that digests can be compared. Blocking.

    Args:
        folder: the extracted archive.
        packages: folder with packages that were installed for it; None: there are none.
        target: file to write.

    Raises:
        ArchiveError: the file cannot be written.
    """
    part = atomic.temporary_path(target)
    try:
        with tarfile.open(part, "w") as packed:
            packed.add(folder, _CONTENT, filter=_normalized)
            if packages:
                packed.add(packages, _PACKAGES, filter=_normalized)
        digest = file_digest.of(part)
        part.replace(target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ArchiveError(f"{folder} cannot be packed for the cluster: {error.strerror}") from None
    return PackedContent(str(target), digest, target.stat().st_size, packages is not None)


def _normalized(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Return a member without its owner and time, and with one of two modes."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = _TIME
    member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
    return member


def fetch(packed: PackedContent, read: Callable[[int], bytes], root: Path | None = None) -> NodeContent:
    """Return a content on this node; it is copied unless a replica of this node has it already. Blocking.

    Args:
        packed: the content; its file is read directly if this node has it.
        read: returns at most `CHUNK` bytes from an offset of the file, if this node does not have it.
        root: folder of all contents; None: a folder of this user in the node's temporary folder.

    Raises:
        ArchiveError: the bytes have another digest, or the disk has too little room.
    """
    root = root or Path(tempfile.gettempdir()) / f"torchmar-archives-{os.getuid()}"
    try:
        _make_root(root)
        _remove_unused(root, packed)
        for number in itertools.count():
            place = root / (f"{packed.digest}-{number}" if number else packed.digest)
            if (descriptor := _share(packed, read, place)) is not None:
                return NodeContent(place, packed, descriptor)
    except OSError as error:
        raise ArchiveError(f"{root} cannot be written: {error.strerror}") from None
    raise AssertionError


def copy(packed: PackedContent, read: Callable[[int], bytes], folder: Path) -> PackedContent:
    """Return a copy of a packed content in a folder, read as `fetch` does. Blocking.

    Raises:
        ArchiveError: the bytes have another digest, or the disk has too little room.
    """
    target = folder / f"{packed.digest}.tar"
    part = atomic.temporary_path(target)
    try:
        _write(packed, read, part)
        part.replace(target)
    except OSError as error:
        raise ArchiveError(f"{target} cannot be written: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)
    return replace(packed, path=str(target))


def read_at(path: Path, offset: int) -> bytes:
    """Return at most `CHUNK` bytes of a file."""
    with path.open("rb") as stream:
        stream.seek(offset)
        return stream.read(CHUNK)


def _make_root(root: Path) -> None:
    """Make the folder of all contents; refuse one that another user has made, as anybody can in a shared folder."""
    root.mkdir(mode=0o700, exist_ok=True)
    status = root.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise ArchiveError(f"{root} is not a folder of this user alone", hint="remove it, or start Ray with a TMPDIR")


def _remove_unused(root: Path, packed: PackedContent) -> None:
    """Remove contents of replicas that were killed, except that of ``packed``."""
    for lock in root.glob("*.lock"):
        place = lock.with_suffix("")
        if place.name == packed.digest:
            continue
        with contextlib.suppress(OSError):  # a replica uses it
            descriptor = file_lock.acquire(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(place, ignore_errors=True)
            _part_of(place).unlink(missing_ok=True)
            lock.unlink(missing_ok=True)
            os.close(descriptor)


def _share(packed: PackedContent, read: Callable[[int], bytes], place: Path) -> int | None:
    """Complete a content, and return the descriptor of its lock, which is held shared.

    None: files of the content have changed, and a running replica uses them.
    """
    lock = _lock_of(place)
    while True:
        descriptor = file_lock.acquire(lock, fcntl.LOCK_SH)
        if _is_whole(place):
            return descriptor
        complete = (place / _COMPLETE).exists()
        os.close(descriptor)
        try:
            descriptor = file_lock.acquire(lock, fcntl.LOCK_EX | (fcntl.LOCK_NB if complete else 0))
        except BlockingIOError:
            return None
        try:
            if not _is_whole(place):
                shutil.rmtree(place, ignore_errors=True)  # changed, or left incomplete by a process that was killed
                _extract(packed, read, place)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        finally:
            # Release the lock and take it again: a change to a shared lock also releases it for a moment, in which the
            # last user of the content may remove it.
            os.close(descriptor)


def _extract(packed: PackedContent, read: Callable[[int], bytes], place: Path) -> None:
    file = Path(packed.path)
    with contextlib.ExitStack() as stack:
        if not _is_here(packed):
            file = _part_of(place)
            stack.callback(file.unlink, missing_ok=True)
            _write(packed, read, file)
        _check_room(packed, place.parent)
        place.mkdir()
        with tarfile.open(file) as archive:
            archive.extractall(place, filter="data")
    (place / _COMPLETE).write_text(json.dumps(_stamps(place)), encoding="utf-8")


def _stamps(place: Path) -> _Stamps:
    """Return size and time of each file of a content, by its path."""
    paths = (path for path in place.rglob("*") if path.is_symlink() or not path.is_dir())
    return {str(path.relative_to(place)): _stamp(path) for path in paths}


def _is_whole(place: Path) -> bool:
    """Return whether a content is complete and unchanged; files that handlers have added do not count."""
    try:
        recorded: _Stamps = json.loads((place / _COMPLETE).read_bytes())
        return all(_stamp(place / path) == stamp for path, stamp in recorded.items())
    except (OSError, ValueError):
        return False


def _stamp(path: Path) -> list[int]:
    status = path.lstat()
    return [status.st_size, status.st_mtime_ns]


def _check_room(packed: PackedContent, folder: Path) -> None:
    """Raise ArchiveError if a content does not fit on the disk of a folder; a full disk stops other programs, too."""
    if (free := shutil.disk_usage(folder).free) < packed.size:
        raise ArchiveError(f"{folder} has {show_size(free)} free, and a content needs {show_size(packed.size)}")


def _is_here(packed: PackedContent) -> bool:
    """Return whether this node can read the file of a packed content."""
    file = Path(packed.path)
    return file.is_file() and file.stat().st_size == packed.size and file_digest.of(file) == packed.digest


def _write(packed: PackedContent, read: Callable[[int], bytes], file: Path) -> None:
    """Write a packed content to a file, from this node's disk or another node's, and compare its digest."""
    _check_room(packed, file.parent)
    if _is_here(packed):
        shutil.copyfile(packed.path, file)
    else:
        with file.open("wb") as stream:
            for chunk in _chunks(packed, read):
                stream.write(chunk)
    if (digest := file_digest.of(file)) != packed.digest:
        raise ArchiveError(f"a content arrived with SHA-256 {digest}, not {packed.digest}")


def _chunks(packed: PackedContent, read: Callable[[int], bytes]) -> Iterator[bytes]:
    offset = 0
    while offset < packed.size:
        chunk = read(offset)
        if not chunk:
            raise ArchiveError(f"a content ends after {offset} of {packed.size} bytes")
        yield chunk
        offset += len(chunk)


def _lock_of(place: Path) -> Path:
    return place.with_name(f"{place.name}.lock")


def _part_of(place: Path) -> Path:
    return place.with_name(f".{place.name}.part")
