"""Server-sent events: whether a client accepts them, and the bytes of an event (WHATWG HTML, section 9.2).

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import re

CONTENT_TYPE = "text/event-stream"
#: Without this header, nginx would delay events until its buffer is full.
HEADERS = (("X-Accel-Buffering", "no"),)
# Only these characters end a line of an event stream, including a CR without LF.
_LINE_END = re.compile(r"\r\n|\n|\r")


def accepted(header: str) -> tuple[bool, bool]:
    """Return whether an ``Accept`` header names event streams, and whether it names nothing else.

    Wildcards do not count: most clients send ``*/*`` and do not read events.
    """
    ranges = [part.partition(";") for part in header.lower().split(",") if part.strip()]
    names = {name.strip() for name, _, parameters in ranges if not re.fullmatch(r"\s*q=0(\.0*)?\s*", parameters)}
    return CONTENT_TYPE in names, names == {CONTENT_TYPE}


def event(data: str, name: str = "") -> bytes:
    """Return one event: a line ``data:`` for each line of ``data``; ``name`` is its type, ``message`` if empty."""
    lines = [f"event: {name}"] if name else []
    lines += [f"data: {line}" for line in _LINE_END.split(data)]
    return ("\n".join(lines) + "\n\n").encode()
