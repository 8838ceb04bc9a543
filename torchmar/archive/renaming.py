"""Copying an archive under another model name; only its manifest changes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from torchmar import manifest
from torchmar.archive import digests
from torchmar.archive.built_archive import BuiltArchive
from torchmar.archive.copying import MemberContent, size_of
from torchmar.archive.packing import pack, pack_tgz
from torchmar.archive.read import Archive
from torchmar.errors import ArchiveError

if TYPE_CHECKING:
    from torchmar.archive.building import Begin


def copy_archive(
    archive: Path, destination: Path, *, name: str = "", begin: Begin = lambda name, total: lambda count: None
) -> BuiltArchive:
    """Write an archive again, as a ``.mar``, or as a ``.tar.gz`` without a folder around its content.

    The same archive gives the same bytes. Uncompressed members keep their digest and are copied without a new
    hash.

    Args:
        archive: the source: a ``.mar``, a ``.tar.gz`` or a folder.
        destination: path of the new file; its suffix determines the form.
        name: name of the model, in place of the archive's; empty: the archive's.
        begin: progress callback, as in `build`.

    Raises:
        ArchiveError: the source has flaws, the name is not valid, or the file cannot be written.
    """
    if name and not manifest.is_name(name):
        raise ArchiveError(f"{name!r} cannot be the name of a model", hint="letters, digits, '.', '_' and '-'")
    with tempfile.TemporaryDirectory(prefix="torchmar-copy-") as scratch, Archive(archive) as source:
        if destination.resolve() == archive.resolve():
            raise ArchiveError(f"{destination} is the archive itself", hint="write to another folder")
        members: dict[str, MemberContent] = {
            member.name: source.source(member.name, Path(scratch)) for member in source.members
        }
        members.pop(digests.PATH, None)
        if name and name != source.manifest.name:
            model = source.manifest.model.model_copy(update={"model_name": name})
            members[manifest.PATH] = source.manifest.model_copy(update={"model": model}).to_json()
        progress = begin(destination.name, sum(map(size_of, members.values())))
        if destination.name.endswith(".tar.gz"):
            return pack_tgz(members, destination, "", progress)
        return pack(members, destination, progress)
