"""Log lines of a handler, with the ids of the requests that it is running.

Only requests with a trace (`trace_context`) have ids in the lines; lines of others are the same as TorchServe's:
``the message [request_id=... trace_id=...]``. For a batch, all such requests are named, because the handler logs for
all.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

from .trace_context import TRACEPARENT, parse

# The requests that the handler is running: their ids and TorchServe's request processors.
_Requests = tuple[Sequence[str], Sequence[Any]]
_NONE: _Requests = ((), ())
_running = _NONE

_ID = r" \[request_id=([^ \]]+) trace_id=([0-9a-f]{32})\]"
_IDS = re.compile(rf"(?:{_ID})+$")


def begin(ids: Sequence[str], processors: Sequence[Any]) -> None:
    """Add these requests to log lines until `end`."""
    global _running
    _running = (ids, processors)


def end() -> None:
    """Add no requests to log lines."""
    global _running
    _running = _NONE


class RequestFormatter(logging.Formatter):
    """Appends the ids to messages, before tracebacks."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the message with the ids."""
        return super().formatMessage(record) + _suffix()


def split(line: str) -> tuple[str, list[str], list[str]]:
    """Return the message of a line, the ids of its requests, and the ids of their traces."""
    match = _IDS.search(line) if line.endswith("]") else None
    if match is None:
        return line, [], []
    pairs = re.findall(_ID, match[0])
    return line[: match.start()], [request_id for request_id, _ in pairs], [trace_id for _, trace_id in pairs]


def _suffix() -> str:
    """Return a text with the ids of the requests; empty if none has a trace."""
    suffix = ""
    for request_id, processor in zip(*_running, strict=False):
        for name, value in processor.get_request_properties().items():
            # In the client's case, which varies: Go sends Traceparent.
            if name.lower() == TRACEPARENT and isinstance(value, str) and (parent := parse(value)):
                suffix += f" [request_id={request_id} trace_id={parent.trace_id}]"
                break
    return suffix
