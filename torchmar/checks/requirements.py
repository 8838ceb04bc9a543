"""Findings about the requirements file of an archive, read as pip reads it, without any index."""

from __future__ import annotations

import codecs
import optparse
import posixpath
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NoReturn

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from torchmar.checks.finding import Code, Content, Finding, printable
from torchmar.checks.modules import read_member

_MAX = 16 << 20  # bytes; a large project's file with the hashes of every wheel has one or two million
# Suffixes of names that pip takes for a file although they contain no slash.
_ARCHIVES: tuple[str, ...] = (".zip", ".whl", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz")
_ARCHIVES += (".tar.xz", ".txz", ".tlz", ".tar.lz", ".tar.lzma")
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark begins it
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:")
_NAMED_URL = re.compile(r"[A-Za-z0-9][\w.\-]*\s*(\[[^\]]*\])?\s*@\s*\S")
_VERSION_CONTROL = ("git+", "hg+", "svn+", "bzr+")
_ONE = "write one requirement a line: NAME==VERSION"
_CARRY = "carry it: files: in archive.yaml, --extra-files of torchmar-archiver"


@dataclass(frozen=True)
class Line:
    """A logical line of a requirements file, after pip's steps: lines joined, comments removed.

    Attributes:
        number: number of its first physical line, from 1.
        requirement: the text before the first option.
        options: options, as pip's option parser reads them.
        problem: the reason why pip rejects the line; empty: pip takes it.
    """

    number: int
    requirement: str
    options: optparse.Values
    problem: str = ""


@dataclass
class _Seen:
    """The state that the lines of all files share."""

    files: set[str] = field(default_factory=set)
    pins: dict[str, str] = field(default_factory=dict)
    constrained: set[str] = field(default_factory=set)
    hashes: bool = False
    unhashed: list[tuple[str, str]] = field(default_factory=list)  # places and requirements


def check(content: Content, name: str) -> list[Finding]:
    """Return the problems of the requirements file ``name`` and of the files that it includes."""
    seen = _Seen()
    findings = list(_file(content, name, name, seen, constraint=False))
    if seen.hashes:
        for place, requirement in seen.unhashed:
            cause = f"{requirement!r} has no hash, and another line has: pip refuses the file"
            findings.append(Finding(Code.MAR509, place, cause, "give every line its --hash, as pip-compile does"))
    unpinned = [finding for finding in findings if finding.code is Code.MAR508]
    findings = [
        finding for finding in findings if finding not in unpinned or _name(finding.cause) not in seen.constrained
    ]
    return [printable(finding) for finding in findings]


def lines(text: str) -> Iterator[Line]:
    """Yield the logical lines of a requirements file: continuations joined, comments removed, options parsed."""
    for number, joined in _joined(text):
        if line := re.sub(r"(^|\s+)#.*$", "", joined).strip():
            yield _parsed(number, line)


def decode(data: bytes) -> str:
    """Return the text of a requirements file, decoded by its byte order mark, by its coding comment, or as UTF-8.

    Raises:
        UnicodeDecodeError, LookupError: the file has none of these encodings.
    """
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding if encoding == "utf-8" else _endian(mark))
    for line in data.split(b"\n")[:2]:
        if line.startswith(b"#") and (declaration := re.search(rb"coding[:=]\s*([-\w.]+)", line)):
            return data.decode(declaration[1].decode("ascii"))
    return data.decode()


def _endian(mark: bytes) -> str:
    size = 32 if len(mark) == 4 else 16
    return f"utf-{size}-{'le' if mark.startswith(codecs.BOM_UTF16_LE) else 'be'}"


def _file(content: Content, name: str, place: str, seen: _Seen, *, constraint: bool) -> Iterator[Finding]:
    if name in seen.files:
        return
    seen.files.add(name)
    if content.sizes[name] > _MAX:
        yield Finding(Code.MAR509, name, f"it has more than {_MAX >> 20} MiB and was not read", _ONE)
        return
    data = read_member(content, name, _MAX)
    if data is None:
        return
    try:
        text = decode(data)
    except (UnicodeDecodeError, LookupError) as error:
        yield Finding(Code.MAR509, name, f"pip cannot decode it: {error}", "save it as UTF-8")
        return
    for line in lines(text):
        yield from _line(content, name, line, seen, constraint=constraint)


def _line(content: Content, file: str, line: Line, seen: _Seen, *, constraint: bool) -> Iterator[Finding]:
    place = f"{file}:{line.number}"
    if line.problem:
        yield Finding(Code.MAR509, place, line.problem, _ONE)
        return
    options = line.options
    seen.hashes |= bool(options.hashes) or bool(options.require_hashes)
    if line.requirement:
        yield from _requirement(content, place, line, seen, constraint=constraint)
    elif options.editables:
        yield from _editable(content, place, options.editables[0])
    for included, only_constrains in ((options.requirements, False), (options.constraints, True)):
        for other in included or ():
            if _URL.match(other) or "${" in other or other.startswith("/"):
                continue
            member = posixpath.normpath(posixpath.join(posixpath.dirname(file), other))
            if member in content.sizes:
                yield from _file(content, member, place, seen, constraint=only_constrains or constraint)
            else:
                yield Finding(Code.MAR509, place, f"the archive has no {member}", _CARRY)


