"""A request to a model, from REST or gRPC, and its reply."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torchmar.server.api_error import ApiError


class Part(NamedTuple):
    """One part of a request: ``body``, ``data``, or the name of a form's field."""

    name: str
    content_type: str
    content: bytes


class Reply(NamedTuple):
    """What a worker, or the server in its place, answers.

    Attributes:
        status: HTTP status.
        body: the answer, or the next part of a streamed one.
        content_type: empty where the handler named none.
        headers: what the handler has set besides.
        more: whether parts follow; the last one of a streamed answer says no.
        message: what is wrong, where the whole batch failed or no worker answered; empty otherwise.
    """

    status: int
    body: bytes
    content_type: str = ""
    headers: Mapping[str, str] = {}
    more: bool = False
    message: str = ""

    @classmethod
    def of(cls, refusal: ApiError, *, more: bool = False) -> Reply:
        """Return what a server answers that refuses a request."""
        headers, message = refusal.headers, refusal.message
        return cls(refusal.status, refusal.body, "application/json", headers, more, message)


class Job:
    """A request that waits for its answer.

    Args:
        request_id: what the logs and ``x-request-id`` call it.
        headers: of the request, as the handler sees them, with ``explain`` or ``describe`` where these are asked.
        inputs: the parts that become the handler's row.
        done: called in the server's loop with the answer, and with every part of a streamed one.
        deadline: when the answer is of no use any more, by `time.monotonic`; None: never.

    Attributes:
        cancelled: set when the client has gone; it is not run then, and ``done`` is not called.
        since: when it came, by `time.monotonic`.
        kind: requests of different kinds share no batch.
        alone: set when it may have ended a worker; it is asked alone then.
    """

    __slots__ = ("alone", "cancelled", "deadline", "done", "headers", "inputs", "kind", "request_id", "since")

    def __init__(
        self,
        request_id: str,
        headers: Mapping[str, str],
        inputs: Sequence[Part],
        done: Callable[[Reply], None],
        deadline: float | None = None,
    ) -> None:
        self.request_id, self.headers, self.inputs = request_id, headers, inputs
        self.done, self.deadline = done, deadline
        self.cancelled = self.alone = False
        self.kind = "explain" if headers.get("explain") == "True" else "describe" if "describe" in headers else ""
        self.since = time.monotonic()

    def over(self, now: float) -> bool:
        """Tell whether it is not to be run any more; a client that has waited too long is told so."""
        if self.deadline is not None and self.deadline < now:
            message = "the request has waited longer than its client does"
            self.refuse(ApiError(503, "ServiceUnavailableException", message))
            return True
        return self.cancelled

    def refuse(self, refusal: ApiError) -> None:
        """Answer its client, if there is one still, that it is not run."""
        if not self.cancelled:
            self.done(Reply.of(refusal))
