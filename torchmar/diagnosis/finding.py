"""A finding of ``torchmar doctor``: severity, topic, cause and remedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "ok"]


@dataclass(frozen=True)
class Finding:
    """One fact about a machine or a server.

    Attributes:
        severity: ``error``: the server does not work, or other machines can misuse it; ``warning``: a problem
            may arise later; ``ok``: a fact.
        topic: java, python, ports, ...
        cause: a sentence, with the file or address in front if there is one.
        remedy: the correction; empty for ``ok``.
    """

    severity: Severity
    topic: str
    cause: str
    remedy: str = ""


def ok(topic: str, cause: str) -> Finding:
    """Return a finding that is no problem."""
    return Finding("ok", topic, cause)


def warning(topic: str, cause: str, remedy: str) -> Finding:
    """Return a finding of a problem that may arise later."""
    return Finding("warning", topic, cause, remedy)


def error(topic: str, cause: str, remedy: str) -> Finding:
    """Return a finding of a server that does not work, or that other machines can misuse."""
    return Finding("error", topic, cause, remedy)
