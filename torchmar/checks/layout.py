"""Findings about an archive as a file: the names and kinds of its members, its directory, its digests."""

from __future__ import annotations

from collections.abc import Iterator

from torchmar.archive import Archive, digests
from torchmar.archive.layout import Kind
from torchmar.checks.finding import Code, Finding
from torchmar.errors import ArchiveError

_REBUILD = "build the archive again; do not use this one"
_RENAME = "rename one of the two"
_CODES = {
    Kind.OUTSIDE: (Code.MAR102, _REBUILD),
    Kind.TWICE: (Code.MAR103, "build the archive again with one of the two"),
    Kind.SPECIAL: (Code.MAR104, "put the file itself into the archive"),
    Kind.CASE: (Code.MAR105, _RENAME),
    Kind.BOMB: (Code.MAR106, "do not extract it; ask where it comes from"),
    Kind.INCONSISTENT: (Code.MAR107, "fetch it again; if that does not help, build it again"),
    Kind.CLASH: (Code.MAR110, _RENAME),
}


def check(archive: Archive) -> Iterator[Finding]:
    """Yield the problems of an archive's file; reads every byte of the archive once."""
    if cause := _misnamed(archive):
        yield Finding(
            Code.MAR101, "", cause, "TorchServe decides by the name: *.mar is a zip, any other file a .tar.gz"
        )
    elif archive.form not in ("zip", "tar.gz", "folder"):
        cause = "its members do not lie in one folder, the outermost, which TorchServe cuts off"
        yield Finding(Code.MAR101, "", cause, "tar czf NAME.tar.gz NAME, where NAME is the folder that has MAR-INF")
    for flaw in archive.frontend_flaws:
        code = Code.MAR107 if flaw.member else Code.MAR101
        yield Finding(code, flaw.member[:200], flaw.what, "pack it again with torchmar build or torchmar-archiver")
    for flaw in archive.flaws:
        code, remedy = _CODES[flaw.kind]
        yield Finding(code, flaw.member[:200], flaw.what, remedy)
    if archive.deflated:
        cause = "members are deflated: they cannot be mapped, and every registration inflates them anew"
        yield Finding(Code.MAR111, "", cause, "torchmar import and torchmar build store them")
    yield from _content(archive)


def is_bomb(archive: Archive) -> bool:
    """Return whether the archive has too many members to read them."""
    return any(flaw.kind is Kind.BOMB and not flaw.member for flaw in archive.flaws)


def _misnamed(archive: Archive) -> str:
    """Return the reason why TorchServe, which decides by the name, would not unpack the file; empty: it would."""
    name = archive.path.name
    if archive.form == "zip" and not name.endswith(".mar"):
        return f"it is a zip, and is called {name}"
    if archive.form.startswith("tar.gz") and name.endswith(".mar"):
        return f"it is a tar.gz, and is called {name}"
    return ""


def _content(archive: Archive) -> Iterator[Finding]:
    try:
        listed = archive.listed
    except ArchiveError as error:
        yield Finding(Code.MAR109, digests.PATH, _of(error), _REBUILD)
        listed = {}
    for name in archive.sizes:
        try:
            actual = archive.sha256(name)
        except ArchiveError as error:
            yield Finding(Code.MAR107, name, _of(error), "fetch it again; if that does not help, build it again")
            continue
        if not listed or name == digests.PATH:
            continue
        if name not in listed:
            yield Finding(Code.MAR109, name, f"it is not listed in {digests.PATH}", _REBUILD)
        elif listed[name] != actual:
            yield Finding(Code.MAR108, name, f"its SHA-256 is {actual[:16]}..., not {listed[name][:16]}...", _REBUILD)
    for name in sorted(listed.keys() - archive.sizes.keys()):
        yield Finding(Code.MAR109, name[:200], f"{digests.PATH} lists it, and it is not there", _REBUILD)


def _of(error: ArchiveError) -> str:
    return error.message.partition(": ")[2] or error.message
