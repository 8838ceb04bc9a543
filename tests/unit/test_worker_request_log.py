"""torchmar.worker.process.request_log names the requests with a trace in the lines of a handler, and no others."""

from __future__ import annotations

import logging
from typing import Any

from torchmar.worker.process import request_log

TRACES = ["4bf92f3577b34da6a3ce929d0e0e4736", "0af7651916cd43dd8448eb211c80319c"]


class Processor:
    """The part of TorchServe's request processor that is read."""

    def __init__(self, **properties: Any) -> None:
        self._properties = properties

    def get_request_properties(self) -> dict[str, Any]:
        return self._properties


def line(message: str) -> str:
    formatter = request_log.RequestFormatter("%(message)s")
    return formatter.format(logging.LogRecord("m", logging.INFO, "f", 1, message, (), None))


def test_lines_name_the_requests_with_a_trace() -> None:
    assert line("before") == "before"
    parents = [f"00-{trace}-00f067aa0ba902b7-01" for trace in TRACES]
    processors = [
        Processor(Traceparent=parents[0]),
        Processor(body={"content-type": ""}, traceparent="malformed"),
        Processor(traceparent=parents[1]),
    ]
    request_log.begin(["a", "b", "c"], processors)
    try:
        logged = line("it runs")
    finally:
        request_log.end()
    assert logged == f"it runs [request_id=a trace_id={TRACES[0]}] [request_id=c trace_id={TRACES[1]}]"
    assert request_log.split(logged) == ("it runs", ["a", "c"], TRACES)
    assert line("after") == "after"


def test_other_lines_are_split_nowhere() -> None:
    for text in ("", "done", "[request_id=a trace_id=b]", f"x [request_id=a trace_id={TRACES[0]}] y", "]"):
        assert request_log.split(text) == (text, [], [])
