"""Print findings of the checks, for the commands that pack or load archives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from torchmar.cli.terminal import err
from torchmar.errors import ArchiveError

if TYPE_CHECKING:
    from torchmar.archive.built_archive import Note
    from torchmar.archive.copying import MemberContent
    from torchmar.checks import Finding


def inspect(members: Mapping[str, MemberContent], ignore: Sequence[str] = ()) -> tuple[Note, ...]:
    """Check the members of an archive before it is packed; print and return the findings.

    Args:
        members: the members, by their paths in the archive.
        ignore: codes, or prefixes of codes, that are neither printed nor count as errors.

    Raises:
        ArchiveError: a finding is an error.
    """
    from torchmar.checks import Composed, check_content

    notes = tuple(map(_note, check_content(Composed(members))))
    show(notes, ignore)
    if has_errors(notes, ignore):
        raise ArchiveError(
            "the archive has an error; nothing is written",
            hint="--ignore CODE ignores an error, --no-check writes the archive all the same",
        )
    return notes


def show(notes: Iterable[Note], ignore: Sequence[str] = ()) -> None:
    """Print notes to standard error, one a line."""
    for note in _wanted(notes, ignore):
        err.print(note.text, markup=False, soft_wrap=True)


def has_errors(notes: Iterable[Note], ignore: Sequence[str] = ()) -> bool:
    """Return whether one of the notes is an error that is not ignored."""
    return any(note.severity == "error" for note in _wanted(notes, ignore))


def warn(findings: Iterable[Finding]) -> None:
    """Print the warnings about an archive that may keep it from working after it is loaded."""
    show(_note(finding) for finding in findings if finding.works)


def _wanted(notes: Iterable[Note], ignore: Sequence[str]) -> list[Note]:
    prefixes = tuple(prefix.upper() for prefix in ignore)
    return [note for note in notes if not note.code.startswith(prefixes)]


def _note(finding: Finding) -> Note:
    from torchmar.archive.built_archive import Note

    place = f"{finding.place}: " if finding.place else ""
    hint = f" ({finding.remedy})" if finding.remedy else ""
    text = f"{finding.severity}: {finding.code.name} {place}{finding.cause}{hint}"
    return Note(finding.code.name, finding.severity, text)
