"""A parser of event streams by the grammar of WHATWG HTML, section 9.2, as in browsers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Event(NamedTuple):
    """A dispatched event."""

    type: str
    data: str


def parse(chunks: Iterable[bytes]) -> Iterator[Event]:
    """Yield each event of a stream as soon as its empty line is received; an incomplete event at the end is dropped."""
    kind = ""
    data: list[str] = []
    for line in _lines(chunks):
        if not line:
            if data:
                yield Event(kind or "message", "\n".join(data))
            kind, data = "", []
            continue
        field, colon, value = line.partition(":")
        if colon and not field:
            continue  # a comment
        value = value.removeprefix(" ")
        if field == "event":
            kind = value
        elif field == "data":
            data.append(value)


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Yield the lines of a stream, which end with LF, CRLF or CR."""
    rest = b""
    for chunk in chunks:
        *lines, rest = re.split(rb"\r\n|\n|\r(?!\Z)", rest + chunk)
        yield from (line.decode() for line in lines)
