"""A documented difference between the responses of TorchServe and of the built-in server."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torchmar.parity.responses import Mismatch


@dataclass(frozen=True, kw_only=True)
class KnownDifference:
    """An intended difference; its texts are Markdown.

    Attributes:
        id: its name in reports.
        what: the subject.
        torchserve: the behaviour of TorchServe.
        builtin: the behaviour of the built-in server.
        reason: why they differ.
        cases: a regular expression that matches ``MODEL/CASE`` of the cases that show it; empty: no case does.
        aspects: a regular expression that matches the aspects of the responses that differ: ``status|body``.
        first: a regular expression to search in TorchServe's value; empty matches every value.
        second: a regular expression to search in the built-in server's value.
    """

    id: str
    what: str
    torchserve: str
    builtin: str
    reason: str
    cases: str = ""
    aspects: str = ""
    first: str = ""
    second: str = ""

    def explains(self, mismatch: Mismatch) -> bool:
        """Return whether a mismatch is this difference."""
        return bool(
            re.fullmatch(self.cases, mismatch.case)
            and re.fullmatch(self.aspects, mismatch.aspect)
            and re.search(self.first, mismatch.first)
            and re.search(self.second, mismatch.second)
        )
