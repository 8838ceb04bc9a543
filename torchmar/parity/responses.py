"""Responses of two engines to one request, and their mismatches."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from torchmar import metrics
from torchmar.parity.engine_client import RawResponse

# What is another one every time: request ids, tokens, moments, processes, measurements.
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_VARIES = ("id", "pid", "startTime", "memoryUsage", "gpuUsage", "workerId")
_TOKEN = ("key", "expiration time")
# The length of a body that was compared says nothing more.
_HEADERS_LEFT_OUT = ("content-length", "date")
_SHOWN = 2000  # characters


@dataclass(frozen=True)
class Mismatch:
    """One respect in which two answers differ.

    Attributes:
        case: ``MODEL/CASE``.
        aspect: ``status``, ``reason`` (its words), ``body``, ``content type`` or the name of a header.
        first: of the first engine; empty for a header that it did not send.
        second: likewise, of the second.
    """

    case: str
    aspect: str
    first: str
    second: str


class _Metrics(list[str]):
    """What a server measures."""


def deviations(case: str, first: RawResponse, second: RawResponse, tolerance: float) -> list[Mismatch]:
    """Return in what two answers differ.

    JSON is compared as values, numbers within ``tolerance`` (absolute); Prometheus' text by the
    metrics and labels that are there; all else byte for byte.
    """
    found = []
    if first.status != second.status:
        found.append(Mismatch(case, "status", str(first.status), str(second.status)))
    elif first.reason and first.reason != second.reason:  # TorchServe has none where a handler answered
        found.append(Mismatch(case, "reason", first.reason, second.reason))
    bodies = [_read(document) for document in (first, second)]
    if not _equal(bodies[0], bodies[1], tolerance):
        found.append(Mismatch(case, "body", *(_shown(*pair) for pair in zip(bodies, reversed(bodies), strict=True))))
    for name in sorted({*first.headers, *second.headers} - set(_HEADERS_LEFT_OUT)):
        values = [_ID.sub("<id>", document.headers.get(name, "")) for document in (first, second)]
        if values[0] != values[1]:
            found.append(Mismatch(case, "content type" if name == "content-type" else name, *values))
    return found


def _read(document: RawResponse) -> Any:
    try:
        text = _ID.sub("<id>", document.body.decode())
    except UnicodeDecodeError:
        return document.body
    if text.startswith("# HELP"):
        return _Metrics(sorted({" ".join((one.name, *sorted(one.labels))) for one in metrics.parse(text)}))
    try:
        return _neutral(json.loads(text))
    except ValueError:
        return text


def _neutral(value: Any) -> Any:
    if isinstance(value, list):
        return [_neutral(item) for item in value]
    if not isinstance(value, dict):
        return value
    varies = _TOKEN if "expiration time" in value else _VARIES if "startTime" in value else ()
    return {name: f"<{name}>" if name in varies else _neutral(item) for name, item in value.items()}


def _equal(first: Any, second: Any, tolerance: float) -> bool:
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_equal(first[name], second[name], tolerance) for name in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(_equal(*pair, tolerance) for pair in zip(first, second, strict=True))
    if isinstance(first, float) and isinstance(second, float):
        same = first == second or (math.isnan(first) and math.isnan(second))
        return same or math.isclose(first, second, rel_tol=0, abs_tol=tolerance)
    return type(first) is type(second) and bool(first == second)


def _shown(value: Any, beside: Any) -> str:
    """Return the part of a body in which it differs from another one, as a text that fits into a report."""
    part = _part(value, beside)
    text = part if isinstance(part, str) else repr(part)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _part(value: Any, beside: Any) -> Any:
    if isinstance(value, _Metrics) and isinstance(beside, _Metrics):
        return [one for one in value if one not in beside]
    if isinstance(value, dict) and isinstance(beside, dict):
        differs = {name: item for name, item in value.items() if name not in beside or beside[name] != item}
        return {name: _part(item, beside[name]) if name in beside else item for name, item in differs.items()}
    if isinstance(value, list) and isinstance(beside, list) and len(value) == len(beside):
        return [_part(*pair) for pair in zip(value, beside, strict=True) if pair[0] != pair[1]]
    return value
