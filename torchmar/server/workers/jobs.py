"""A request to a model, over REST or gRPC, and its reply."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torchmar.server.api_error import ApiError
from torchmar.server.telemetry.spans import JobSpans
from torchmar.server.workers.deadline_error import DeadlineError


class Part(NamedTuple):
    """One part of a request; its name is ``body``, ``data``, or that of a form's field."""

    name: str
    content_type: str
    content: bytes | memoryview


class Reply(NamedTuple):
    """The reply of a worker, or of the server if no worker replies.

    Attributes:
        status: HTTP status.
        body: the response body, or the next part of a streamed one.
        content_type: content type; empty if the handler sets none.
        headers: other headers from the handler.
        more: whether parts of a streamed reply follow.
        message: error message, if the whole batch failed or no worker replied; otherwise empty.
    """

    status: int
    body: bytes
    content_type: str = ""
    headers: Mapping[str, str] = {}
    more: bool = False
    message: str = ""

    @classmethod
    def of(cls, error: ApiError, *, more: bool = False) -> Reply:
        """Return the reply with an error."""
        headers, message = error.headers, error.message
        return cls(error.status, error.body, "application/json", headers, more, message)


class Job:
    """A request to a worker.

    Args:
        request_id: its id in the logs and in ``x-request-id``.
        headers: headers for the handler, with ``explain`` or ``describe`` for these kinds of requests.
        inputs: the parts that become the handler's row.
        on_reply: called in the server's loop with the reply, or with every part of a streamed one.
        deadline: time at which the client stops waiting, by `time.monotonic`; None: never.
        spans: spans of its trace; None: it is not traced.

    Attributes:
        cancelled: set when the client has disconnected; the job is then not run, and ``on_reply`` is not called.
        since: time of arrival, by `time.monotonic`.
        batch_kind: requests of different kinds share no batch.
        isolated: set if the job may have ended a worker; it is then alone in its batch.
    """

    __slots__ = (
        "__weakref__",
        "batch_kind",
        "cancelled",
        "deadline",
        "headers",
        "inputs",
        "isolated",
        "on_reply",
        "request_id",
        "since",
        "spans",
    )

    def __init__(
        self,
        request_id: str,
        headers: Mapping[str, str],
        inputs: Sequence[Part],
        on_reply: Callable[[Reply], None],
        deadline: float | None = None,
        spans: JobSpans | None = None,
    ) -> None:
        self.request_id, self.headers, self.inputs = request_id, headers, inputs
        self.on_reply, self.deadline, self.spans = on_reply, deadline, spans
        self.cancelled = self.isolated = False
        self.batch_kind = "explain" if headers.get("explain") == "True" else "describe" if "describe" in headers else ""
        self.since = time.monotonic()

    def expired(self, now: float) -> bool:
        """Return whether it must not run: its client has disconnected, or no longer waits."""
        return self.cancelled or (self.deadline is not None and self.deadline < now)

    def expire(self) -> None:
        """Reply that the deadline has passed, or will before the job ends."""
        self.reply_error(DeadlineError("the request has waited longer than its client does"))

    def reply_error(self, error: ApiError) -> None:
        """Reply with an error, unless the client has disconnected."""
        if self.spans is not None:
            self.spans.fail(error.message)
        if not self.cancelled:
            self.on_reply(Reply.of(error))
