"""Names of models as the identifiers of platforms, which allow fewer characters."""

from __future__ import annotations

import hashlib
import re

_DIGITS = 6  # digits of the digest; enough for the models of one account


def identifier(name: str, *, allowed: str, longest: int, letter_first: bool = False) -> str:
    """Return an identifier that is unique for each name.

    A name with other characters, or a name that is too long, gets the beginning of its digest: otherwise ``my_model``
    and ``my-model`` would be the same object of the platform, and one model would replace the other.

    Args:
        name: name of a model or version.
        allowed: characters besides ``-``, as in a regular expression.
        longest: largest number of characters of the identifier.
        letter_first: whether it must begin with a letter.

    Examples:
        >>> identifier("digits", allowed="a-z0-9", longest=63)
        'digits'
        >>> identifier("My.Model", allowed="A-Za-z0-9", longest=63)
        'My-Model-dc0f71'
    """
    text = name if "A-Z" in allowed else name.lower()
    plain = re.sub(f"[^{allowed}-]+", "-", text).strip("-") or "model"
    if letter_first and not plain[0].isalpha():
        plain = f"m-{plain}"
    if plain == name and len(plain) <= longest:
        return plain
    digest = hashlib.sha256(name.encode()).hexdigest()[:_DIGITS]
    return f"{plain[: longest - _DIGITS - 1].rstrip('-')}-{digest}"
