"""Keras without packages that it imports only for code that no model needs, which takes a second."""

from __future__ import annotations

import sys

for _name in ("matplotlib", "sklearn"):
    # In sys.modules, None stands for a module that must not be imported.
    sys.modules.setdefault(_name, None)  # type: ignore[arg-type]

import keras  # noqa: E402

__all__ = ["keras"]
