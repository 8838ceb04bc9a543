"""Findings of checks: a code of the catalogue, a place, a cause and a remedy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import IO, Literal, Protocol

Severity = Literal["error", "warning"]


class Code(Enum):
    """The catalogue: every code, its severity and its meaning in one line.

    A code names the section in docs/checks.md and keeps its meaning for good. ``error``: a server cannot load or
    run the archive, whatever the handler does, or it is unsafe. ``warning``: it works, perhaps not as intended.
    ``error or warning``: depends on the archive; a finding has one of the two severities.
    MAR1xx layout, MAR2xx manifest, MAR3xx handler, MAR4xx weights, MAR5xx configuration, MAR6xx safety.
    """

    # layout
    MAR101 = ("error", "the file is no archive that TorchServe reads")
    MAR102 = ("error", "a member would be written outside of its folder")
    MAR103 = ("error", "a member is there twice")
    MAR104 = ("error", "a member is a link, a device or another special file")
    MAR105 = ("warning", "members differ only in case")
    MAR106 = ("error", "the archive is a zip bomb")
    MAR107 = ("error", "a member is damaged, or not what the directory says")
    MAR108 = ("error", "a member has another digest than SHA256SUMS lists")
    MAR109 = ("error", "a member is not listed in SHA256SUMS, or the listed one is missing")
    MAR110 = ("error", "a member is both a file and a folder")
    MAR111 = ("warning", "the archive is deflated")
    # manifest
    MAR201 = ("error", "there is no manifest")
    MAR202 = ("error", "the manifest is not TorchServe's schema")
    MAR203 = ("error", "the name or the version is none that an archive should have")
    MAR204 = ("error or warning", "the manifest names a file that is not there")
    MAR205 = ("warning", "the manifest has no version")
    MAR206 = ("error", "the runtime is none that TorchServe starts")
    MAR207 = ("error", "the recipe has a problem")
    MAR208 = ("warning", "a key of the manifest is given twice")
    # handler
    MAR301 = ("error", "the handler does not define exactly one class")
    MAR302 = ("error", "the handler does not define the function that is named")
    MAR303 = ("error or warning", "the handler is not Python of the supported version")
    MAR304 = ("error or warning", "a module has the name of one of Python's or TorchServe's")
    MAR305 = ("error", "an import cannot be satisfied")
    MAR306 = ("error or warning", "a method is missing or does not take what TorchServe calls it with")
    MAR307 = ("warning", "a module reaches for network or disk when it is imported")
    MAR308 = ("error or warning", "there is no such handler")
    MAR309 = ("warning", "an import is satisfied only if the server has the package")
    MAR310 = ("warning", "the function that is named is not there; TorchServe takes the only class")
    MAR311 = ("error", "the handler is TorchServe's for vLLM")
    # weights
    MAR401 = ("error or warning", "the weights are not what their suffix says")
    MAR402 = ("error", "a state dict has no model file, or a model file no single class")
    MAR403 = ("error", "the handler cannot load this format")
    MAR404 = ("error", "there is nothing to load")
    MAR405 = ("warning", "the weights were written by a newer torch than torchmar knows")
    MAR406 = ("error or warning", "the weights are empty or damaged")
    MAR407 = ("warning", "a model file has no weights to go with it")
    MAR408 = ("warning", "the weights need a package that the archive does not list")
    MAR409 = ("error or warning", "the optimised weights are not there")
    MAR410 = ("error or warning", "the optimised weights are not of these original weights")
    # configuration
    MAR501 = ("error", "the configuration is not YAML")
    MAR502 = ("warning", "TorchServe ignores a key that is meant for it")
    MAR503 = ("error or warning", "a value has the wrong type or is out of range")
    MAR504 = ("warning", "there is no responseTimeout")
    MAR505 = ("warning", "one of minWorkers and maxWorkers is missing")
    MAR506 = ("warning", "deviceIds names a GPU that the server does not have")
    MAR507 = ("warning", "a batch delay has no effect")
    MAR508 = ("warning", "a requirement is not pinned")
    MAR509 = ("warning", "the requirements cannot be read")
    MAR510 = ("warning", "only the handler can know the key")
    MAR511 = ("warning", "TorchServe's frontend does not read the configuration")
    MAR512 = ("warning", "a key is given twice")
    MAR513 = ("error or warning", "an option of the optimised weights is wrong")
    MAR514 = ("error", "the environment of the archive cannot be made")
    # safety
    MAR601 = ("error or warning", "a pickle would run code when it is loaded")
    MAR602 = ("error or warning", "a pickle cannot be read to its end")
    MAR603 = ("warning", "a pickle may run code when a handler loads it")

    @property
    def severities(self) -> str:
        """``error``, ``warning`` or ``error or warning``."""
        return str(self.value[0])

    @property
    def title(self) -> str:
        """The meaning of the code."""
        return str(self.value[1])


@dataclass(frozen=True)
class Finding:
    """One problem of an archive.

    Attributes:
        code: the kind of the problem.
        place: the member, with the line if one is known: ``handler.py:12``.
        cause: the problem, in a sentence.
        remedy: the correction, in a sentence.
        works: whether the archive may still work, for a code that is an error or a warning.
    """

    code: Code
    place: str
    cause: str
    remedy: str
    works: bool = False

    @property
    def severity(self) -> Severity:
        """``error`` or ``warning``."""
        return "warning" if self.works or self.code.severities == "warning" else "error"


def printable(finding: Finding) -> Finding:
    """Return a copy of a finding that is safe to print: its texts may contain names from an archive."""
    place, cause, remedy = (
        text if text.isprintable() else ascii(text) for text in (finding.place, finding.cause, finding.remedy)
    )
    return replace(finding, place=place, cause=cause, remedy=remedy)


def matches(code: Code, prefixes: Iterable[str]) -> bool:
    """Return whether a code is one of ``prefixes`` or begins with one of them (``MAR3``, in any case)."""
    return code.name.startswith(tuple(prefix.upper() for prefix in prefixes))


def unknown(prefixes: Iterable[str]) -> list[str]:
    """Return the prefixes that no code begins with."""
    return [prefix for prefix in prefixes if not prefix or not any(matches(code, [prefix]) for code in Code)]


class Content(Protocol):
    """The content to check: the members of an archive, of a folder or of a recipe, by name."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """The size of every member in bytes, uncompressed."""
        ...

    def open(self, name: str) -> IO[bytes]:
        """Open a member for reading; seekable."""
        ...
