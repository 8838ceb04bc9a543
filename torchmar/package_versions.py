"""The versions of installed packages, read without importing the packages."""

from __future__ import annotations


def installed_version(package: str) -> str:
    """Return the version of a package; empty if it is not installed.

    Examples:
        >>> installed_version("no-such-package")
        ''
    """
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return ""
