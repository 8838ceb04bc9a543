"""Check a recipe, an archive or a folder without running any of its code; needs no torch.

A finding is a value: a code of the catalogue (`Code`), a place, a cause and a remedy. Every
code has a section in docs/checks.md.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO

from torchmar import recipe
from torchmar.archive import Archive, collect_members
from torchmar.archive.copying import ArchiveSlice, MemberContent, size_of
from torchmar.checks import (
    configuration,
    foreign,
    handler,
    layout,
    optimized,
    requirements,
    runtime,
    sagemaker,
    weights,
)
from torchmar.checks import manifest as manifests
from torchmar.checks.finding import Code, Content, Finding
from torchmar.errors import ArchiveError, RecipeError

__all__ = ["Code", "Composed", "Content", "Finding", "check", "check_content"]


def check(path: Path, gpus: int | None = None) -> list[Finding]:
    """Find what would fail on a server, without running any of the archive.

    Args:
        path: a recipe or its folder, a ``.mar``, a ``.tar.gz``, or an archive as a folder.
        gpus: the number of GPUs of the server; None: not known.

    Returns:
        The findings, errors first; an empty list if there are none.

    Raises:
        ArchiveError: ``path`` does not exist, or cannot be read.

    Examples:
        >>> from pathlib import Path
        >>> import torchmar
        >>> Path("empty.mar").write_bytes(b"")
        0
        >>> [(finding.code.name, finding.severity) for finding in torchmar.check(Path("empty.mar"))]
        [('MAR101', 'error')]
    """
    if not path.exists():
        raise ArchiveError(f"{path} does not exist")
    if recipe.is_recipe(path):
        return _recipe(path, gpus)
    try:
        archive = Archive(path, allow_flaws=True)
    except ArchiveError as error:
        if other := foreign.folder(path):
            return [Finding(Code.MAR101, "", f"it is {other[0]}, no archive", other[1])]
        cause = error.message.removeprefix(f"{path} ").removeprefix(f"{path}: ")
        return [Finding(Code.MAR101, "", cause, error.hint or "build it again")]
    with archive:
        findings = [*layout.check(archive)]
        if not layout.is_bomb(archive):  # a bomb's manifest was not read
            findings += check_content(archive, gpus)
        return _sorted(findings)


def check_content(content: Content, gpus: int | None = None) -> list[Finding]:
    """Return the problems of an archive's members, however these are stored."""
    try:
        manifest, findings = manifests.read(content)
    except ArchiveError:
        return []  # the bytes of the manifest are damaged: a finding about the layout
    if manifest is None:
        return findings
    model, sizes = manifest.model, content.sizes
    requirements_file = model.requirements_file if model.requirements_file in sizes else None
    checks: list[Callable[[], Iterable[Finding]]] = []
    if manifest.runtime != "LSP":  # a handler in C++ has no Python to check
        checks.append(lambda: handler.check(content, model.handler, requirements_file, model.config_file))
        if model.handler == sagemaker.HANDLER:
            checks.append(lambda: sagemaker.check(content, model.config_file, requirements_file))
        if not model.serialized_file or model.serialized_file in sizes:
            checks.append(
                lambda: weights.check(
                    content,
                    model.serialized_file,
                    model.model_file,
                    model.handler,
                    requirements_file,
                    optimized.files(content, model),
                )
            )
        checks.append(lambda: optimized.check(content, model))
    if model.config_file in sizes:
        checks.append(lambda: configuration.check(content, str(model.config_file), gpus))
    if requirements_file:
        checks.append(lambda: requirements.check(content, requirements_file))
    checks.append(lambda: runtime.check(content))
    for run in checks:
        # A member that cannot be read is a finding about the layout already.
        with contextlib.suppress(ArchiveError):
            findings += run()
    return _sorted(findings)


class Composed:
    """The members of an archive that is not packed yet."""

    def __init__(self, members: Mapping[str, MemberContent]) -> None:
        self._members = members
        self.sizes: Mapping[str, int] = {name: size_of(source) for name, source in members.items()}

    def open(self, name: str) -> IO[bytes]:
        """Open a member for reading."""
        source = self._members[name]
        if isinstance(source, ArchiveSlice):
            raise TypeError("parts of archives are checked in their archive")
        return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def _recipe(path: Path, gpus: int | None) -> list[Finding]:
    try:
        parsed, folder = recipe.read(path)
    except RecipeError as error:
        return [
            Finding(
                Code.MAR207,
                problem.where,
                f"{problem.place}: {problem.message}".lstrip(": "),
                problem.hint,
            )
            for problem in error.problems
        ]
    try:
        members = collect_members(parsed, folder)
    except ArchiveError as error:
        return [Finding(Code.MAR207, str(path), error.message, error.hint)]
    return check_content(Composed(members), gpus)


def _sorted(findings: list[Finding]) -> list[Finding]:
    unique = dict.fromkeys(findings)
    return sorted(unique, key=lambda finding: (finding.severity, finding.code.name, finding.place, finding.cause))
