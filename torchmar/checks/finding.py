"""What a check finds: a code of the catalogue, a place, a cause, a remedy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import IO, Literal, Protocol

Severity = Literal["error", "warning"]


class Code(Enum):
    """The catalogue: every code, how grave it is, and what it stands for in one line.

    A code names the section in docs/checks.md and stays what it is for good.
    MAR1xx layout, MAR2xx manifest, MAR3xx handler, MAR4xx weights, MAR5xx configuration, MAR6xx safety.
    """

    # layout
    MAR101 = ("error", "the file is no archive that TorchServe reads")
    MAR102 = ("error", "a member would be written outside of its folder")
    MAR103 = ("error", "a member is there twice")
    MAR104 = ("error", "a member is a link, a device or another special file")
    MAR105 = ("error", "members differ only in case")
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
    MAR204 = ("error", "the manifest names a file that is not there")
    MAR205 = ("warning", "the manifest has no version")
    MAR206 = ("error", "the runtime is none that TorchServe starts")
    MAR207 = ("error", "the recipe has a problem")
    # handler
    MAR301 = ("error", "the handler does not define exactly one class")
    MAR302 = ("error", "the handler does not define the function that is named")
    MAR303 = ("error", "the handler is not Python of the supported version")
    MAR304 = ("error", "a module has the name of one of Python's or TorchServe's")
    MAR305 = ("error", "an import cannot be satisfied")
    MAR306 = ("error", "a method is missing or does not take what TorchServe calls it with")
    MAR307 = ("warning", "a module reaches for network or disk when it is imported")
    MAR308 = ("error", "there is no such handler")
    MAR309 = ("warning", "an import is satisfied only if the server has the package")
    MAR310 = ("warning", "the function that is named is not there; TorchServe takes the only class")
    # weights
    MAR401 = ("error", "the weights are not what their suffix says")
    MAR402 = ("error", "a state dict has no model file, or a model file no single class")
    MAR403 = ("error", "the handler cannot load this format")
    MAR404 = ("error", "there is nothing to load")
    MAR405 = ("warning", "the weights were written by a newer torch than torchmar knows")
    MAR406 = ("error", "the weights are empty or damaged")
    MAR407 = ("warning", "a model file has no weights to go with it")
    # configuration
    MAR501 = ("error", "the configuration is not YAML")
    MAR502 = ("error", "TorchServe ignores a key that is meant for it")
    MAR503 = ("error", "a value has the wrong type or is out of range")
    MAR504 = ("warning", "there is no responseTimeout")
    MAR505 = ("error", "one of minWorkers and maxWorkers is missing")
    MAR506 = ("warning", "deviceIds names a GPU that the server does not have")
    MAR507 = ("warning", "a batch delay has no effect")
    MAR508 = ("warning", "a requirement is not pinned")
    MAR509 = ("error", "the requirements cannot be read")
    MAR510 = ("warning", "only the handler can know the key")
    # safety
    MAR601 = ("error", "a pickle would run code when it is loaded")
    MAR602 = ("error", "a pickle cannot be read to its end")
    MAR603 = ("warning", "a pickle may run code when a handler loads it")

    @property
    def severity(self) -> Severity:
        """``error`` or ``warning``."""
        return "error" if self.value[0] == "error" else "warning"

    @property
    def title(self) -> str:
        """What the code stands for."""
        return str(self.value[1])


@dataclass(frozen=True)
class Finding:
    """One problem: ``place`` is a member (``handler.py:12`` with a line), ``cause`` and ``remedy`` are sentences."""

    code: Code
    place: str
    cause: str
    remedy: str


class Content(Protocol):
    """What is checked: the members of an archive, of a folder or of a recipe, by name."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Bytes of every member when extracted."""
        ...

    def open(self, name: str) -> IO[bytes]:
        """Open a member for reading; seekable."""
        ...
