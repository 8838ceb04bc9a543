"""An archive as a ``.tar.gz``."""

from __future__ import annotations

import gzip
import shutil
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from torchmar.archive.layout import Entry, EntryKind, Flaw, Kind, most_content, plain_name
from torchmar.archive.member_streams import READ_ERRORS
from torchmar.errors import ArchiveError

_CHUNK = 1 << 20


class TarForm:
    """A ``.tar.gz``, unpacked to a temporary folder: a gzip stream can be read only from its start.

    torch-model-archiver puts everything below a folder with the model's name, and TorchServe cuts off the
    outermost folder of every name, be it ``.``, and whether or not it is the same for all. Names are listed without it.

    Args:
        path: the file.

    Raises:
        ArchiveError: it is damaged.
        OSError: it cannot be read, or the temporary folder cannot be written.
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
        except (tarfile.TarError, *READ_ERRORS) as error:
            self.close()
            if isinstance(error, OSError) and error.errno:
                raise
            raise ArchiveError(f"{path} is not an archive: {error or 'it is truncated'}") from None
        except BaseException:
            self.close()
            raise

    def _unpack(self, path: Path) -> None:
        members: list[tuple[str, tarfile.TarInfo, Path]] = []
        limit = min(most_content(path.stat().st_size), shutil.disk_usage(self._folder).free)
        total = 0
        with gzip.open(path) as unzipped, tarfile.open(fileobj=unzipped, mode="r|") as archive:
            for number, info in enumerate(archive):
                total += info.size + 512
                if total > limit:
                    self.flaws.append(Flaw(Kind.BOMB, info.name, f"it would grow to more than {limit} bytes"))
                    break
                file = self._folder / str(number)  # the name in the archive is not trusted with the disk
                if info.isfile() and (content := archive.extractfile(info)):
                    with file.open("wb") as stream:
                        shutil.copyfileobj(content, stream, _CHUNK)
                members.append((info.name, info, file))
        names = {name: _without_outermost(name) for name, _, _ in members}
        if "MAR-INF/MANIFEST.json" not in names.values():
            # TorchServe would find no manifest; the content can be listed all the same.
            self.name = "tar.gz without one folder around it"
            members = [(name.removeprefix("./"), info, file) for name, info, file in members]
            top = _outermost(name for name, _, _ in members)
            names = {name: name.removeprefix(top) for name, _, _ in members if name not in (".", top.rstrip("/"))}
        for name, info, file in members:
            if not names.get(name) or (info.isdir() and "/" not in name):
                continue
            kind: EntryKind = "file" if info.isfile() else "folder" if info.isdir() else "special"
            if info.issym() or info.islnk():
                kind = "link"
            inside = plain_name(names[name])
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


def _outermost(names: Iterable[str]) -> str:
    """Return the folder, ``model/``, that all names begin with and that has the manifest; empty without one."""
    present = set(names)
    tops = {name.partition("/")[0] for name in present}
    top = f"{tops.pop()}/" if len(tops) == 1 else ""
    return top if f"{top}MAR-INF/MANIFEST.json" in present else ""
