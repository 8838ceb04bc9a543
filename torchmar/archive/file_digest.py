"""The SHA-256 of a file as a whole, which ``sha256sum`` prints.

It differs from the digest of an archive's content (`torchmar.archive.digests`): the same members in another form, or
packed by another tool, are a different file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

_CHUNK = 1 << 20
_PREFIX = "sha256:"
_HEX = re.compile(r"[0-9a-f]{64}")
_FRAGMENT = re.compile(r"(.*)#sha256=(.*)", re.DOTALL)


def of(path: Path, cancelled: Callable[[], bool] = lambda: False) -> str:
    """Return the digest of a file, in hexadecimal.

    Args:
        path: path of the file.
        cancelled: called between chunks; True ends the reading.

    Raises:
        OSError: the file cannot be read.
        InterruptedError: ``cancelled`` returned true.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            if cancelled():
                raise InterruptedError
    return digest.hexdigest()


def parse(text: str) -> str:
    """Return the hexadecimal digits of ``sha256:HEX``, in lower case; empty for an empty text.

    Raises:
        ValueError: the text has another form.
    """
    if not text:
        return ""
    digits = text[len(_PREFIX) :].lower()
    if not text.lower().startswith(_PREFIX) or not _HEX.fullmatch(digits):
        raise ValueError(f"{text[:100]!r} is not sha256: and 64 hexadecimal digits, as sha256sum prints them")
    return digits


def show(digits: str) -> str:
    """Return ``sha256:HEX``."""
    return f"{_PREFIX}{digits}"


def split(url: str) -> tuple[str, str]:
    """Return a URL without a digest at its end (``#sha256=HEX``, as in pip), and the digits or an empty text.

    Raises:
        ValueError: ``#sha256=`` is not followed by 64 hexadecimal digits.
    """
    match = _FRAGMENT.fullmatch(url)
    if not match:
        return url, ""
    return match[1], parse(f"{_PREFIX}{match[2]}")
