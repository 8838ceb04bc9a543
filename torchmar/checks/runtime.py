"""Findings about the environment that an archive asks for: its lock file and its wheels."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, NormalizedName, canonicalize_name, parse_wheel_filename

from torchmar.archive import runtime as runtimes
from torchmar.checks import requirements
from torchmar.checks.finding import Code, Content, Finding, printable
from torchmar.checks.modules import read_member
from torchmar.errors import ArchiveError
from torchmar.recipe import Runtime

_LEAST = (3, 10)  # oldest Python that runs the code of worker processes
_MAX = 16 << 20  # bytes
# Packages without which no worker starts; the server's own are not visible.
_NEEDED = ("torch", "torchserve")
_LOCK = "write it with torchmar lock"


def check(content: Content) -> list[Finding]:
    """Return the problems of the environment of an archive; none if it asks for no environment."""
    if runtimes.FILE not in content.sizes:
        return []
    try:
        runtime = runtimes.parse(read_member(content, runtimes.FILE, _MAX) or b"", content.sizes)
    except ArchiveError as error:
        cause = error.message.removeprefix(f"{runtimes.FILE}: ")
        return [
            printable(
                Finding(
                    Code.MAR514, runtimes.FILE, cause, "correct runtime: of the recipe, and build the archive again"
                )
            )
        ]
    return [printable(Finding(Code.MAR514, *problem)) for problem in _problems(content, runtime)]


def lock_problems(data: bytes, name: str) -> list[tuple[str, str, str]]:
    """Return place, cause and remedy of each line of a lock file that does not name one package with its hash."""
    try:
        lines = list(requirements.lines(requirements.decode(data)))
    except (UnicodeDecodeError, LookupError) as error:
        return [(name, f"it cannot be decoded: {error}", _LOCK)]
    problems = []
    for line in lines:
        if cause := _line_problem(line):
            problems.append((f"{name}:{line.number}", cause, _LOCK))
    return problems


def _problems(content: Content, runtime: Runtime) -> Iterator[tuple[str, str, str]]:
    if tuple(map(int, runtime.python.split(".")))[:2] < _LEAST:
        least = ".".join(map(str, _LEAST))
        yield runtimes.FILE, f"Python {runtime.python} is too old for workers", f"give it {least} or a later version"
    data = read_member(content, runtime.requirements, _MAX) or b""
    if problems := lock_problems(data, runtime.requirements):
        yield from problems
        return
    locked = list(_locked(data))
    if not runtime.server_packages:
        names = {canonicalize_name(requirement.name) for requirement in locked}
        for name in _NEEDED:
            if name not in names:
                cause = f"it has no {name}, which workers need"
                remedy = "torchmar lock adds it; server_packages: true shows workers the server's"
                yield runtime.requirements, cause, remedy
    if runtime.wheels:
        yield from _missing_wheels(content, runtime, locked)


def _missing_wheels(content: Content, runtime: Runtime, locked: list[Requirement]) -> Iterator[tuple[str, str, str]]:
    wheels: set[tuple[NormalizedName, str]] = set()
    for member in content.sizes:
        if member.startswith(f"{runtime.wheels}/"):
            try:
                name, version, _, _ = parse_wheel_filename(posixpath.basename(member))
            except InvalidWheelFilename:
                continue
            wheels.add((name, str(version)))
    for requirement in locked:
        if requirement.marker or requirement.url:
            continue  # it may be for another platform, or be installed from elsewhere
        if not any(
            name == canonicalize_name(requirement.name) and requirement.specifier.contains(version, prereleases=True)
            for name, version in wheels
        ):
            remedy = "torchmar lock fills the folder"
            yield runtime.requirements, f"{runtime.wheels}/ has no wheel of {requirement}", remedy


def _locked(data: bytes) -> Iterator[Requirement]:
    for line in requirements.lines(requirements.decode(data)):
        if line.requirement:
            yield Requirement(line.requirement)


def _line_problem(line: requirements.Line) -> str:
    """Return the reason why a line of a lock file does not name one package with its hash; empty: it does."""
    if line.problem:
        return line.problem
    options = line.options
    for option, value in (("-r", options.requirements), ("-c", options.constraints), ("-e", options.editables)):
        if value:
            return f"a lock file has no {option}"
    if not line.requirement:
        return ""
    try:
        parsed = Requirement(line.requirement)
    except InvalidRequirement:
        return f"{line.requirement!r} is no package with a version"
    exact = any(
        specifier.operator in ("==", "===") and not specifier.version.endswith(".*") for specifier in parsed.specifier
    )
    if not exact and not parsed.url:
        return f"{line.requirement!r} has no exact version"
    if parsed.url and not re.match(r"https?:|file:", parsed.url):
        return f"{line.requirement!r} is no wheel"
    return "" if options.hashes else f"{line.requirement!r} has no hash"
