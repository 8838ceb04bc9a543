"""Whether an archive may be loaded: what torchmar's checks find, its digests included, before a server sees it."""

from __future__ import annotations

from pathlib import Path

from torchmar import checks
from torchmar.errors import ArchiveError


def admit(archive: Path) -> None:
    """Check an archive, every byte that ``SHA256SUMS`` lists included; nothing of it is run.

    Raises:
        ArchiveError: it has an error, or cannot be read; warnings are let pass.
    """
    errors = [finding for finding in checks.check(archive) if finding.code.severity == "error"]
    if errors:
        first, more = errors[0], len(errors) - 1
        place = f"{archive}!{first.place}".rstrip("!")
        raise ArchiveError(
            f"{first.code.name} {place}: {first.cause}{f' (and {more} more)' if more else ''}",
            hint=f"torchmar check {archive} tells all; --no-check loads it all the same",
        )
