"""Request ids, as in ``x-request-id`` and the logs."""

from __future__ import annotations

import itertools
import secrets
import uuid
from collections.abc import Iterator

HEADER = "x-request-id"


def request_ids() -> Iterator[str]:
    """Yield ids in the form of random UUIDs, with a counter as the last part, because random numbers are slow."""
    start = str(uuid.uuid4())[:24]
    for number in itertools.count(secrets.randbits(40)):
        yield f"{start}{number & 0xFFFFFFFFFFFF:012x}"