def _requirement(content: Content, place: str, line: Line, seen: _Seen, *, constraint: bool) -> Iterator[Finding]:
    text = line.requirement
    if "${" in text:
        return  # a variable of the server's environment
    if _is_url(text) or _NAMED_URL.match(text):
        if not constraint and not line.options.hashes:
            seen.unhashed.append((place, text))
        if name_match := re.match(r"[\w.\-]+", text) if not _is_url(text) else None:
            seen.constrained.add(canonicalize_name(name_match[0]))
        return
    path = re.split(r";|\[", text, maxsplit=1)[0].strip()
    if "/" in path or path.startswith(".") or path.lower().endswith(_ARCHIVES):
        yield from _carried(content, path, place)
        return
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        yield Finding(Code.MAR509, place, f"pip cannot read {text!r}: {str(error).splitlines()[0]}", _hint(text))
        return
    name = canonicalize_name(requirement.name)
    exact = [
        specifier.version
        for specifier in requirement.specifier
        if specifier.operator in ("==", "===") and not specifier.version.endswith(".*")
    ]
    if constraint:
        if exact:
            seen.constrained.add(name)
        return
    if not line.options.hashes:
        seen.unhashed.append((place, text))
    if not exact:
        cause = f"{text!r} may be another version at every registration"
        yield Finding(Code.MAR508, place, cause, "pin it: NAME==VERSION")
    elif not requirement.marker:
        before = seen.pins.setdefault(name, exact[0])
        if not requirement.specifier.contains(before, prereleases=True):
            cause = f"{requirement.name} is to be {before} and {exact[0]}: pip refuses the file"
            yield Finding(Code.MAR509, place, cause, "leave one of the two lines")


def _editable(content: Content, place: str, text: str) -> Iterator[Finding]:
    if text.startswith(_VERSION_CONTROL) or text.startswith(("file:", "/")) or "${" in text:
        return
    if _NAMED_URL.match(text):
        return
    path = posixpath.normpath(text.partition("[")[0])
    if not _is_project(content, path):
        yield Finding(Code.MAR509, place, _no_project(path), "carry the project, or name a released version")


def _carried(content: Content, file: str, place: str) -> Iterator[Finding]:
    """Yield the problems of a requirement that is a file or folder; pip runs in the folder of the extracted archive."""
    path = posixpath.normpath(file)
    if path.startswith("/") or path in content.sizes:
        return  # the server's own, or carried
    if path != "." and not any(name.startswith(f"{path}/") for name in content.sizes):
        yield Finding(Code.MAR509, place, f"the archive has no {path}", _CARRY)
    elif not _is_project(content, path):
        yield Finding(Code.MAR509, place, _no_project(path), "carry the project, or name a released version")


def _is_project(content: Content, path: str) -> bool:
    files = ("pyproject.toml", "setup.py")
    return any(posixpath.normpath(posixpath.join(path, name)) in content.sizes for name in files)


def _no_project(path: str) -> str:
    return f"the archive has no project in {path}: neither pyproject.toml nor setup.py"


def _is_url(text: str) -> bool:
    scheme = text.partition(":")[0].lower()
    is_known = scheme in ("http", "https", "file", "ftp") or f"{scheme}:".startswith(_VERSION_CONTROL)
    return bool(_URL.match(text)) and is_known


def _hint(text: str) -> str:
    if re.match(r"[\w.\-]+\s*=[^=]", text):
        return "write == for a version: NAME==VERSION"
    return _ONE


def _name(cause: str) -> str:
    """Return the package that a finding of MAR508 concerns."""
    match = re.match(r"['\"]([\w.\-]+)", cause)
    return canonicalize_name(match[1]) if match else ""


def _joined(text: str) -> Iterator[tuple[int, str]]:
    """Yield lines, joined at a backslash at the end of a line; a comment ends a joined line."""
    first, parts = 0, []
    for number, line in enumerate(text.splitlines(), 1):
        comment = re.match(r"(^|\s+)#.*$", line)
        if not line.endswith("\\") or comment:
            # A comment that is joined to a word would become part of it.
            parts.append(f" {line}" if comment else line)
            yield first or number, "".join(parts)
            first, parts = 0, []
        else:
            first = first or number
            parts.append(line.rstrip("\\"))
    if parts:
        yield first, "".join(parts)


class _Parser(optparse.OptionParser):
    """pip's options for requirements files."""

    def error(self, msg: str) -> NoReturn:
        raise ValueError(msg)


def _parser() -> optparse.OptionParser:
    parser = _Parser(add_help_option=False)
    for destination, names in {
        "index": ("-i", "--index-url", "--pypi-url"),
        "extra_index": ("--extra-index-url",),
        "links": ("-f", "--find-links"),
        "constraints": ("-c", "--constraint"),
        "requirements": ("-r", "--requirement"),
        "editables": ("-e", "--editable"),
        "no_binary": ("--no-binary",),
        "only_binary": ("--only-binary",),
        "trusted": ("--trusted-host",),
        "features": ("--use-feature",),
        "global_options": ("--global-option",),
        "config_settings": ("-C", "--config-setting", "--config-settings"),
        "hashes": ("--hash",),
    }.items():
        parser.add_option(*names, dest=destination, action="append")
    for destination in ("no_index", "prefer_binary", "require_hashes", "pre"):
        parser.add_option(f"--{destination.replace('_', '-')}", dest=destination, action="store_true")
    return parser


def _parsed(number: int, line: str) -> Line:
    words = line.split(" ")
    count = next((index for index, word in enumerate(words) if word.startswith("-")), len(words))
    requirement, rest = " ".join(words[:count]).strip(), " ".join(words[count:])
    options = _parser().get_default_values()
    try:
        options, _ = _parser().parse_args(shlex.split(rest))
    except ValueError as error:
        return Line(number, requirement, options, f"pip cannot read {line[:80]!r}: {error}")
    for digest in options.hashes or ():
        algorithm, _, value = digest.partition(":")
        if algorithm not in ("sha256", "sha384", "sha512") or not value:
            return Line(number, requirement, options, f"pip does not know the hash {digest[:40]!r}")
    return Line(number, requirement, options)
