"""Versions and their builds: ``2.1+b3`` is the third build of ``2.1``, with another configuration."""

from __future__ import annotations

import re
from typing import Any

from torchmar.archive.store import order

_BUILD = re.compile(r"\+b(\d+)$")


def base(version: str) -> str:
    """Return the version of a build; a version without a build number is returned unchanged."""
    return _BUILD.sub("", version)


def number(version: str) -> int:
    """Return the number of a build; 1 for a version without a build number."""
    match = _BUILD.search(version)
    return int(match[1]) if match else 1


def is_build(version: str) -> bool:
    """Return whether a version has a build number, which means that a deployment has derived it."""
    return _BUILD.search(version) is not None


def build(version: str, count: int) -> str:
    """Return the name of build ``count`` of a version."""
    return f"{base(version)}+b{count}"


def newest_first(version: str) -> tuple[list[Any], int]:
    """Return a sort key: 1.10 after 1.9, and builds by number; use it with ``reverse=True``."""
    return list(order(base(version))), number(version)
