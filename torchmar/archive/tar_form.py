"""An archive as a ``.tar.gz``."""

from __future__ import annotations

import gzip
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from torchmar.archive.layout import MAX_MEMBERS, Entry, EntryKind, Flaw, Kind, most_content, plain_name
from torchmar.archive.member_streams import READ_ERRORS
from torchmar.errors import ArchiveError

if TYPE_CHECKING:
    from typing_extensions import Self

_CHUNK = 1 << 20
_BLOCK = 512
# Limit for the names and attributes of a member, which tarfile reads into memory; far above real ones.
_MAX_HEADERS = 1 << 20
#: Exceptions from reading a damaged or hostile file.
TAR_ERRORS = (tarfile.TarError, *READ_ERRORS)


def members(path: Path) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield the members of a ``.tar.gz`` in order; the content of each can be read until the next.

    tarfile itself would treat a damaged header, or a premature end of the tar, as its end.

    Args:
        path: the file.

    Raises:
        tarfile.TarError: the tar is truncated or damaged, or a member has megabytes of names and attributes.
        OSError: the file cannot be read.
    """
    with gzip.open(path) as unzipped:
        bounded = _BoundedReader(unzipped)
        with _CompleteTar.open(fileobj=cast(IO[bytes], bounded), mode="r|") as archive:
            for info in archive:
                if info.size < 0:  # it would reduce the sum of all sizes, which is limited
                    raise tarfile.ReadError("a member has a negative size")
                bounded.left = info.size + _MAX_HEADERS
                yield archive, info
            if not archive.has_end:
                raise tarfile.ReadError("its tar ends too early or is damaged, so that members may be missing")


class _BoundedReader:
    """The content of a gzip stream, limited to a number of bytes that grows with the members that were read."""

    def __init__(self, stream: gzip.GzipFile) -> None:
        self._stream = stream
        self.left = _MAX_HEADERS

    def read(self, size: int) -> bytes:
        """Read up to ``size`` bytes. Raises tarfile.ReadError if names and attributes are too large."""
        content = self._stream.read(size)
        self.left -= len(content)
        if self.left < 0:
            raise tarfile.ReadError("a member has more than a megabyte of names and attributes")
        return content


class _CompleteTar(tarfile.TarFile):
    """A tar that records whether its end was read."""

    has_end = False


class _Member(tarfile.TarInfo):
    @classmethod
    def fromtarfile(cls, archive: Any) -> Self:
        """Read the header of the next member; record the end."""
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            archive.has_end = type(error).__name__ == "EOFHeaderError"
            raise


_CompleteTar.tarinfo = _Member


class TarForm:
    """A ``.tar.gz``, unpacked to a temporary folder, because a gzip stream can only be read from its start.

    torch-model-archiver puts everything below a folder with the model's name, and TorchServe removes the outermost
    folder from every name, even if it is ``.``, and even if names differ in it. Names are listed without it.

    Args:
        path: the file.

    Raises:
        ArchiveError: the file is damaged.
        OSError: the file cannot be read, or the temporary folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.entries: list[Entry] = []
        self.flaws: list[Flaw] = []
        self.frontend_flaws: list[Flaw] = []
        self.name = "tar.gz"
        self._folder = Path(tempfile.mkdtemp(prefix="torchmar-tar-"))
        self._files: dict[str, Path] = {}
        try:
            self._unpack(path)
        except TAR_ERRORS as error:
            self.close()
            if isinstance(error, OSError) and error.errno:
                raise
            raise ArchiveError(f"{path} is not an archive: {error or 'it is truncated'}") from None
        except BaseException:
            self.close()
            raise

    def _unpack(self, path: Path) -> None:
        extracted: list[tuple[str, tarfile.TarInfo, Path]] = []
        limit = min(most_content(path.stat().st_size), shutil.disk_usage(self._folder).free)
        total = 0
        for number, (archive, info) in enumerate(members(path)):
            total += info.size + _BLOCK
            if total > limit or number >= MAX_MEMBERS:
                cause = f"it would grow to more than {limit} bytes"
                if number >= MAX_MEMBERS:
                    cause = f"it has more than {MAX_MEMBERS} members"
                self.flaws.append(Flaw(Kind.BOMB, info.name, cause))
                break
            file = self._folder / str(number)  # the name from the archive is not used on the disk
            if info.isfile() and (content := archive.extractfile(info)):
                with file.open("wb") as stream:
                    shutil.copyfileobj(content, stream, _CHUNK)
            extracted.append((info.name, info, file))
        names = {name: _without_outermost(name) for name, _, _ in extracted}
        if "MAR-INF/MANIFEST.json" not in names.values():
            # TorchServe would find no manifest; but the content can be listed.
            self.name = "tar.gz without one folder around it"
            extracted = [(name.removeprefix("./"), info, file) for name, info, file in extracted]
            top = _outermost(name for name, _, _ in extracted)
            names = {name: name.removeprefix(top) for name, _, _ in extracted if name not in (".", top.rstrip("/"))}
        for name, info, file in extracted:
            if not names.get(name) or (info.isdir() and "/" not in name):
                continue
            kind: EntryKind = "file" if info.isfile() else "folder" if info.isdir() else "special"
            if info.issym() or info.islnk():
                kind = "link"
            member = plain_name(names[name])
            self.entries.append(Entry(member, info.size, kind))
            self._files.setdefault(member, file)

    def open(self, entry: Entry) -> IO[bytes]:
        """Open a member."""
        return self._files[entry.name].open("rb")

    def close(self) -> None:
        """Remove the temporary folder."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _without_outermost(name: str) -> str:
    if name.startswith("/") or ".." in name.split("/"):
        return name  # a flaw, which is reported with this name
    return name.partition("/")[2] if "/" in name else name


def _outermost(names: Iterable[str]) -> str:
    """Return the folder, ``model/``, that all names start with and that has the manifest; empty if there is none."""
    present = set(names)
    tops = {name.partition("/")[0] for name in present}
    top = f"{tops.pop()}/" if len(tops) == 1 else ""
    return top if f"{top}MAR-INF/MANIFEST.json" in present else ""
