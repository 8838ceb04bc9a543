"""Admission: a server may not load an archive that is unsafe, or that no server can load."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torchmar import checks
from torchmar.checks.finding import Code, Finding, matches
from torchmar.errors import ArchiveError

EVERYTHING = ("MAR",)
"""The value of `ignore` with which `admit` checks nothing."""


def admit(archive: Path, ignore: Iterable[str] = ()) -> list[Finding]:
    """Check an archive and every byte that ``SHA256SUMS`` lists; none of its code is run.

    Args:
        archive: the archive's file or folder.
        ignore: codes, or the beginnings of codes, whose findings do not count; `EVERYTHING` checks nothing.

    Returns:
        The warnings.

    Raises:
        ArchiveError: the archive has an error, or cannot be read.
    """
    ignored = tuple(ignore)
    if all(matches(code, ignored) for code in Code):
        return []
    findings = [finding for finding in checks.check(archive) if not matches(finding.code, ignored)]
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        first, more = errors[0], len(errors) - 1
        place = f"{archive}!{first.place}".rstrip("!")
        raise ArchiveError(
            f"{first.code.name} {place}: {first.cause}{f' (and {more} more)' if more else ''}",
            hint=f"torchmar check {archive} lists all"
            + (
                "" if first.code is Code.MAR101 else f"; --ignore {first.code.name} or --no-check loads it all the same"
            ),
        )
    return findings
