"""W3C Trace Context: the header ``traceparent``, with the ids of a request's trace and of its parent span.

https://www.w3.org/TR/trace-context/
"""

from __future__ import annotations

import re
from typing import NamedTuple

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
SAMPLED = 0x01
#: Level 2: the sender has generated a random id of the trace.
RANDOM = 0x02

_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_VERSION = "00"


class TraceParent(NamedTuple):
    """A valid ``traceparent``.

    Attributes:
        trace_id: 32 hexadecimal digits.
        span_id: 16 hexadecimal digits; the id of the caller's span.
        flags: `SAMPLED`, `RANDOM` and others, as bits.
    """

    trace_id: str
    span_id: str
    flags: int

    def __str__(self) -> str:
        return f"{_VERSION}-{self.trace_id}-{self.span_id}-{self.flags:02x}"


def parse(value: str) -> TraceParent | None:
    """Return the content of a header; None if it is malformed, in which case it must be ignored.

    Versions after 00 may have more fields after those of 00.
    """
    match = _FORM.fullmatch(value)
    if match is None:
        return None
    version, trace_id, span_id, flags, extension = match.groups()
    if version == "ff" or (version == _VERSION and extension) or not trace_id.strip("0") or not span_id.strip("0"):
        return None
    return TraceParent(trace_id, span_id, int(flags, 16))
