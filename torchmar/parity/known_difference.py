"""A documented difference between the responses of TorchServe and of torchmar's server."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torchmar.parity.responses import Mismatch


@dataclass(frozen=True, kw_only=True)
class KnownDifference:
    """An intended difference; its texts are Markdown.

    Attributes:
        id: name of the difference in reports.
        what: subject of the difference.
        torchserve: the behaviour of TorchServe.
        builtin: the behaviour of the built-in server.
        reason: reason for the difference.
        cases: a regular expression that matches ``MODEL/CASE`` of the cases that show the difference; empty: no case
            shows it.
        aspects: a regular expression that matches the aspects of the responses that differ: ``status|body``.
        first: a regular expression to search for in TorchServe's value; empty: every value matches.
        second: a regular expression to search for in the built-in server's value.
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
