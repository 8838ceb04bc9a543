"""torchmar.server.api.event_stream writes events that parse to the same text."""

from __future__ import annotations

import pytest

from torchmar.server.api import event_stream


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ("", (False, False)),
        ("*/*", (False, False)),
        ("application/json", (False, False)),
        ("text/event-stream", (True, True)),
        ("Text/Event-Stream; charset=utf-8", (True, True)),
        ("text/event-stream, application/json;q=0.5", (True, False)),
        ("text/event-stream, */*", (True, False)),
        ("application/json, text/event-stream;q=0", (False, False)),
        ("application/json;q=0, text/event-stream", (True, True)),
        ("x-text/event-stream", (False, False)),
    ],
)
def test_event_streams_are_accepted_by_name_only(header: str, accepted: tuple[bool, bool]) -> None:
    assert event_stream.accepted(header) == accepted


@pytest.mark.parametrize(
    ("data", "name", "expected"),
    [
        ("one", "", b"data: one\n\n"),
        ("one\ntwo\r\nthree\rfour", "", b"data: one\ndata: two\ndata: three\ndata: four\n\n"),
        (" led by a space\n", "", b"data:  led by a space\ndata: \n\n"),
        ("data: x\n\nevent: y", "", b"data: data: x\ndata: \ndata: event: y\n\n"),
        ("K\u00e4se\u2028\u0085", "", "data: K\u00e4se\u2028\u0085\n\n".encode()),
        ("{}", "error", b"event: error\ndata: {}\n\n"),
    ],
)
def test_each_line_of_the_data_is_a_line_of_the_event(data: str, name: str, expected: bytes) -> None:
    assert event_stream.event(data, name) == expected
