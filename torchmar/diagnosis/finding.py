"""What the doctor finds: how grave it is, what it is about, what is the matter, how to mend it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "ok"]


@dataclass(frozen=True)
class Finding:
    """One fact about a machine or a server.

    Attributes:
        severity: an ``error`` keeps a server from working or lets others in; a ``warning`` will hurt some
            day; ``ok`` is a fact worth knowing.
        topic: what it is about: java, torch, ports, ...
        cause: a sentence, with the place in front where there is one.
        remedy: what to do; empty for what is well.
    """

    severity: Severity
    topic: str
    cause: str
    remedy: str = ""


def ok(topic: str, cause: str) -> Finding:
    """Return a fact."""
    return Finding("ok", topic, cause)


def warning(topic: str, cause: str, remedy: str) -> Finding:
    """Return what will hurt some day."""
    return Finding("warning", topic, cause, remedy)


def error(topic: str, cause: str, remedy: str) -> Finding:
    """Return what keeps a server from working, or lets others in."""
    return Finding("error", topic, cause, remedy)
