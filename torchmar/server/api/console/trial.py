"""Requests that a person sends to a model from the console, with the time of each step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from torchmar.server.api import bodies
from torchmar.server.api_error import ApiError
from torchmar.server.http import Request
from torchmar.server.models.registry import Version
from torchmar.server.request_ids import HEADER
from torchmar.server.telemetry.metrics import Metrics
from torchmar.server.telemetry.spans import JobSpans, RequestSpan, Span, new_id
from torchmar.server.workers.jobs import Job, Reply

Respond = Callable[[Request, int, bytes, str, Sequence[tuple[str, str]]], None]

_JSON = "application/json"
_PASSED = ("content-type", "accept")  # together with those of explanations: the headers for a handler
_EXPLAIN = "explain-"
# Spans whose sums are shown; the others, of the batch and of the whole handler, contain these.
_STEPS = ("queue", "preprocess", "inference", "postprocess", "explain", "handle")


def run(
    request: Request,
    request_id: str,
    version: Version,
    metrics: Metrics,
    respond: Respond,
    *,
    explain: bool,
    max_size: int,
    sample: tuple[bytes, str] | None = None,
) -> None:
    """Run a request, and send the model's answer; ``Server-Timing`` contains the milliseconds of its steps.

    Args:
        request: request with the body for the inference API.
        request_id: id for the response.
        version: the version of the model.
        metrics: counts the request.
        respond: sends the response.
        explain: whether to request an explanation.
        max_size: largest size of an answer in bytes.
        sample: body and content type of a sample, in place of those of the request.

    Raises:
        ApiError: the body does not match its type, or the version cannot run a request now.
    """
    content, content_type = sample or (request.content, request.header("content-type"))
    inputs = bodies.inputs(content, content_type)
    headers = {"content-type": content_type} if sample else passed_headers(request)
    headers |= {"content-length": str(len(content)), "url_path": "", "explain": str(explain)}
    trial = _Trial(request, request_id, version, metrics, respond, max_size)
    job = Job(request_id, headers, inputs, trial.on_reply, version.deadline(), trial.spans)
    request.on_disconnect = partial(setattr, job, "cancelled", True)
    try:
        version.pool.submit(job)
    except ApiError as error:
        trial.on_reply(Reply.of(error))


def passed_headers(request: Request) -> dict[str, str]:
    """Return the headers of a request that a handler uses."""
    return {
        name: value for name, value in request.headers if name.lower() in _PASSED or name.lower().startswith(_EXPLAIN)
    }


class _Trial:
    """A running request."""

    def __init__(
        self, request: Request, request_id: str, version: Version, metrics: Metrics, respond: Respond, max_size: int
    ) -> None:
        self._request, self._id, self._version, self._metrics = request, request_id, version, metrics
        self._respond, self._max_size = respond, max_size
        self._parts: list[bytes] = []
        self._since = time.monotonic()
        self._spans: list[Span] = []  # collected as for a traced request, so that its worker measures the steps
        span = RequestSpan(self._spans.append, "", new_id(128), None, None, self._since, {})
        self.spans = JobSpans(span)

    def on_reply(self, reply: Reply) -> None:
        """Collect a part of a streamed reply, or respond."""
        self._parts.append(reply.body)
        if reply.message:
            self._parts = [reply.body]
        size = sum(map(len, self._parts))
        if size > self._max_size:
            message = f"The answer has {size} bytes, more than max_response_size={self._max_size} allows."
            error = Reply.of(ApiError(500, "InternalServerException", message), more=reply.more)
            reply, self._parts = error, [error.body]
        if reply.more and not reply.message:
            return
        if self._request.on_disconnect is None:
            return  # a further part after an error
        self._request.on_disconnect = None
        seconds = time.monotonic() - self._since
        self._metrics.request(self._version.name, self._version.version, reply.status, seconds)
        # The steps arrive with the reply, but are recorded after it.
        asyncio.get_running_loop().call_soon(self._send, reply, seconds)

    def _send(self, reply: Reply, seconds: float) -> None:
        content_type = reply.content_type or next(
            (value for name, value in reply.headers.items() if name.lower() == "content-type"), _JSON
        )
        steps = {"total": seconds * 1000, **_steps_ms(self._spans)}
        timing = ", ".join(f"{name};dur={milliseconds:.3f}" for name, milliseconds in steps.items())
        headers = [(HEADER, self._id), ("Server-Timing", timing)]
        self._respond(self._request, reply.status, b"".join(self._parts), content_type, headers)


def _steps_ms(spans: Iterable[Span]) -> dict[str, float]:
    """Return the milliseconds of each step; if a step was repeated, the sum of its runs."""
    steps: dict[str, float] = {}
    for span in spans:
        if span.name in _STEPS:
            steps[span.name] = steps.get(span.name, 0.0) + (span.end - span.start) * 1000
    return steps
