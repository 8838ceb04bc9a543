"""torchmar.worker.process.trace_context reads traceparent as the W3C's recommendation has it."""

from __future__ import annotations

import pytest

from torchmar.worker.process.trace_context import TraceParent, parse

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"


def test_a_valid_one_is_read_and_written() -> None:
    assert parse(GOOD) == TraceParent(TRACE, SPAN, 1)
    assert str(parse(GOOD)) == GOOD
    assert parse(f"cc-{TRACE}-{SPAN}-03-what.later.versions.add") == TraceParent(TRACE, SPAN, 3)


@pytest.mark.parametrize(
    "value",
    [
        "",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01-",
        f"00-{TRACE}-{SPAN}-01-more",
        f"cc-{TRACE}-{SPAN}-01.more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}g-{SPAN}-01",
        f"0\u0660-{TRACE}-{SPAN}-01",
        f"{GOOD}\n",
    ],
)
def test_a_malformed_one_is_none(value: str) -> None:
    assert parse(value) is None
