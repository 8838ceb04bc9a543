"""The files of new archives and projects, with ``${name}`` for a value."""

from __future__ import annotations

import string
from pathlib import Path

_FOLDER = Path(__file__).parent


def render(template: str, **values: str) -> bytes:
    """Return the text of a template with its values.

    Args:
        template: its file name, without ``.tmpl``.
        values: value of every placeholder.
    """
    text = string.Template((_FOLDER / f"{template}.tmpl").read_text(encoding="utf-8"))
    return text.substitute(values).encode()
