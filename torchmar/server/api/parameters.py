"""Parameters of management requests: conversion of values to types, and suggestions for misspelt names.

TorchServe ignores an unknown parameter, so that a misspelt one would leave a default value in force.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torchmar.server.api_error import ApiError
from torchmar.server.http import Request
from torchmar.server.telemetry import logs

LIST = ("limit", "next_page_token")
DESCRIBE = ("customized",)
LABEL = ("version",)
ROUTE = ("model", "version")
SCALE = ("min_worker", "max_worker", "synchronous", "model_version")
# Names that other calls, configuration files and clients use for the same parameter.
_SYNONYMS = (
    {"workers", "min_worker", "min_workers", "initial_workers"},
    {"max_worker", "max_workers"},
    {"url", "model_url", "mar_name"},
    {"model_name", "name"},
)
_INT32 = 1 << 31
_LONGEST = 100  # characters of a name that are logged


def query(request: Request) -> dict[str, str]:
    """Return the parameters of a query; of repeated ones, the first."""
    return dict(reversed(request.query))


def check(names: Iterable[str], accepted: tuple[str, ...], call: str) -> None:
    """Raise an error for names that are probably misspelt; log other unknown names.

    Args:
        names: names of the parameters in a request.
        accepted: names of the call's parameters.
        call: name of the call for the log: ``POST /models``.

    Raises:
        ApiError: 400, with the name that the client probably meant.
    """
    for name in names:
        if name in accepted:
            continue
        if (similar := _similar(name, accepted)) is not None:
            raise ApiError(400, "BadRequestException", f"Unknown parameter {name[:_LONGEST]}; did you mean {similar}?")
        logs.SERVER.warning("%s: unknown parameter %r is ignored", call, name[:_LONGEST])


def number(values: Mapping[str, str], name: str, default: Any, *, least: int = -_INT32) -> Any:
    """Return a parameter that is a whole number, or ``default`` if it is missing or empty.

    Raises:
        ApiError: 400; it is not a whole number from ``least`` to the largest of 32 bits, TorchServe's type.
    """
    text = values.get(name)
    if not text:
        return default
    value = int(text) if re.fullmatch(r"[+-]?[0-9]{1,10}", text) else None
    if value is None or not least <= value < _INT32:
        message = f"Parameter {name} is {text[:_LONGEST]!r}, and must be a whole number from {least} to {_INT32 - 1}."
        raise ApiError(400, "BadRequestException", message)
    return value


def flag(values: Mapping[str, str], name: str, *, default: bool) -> bool:
    """Return a parameter that is ``true`` or ``false``, in upper or lower case.

    Raises:
        ApiError: 400, it is neither of them.
    """
    text = values.get(name)
    if text is None:
        return default
    if text.lower() not in ("true", "false"):
        raise ApiError(400, "BadRequestException", f"Parameter {name} is neither true nor false: {text[:_LONGEST]}")
    return text.lower() == "true"


def _similar(name: str, accepted: tuple[str, ...]) -> str | None:
    # batchSize, batch-size and "batch size" mean batch_size.
    plain = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).replace("-", "_").replace(" ", "_").lower()
    for names in _SYNONYMS:
        if plain in names and (matches := names.intersection(accepted)):
            return matches.pop()
    near = difflib.get_close_matches(plain, accepted, 1, 0.75)
    return near[0] if near else None
