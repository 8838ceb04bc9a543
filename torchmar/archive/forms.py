"""The forms of an archive that TorchServe reads: a zip, a ``.tar.gz``, a folder.

Each form lists all entries that the archive declares, including hostile ones, and opens those that are files. Its
``flaws`` are its contradictions; no number in a file about itself is trusted.
"""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import IO, Protocol

from torchmar.archive.folder_form import FolderForm, archive_folder
from torchmar.archive.layout import Entry, Flaw
from torchmar.archive.tar_form import TarForm
from torchmar.archive.zip_form import ZipForm
from torchmar.errors import ArchiveError

_URL = re.compile(r"(https?|s3|gs|az):/")  # a path loses one of the two slashes


_OTHER_FORMS = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"7z\xbc\xaf": "7z"}
_TAR_MARK = slice(257, 262)
_PACK_AGAIN = "extract it, and pack it with tar -czf"


class Form(Protocol):
    """An opened archive of any form.

    Attributes:
        name: ``zip``, ``tar.gz``, ``tar.gz without one folder around it`` or ``folder``.
        entries: the declared members.
        flaws: contradictions in the form.
        frontend_flaws: flaws for which TorchServe's frontend rejects the archive, although other readers accept it.
    """

    name: str
    entries: list[Entry]
    flaws: list[Flaw]
    frontend_flaws: list[Flaw]

    def open(self, entry: Entry) -> IO[bytes]:
        """Open a file for reading."""
        ...

    def close(self) -> None:
        """Close files and remove temporary folders."""
        ...


def open_form(path: Path) -> Form:
    """Open an archive by its content, not by its name.

    Args:
        path: path of a file or a folder.

    Raises:
        ArchiveError: it does not exist, cannot be read, or has none of the forms.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return FolderForm(archive_folder(path))
        if not stat.S_ISREG(mode):  # a pipe would block until another process writes to it
            raise ArchiveError(f"{path} is not an archive: it is neither a file nor a folder")
        with path.open("rb") as stream:
            start = stream.read(_TAR_MARK.stop)
        if other := next((name for mark, name in _OTHER_FORMS.items() if start.startswith(mark)), None):
            raise ArchiveError(f"{path} is not an archive: it is compressed with {other}", hint=_PACK_AGAIN)
        if start[_TAR_MARK] == b"ustar":
            raise ArchiveError(f"{path} is not an archive: it is a tar that is not compressed", hint=_PACK_AGAIN)
        return TarForm(path) if start[:2] == b"\x1f\x8b" else ZipForm(path)
    except FileNotFoundError:
        if match := _URL.match(str(path)):
            hint = "download it first; torchmar register names it for a server, which downloads it itself"
            raise ArchiveError(f"{match[1]}:// is not a path: this command reads files", hint=hint) from None
        raise ArchiveError(f"{path} does not exist") from None
    except OSError as error:
        raise ArchiveError(f"{path} cannot be read: {error.strerror or error}") from None
