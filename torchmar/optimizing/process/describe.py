"""The packages of the Python that runs the steps."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any


def describe(job: Mapping[str, Any]) -> dict[str, Any]:
    """Describe this Python.

    Args:
        job: ``modules``: names that may be installed; ``distributions``: names for their versions.

    Returns:
        ``python``: its version; ``missing``: the modules that are not installed; ``versions``: those of the installed
        distributions.
    """
    return {
        "python": platform.python_version(),
        "missing": [name for name in job["modules"] if importlib.util.find_spec(name) is None],
        "versions": versions(job["distributions"]),
    }


def versions(names: Sequence[str]) -> dict[str, str]:
    """Return the versions of the distributions that are installed."""
    installed = {}
    for name in names:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed
