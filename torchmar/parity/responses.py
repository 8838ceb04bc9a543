"""Responses of two engines to one request, and their mismatches."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from torchmar import metrics
from torchmar.parity.engine_client import RawResponse

# Values that differ in every response: request ids, tokens, times, processes, measurements.
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
# A time (RFC 3339), which a handler may return.
_TIME = re.compile(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)")
_VARIES = ("id", "pid", "startTime", "memoryUsage", "gpuUsage", "workerId")
_TOKEN = ("key", "expiration time")
# Without the length of the body: the body itself is compared.
_IGNORED_HEADERS = ("content-length", "date")
_MAX_SHOWN = 2000  # characters


@dataclass(frozen=True)
class Mismatch:
    """A difference between two responses in one aspect.

    Attributes:
        case: ``MODEL/CASE``.
        aspect: ``status``, ``reason`` (the reason phrase), ``body``, ``content type`` or the name of a header.
        first: the first engine's value; empty if it did not send the header.
        second: the second engine's value.
    """

    case: str
    aspect: str
    first: str
    second: str


class _Metrics(list[str]):
    """Names and labels of a server's metrics."""


def mismatches(case: str, first: RawResponse, second: RawResponse, tolerance: float) -> list[Mismatch]:
    """Return the differences between two responses.

    JSON is compared by value, numbers within the absolute ``tolerance``; Prometheus' text by the names and
    labels of metrics; anything else byte for byte.
    """
    result = []
    if first.status != second.status:
        result.append(Mismatch(case, "status", str(first.status), str(second.status)))
    elif first.reason and first.reason != second.reason:  # TorchServe sends no phrase with a handler's response
        result.append(Mismatch(case, "reason", first.reason, second.reason))
    bodies = [_read(response) for response in (first, second)]
    if not _equal(bodies[0], bodies[1], tolerance):
        result.append(Mismatch(case, "body", *(_shown(*pair) for pair in zip(bodies, reversed(bodies), strict=True))))
    for name in sorted({*first.headers, *second.headers} - set(_IGNORED_HEADERS)):
        values = [_ID.sub("<id>", response.headers.get(name, "")) for response in (first, second)]
        if values[0] != values[1]:
            result.append(Mismatch(case, "content type" if name == "content-type" else name, *values))
    return result


def _read(response: RawResponse) -> Any:
    try:
        text = _TIME.sub("<time>", _ID.sub("<id>", response.body.decode()))
    except UnicodeDecodeError:
        return response.body
    if text.startswith("# HELP"):
        return _Metrics(sorted({" ".join((sample.name, *sorted(sample.labels))) for sample in metrics.parse(text)}))
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


def _shown(value: Any, other: Any) -> str:
    """Return the part of a body that differs from another body, as text of limited length."""
    part = _part(value, other)
    text = part if isinstance(part, str) else repr(part)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def _part(value: Any, other: Any) -> Any:
    if isinstance(value, _Metrics) and isinstance(other, _Metrics):
        return [name for name in value if name not in other]
    if isinstance(value, dict) and isinstance(other, dict):
        differs = {name: item for name, item in value.items() if name not in other or other[name] != item}
        return {name: _part(item, other[name]) if name in other else item for name, item in differs.items()}
    if isinstance(value, list) and isinstance(other, list) and len(value) == len(other):
        return [_part(*pair) for pair in zip(value, other, strict=True) if pair[0] != pair[1]]
    return value
