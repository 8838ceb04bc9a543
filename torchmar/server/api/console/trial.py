"""Requests of the console to a model: one that a person sends to try it, with the time that each step took."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torchmar.server.api import bodies
from torchmar.server.api_error import ApiError
from torchmar.server.http import Request
from torchmar.server.models.registry import Version
from torchmar.server.request_ids import HEADER
from torchmar.server.telemetry.metrics import Metrics
from torchmar.server.workers.jobs import Job, Reply

Respond = Callable[[Request, int, bytes, str, Sequence[tuple[str, str]]], None]

_JSON = "application/json"
_PASSED = ("content-type", "accept")  # and those of explanations; nothing else concerns a handler
_EXPLAIN = "explain-"
_SAME = 0.1  # by how much the steps of a handler may differ from its time, as a share


def run(
    request: Request,
    request_id: str,
    version: Version,
    metrics: Metrics,
    respond: Respond,
    *,
    explain: bool,
    max_size: int,
) -> None:
    """Run a request, and respond with the model's answer; ``Server-Timing`` has the milliseconds of its steps.

    Args:
        request: its body is that of a request to the inference API.
        request_id: in the response.
        version: the version of the model.
        metrics: counts the request.
        respond: sends the response.
        explain: whether to ask for an explanation.
        max_size: bytes that an answer may have.

    Raises:
        ApiError: the body is not what its type says, or the version cannot run a request now.
    """
    inputs = bodies.inputs(request.content, request.header("content-type"))
    headers = {
        name: value for name, value in request.headers if name.lower() in _PASSED or name.lower().startswith(_EXPLAIN)
    }
    headers |= {"content-length": str(len(request.content)), "url_path": "", "explain": str(explain)}
    trial = _Trial(request, request_id, version, metrics, respond, max_size)
    job = Job(request_id, headers, inputs, trial.on_reply, version.deadline())
    trial.since = job.since
    request.on_disconnect = partial(setattr, job, "cancelled", True)
    try:
        version.pool.submit(job)
    except ApiError as error:
        trial.on_reply(Reply.of(error))


class _Trial:
    """A request that is being run."""

    def __init__(
        self, request: Request, request_id: str, version: Version, metrics: Metrics, respond: Respond, max_size: int
    ) -> None:
        self._request, self._id, self._version, self._metrics = request, request_id, version, metrics
        self._respond, self._max_size = respond, max_size
        self._parts: list[bytes] = []
        self.since = time.monotonic()

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
            return  # a part after an error
        self._request.on_disconnect = None
        seconds = time.monotonic() - self.since
        self._metrics.request(self._version.name, self._version.version, reply.status, seconds)
        # The metrics of the handler's steps arrive with the reply, and are recorded after it.
        asyncio.get_running_loop().call_soon(self._send, reply, seconds)

    def _send(self, reply: Reply, seconds: float) -> None:
        content_type = reply.content_type or next(
            (value for name, value in reply.headers.items() if name.lower() == "content-type"), _JSON
        )
        steps = {"total": seconds * 1000}
        if reply.batch_started:
            handler = reply.handler_seconds * 1000
            queue = max(0.0, (reply.batch_started - self.since) * 1000)
            steps |= {"queue": queue, "handler": handler, **_steps(self._metrics.stage_ms(self._version.name), handler)}
        timing = ", ".join(f"{name};dur={milliseconds:.3f}" for name, milliseconds in steps.items())
        self._respond(
            self._request,
            reply.status,
            b"".join(self._parts),
            content_type,
            [(HEADER, self._id), ("Server-Timing", timing)],
        )


def _steps(stage_ms: Mapping[str, float], handler_ms: float) -> Mapping[str, float]:
    """Return the steps of the handler; none if they are of other batches, and do not add up to its time."""
    return stage_ms if abs(sum(stage_ms.values()) - handler_ms) <= max(_SAME * handler_ms, 0.1) else {}
