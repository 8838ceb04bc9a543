"""A gRPC call to a model: from request to job, and from reply to response."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence

from torchmar.server.api_error import ApiError
from torchmar.server.grpc import call_spans
from torchmar.server.grpc.calls import CallError, Code, Context, code, details
from torchmar.server.models.registry import Registry, Version
from torchmar.server.models.startup import StillLoading
from torchmar.server.request_ids import request_ids
from torchmar.server.telemetry.metrics import Metrics
from torchmar.server.telemetry.spans import JobSpans
from torchmar.server.workers.deadline_error import DeadlineError
from torchmar.server.workers.jobs import Job, Part, Reply
from torchmar.worker.process.trace_context import TRACEPARENT, TRACESTATE

_TRACE = (TRACEPARENT, TRACESTATE)
_MAX_DETAILS = 4096  # characters of a handler's response in the details of an error


class ModelCall:
    """Calls from the services to models.

    Args:
        registry: the models.
        metrics: counts the requests.
    """

    def __init__(self, registry: Registry, metrics: Metrics) -> None:
        self._registry, self._metrics = registry, metrics
        self._ids = request_ids()

    def find(self, name: str, version: str) -> Version:
        """Return a version of a model; the default one if ``version`` is empty.

        Raises:
            CallError: INTERNAL, as for predictions by TorchServe: the version does not exist.
        """
        try:
            return self._registry.find(name, version or None)
        except StillLoading:
            raise  # the call waits for the model
        except ApiError as error:
            raise CallError(Code.INTERNAL, details(error)) from None

    def admit(self, version: Version, context: Context) -> None:
        """Check whether a prediction can run now, before the tensors of its request are converted.

        Raises:
            ApiError: 503, it cannot run.
        """
        try:
            version.pool.admit("", _deadline(version, context))
        except ApiError as error:
            self._metrics.request(version.name, version.version, error.status)
            raise

    async def whole(
        self, version: Version, inputs: Sequence[Part], context: Context, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """Return the response of a model; the parts of a streamed one are joined.

        Raises:
            CallError: for the reasons of `parts`.
        """
        return b"".join([part async for part in self.parts(version, inputs, context, headers)])

    async def parts(
        self, version: Version, inputs: Sequence[Part], context: Context, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[bytes]:
        """Yield the response of a model, in the parts that its handler sends.

        Args:
            version: the model's version.
            inputs: the parts of the handler's row.
            context: context of the call.
            headers: headers of the request for the handler; default: none.

        Raises:
            CallError: the handler, or the server in its place, responds with an error.
        """
        try:
            async with contextlib.aclosing(self.replies(version, inputs, context, headers or {})) as replies:
                async for reply in replies:
                    if error := reply_error(reply):
                        raise error
                    yield bytes(reply.body)
        except DeadlineError as error:
            raise CallError(Code.UNAVAILABLE, details(error)) from None
        except ApiError as error:
            # TorchServe's error if there is no worker, or if the queue is full.
            raise CallError(Code.INTERNAL, f"{error}\nInternalServerException.()") from None

    async def replies(
        self, version: Version, inputs: Sequence[Part], context: Context, headers: Mapping[str, str]
    ) -> AsyncGenerator[Reply, None]:
        """Yield the replies of a model: one, or one for each part of a streamed response.

        The deadline of the call is that of the request, and a client that ends the call ends the request. From its
        metadata, the handler gets the trace context, as headers.

        Raises:
            ApiError: the model accepts no requests now.
        """
        replies: asyncio.Queue[Reply] = asyncio.Queue()
        trace = {name: str(value) for name, value in context.invocation_metadata() or () if name in _TRACE}
        job = Job(next(self._ids), headers, inputs, replies.put_nowait, _deadline(version, context))
        if (span := call_spans.current.get()) is not None:
            trace[TRACEPARENT] = span.traceparent
            span.attributes |= {
                "torchmar.model.name": version.name,
                "torchmar.model.version": version.version,
                "torchmar.request.id": job.request_id,
            }
            job.spans = JobSpans(span)
        if trace:
            job.headers = {**headers, **trace}
        try:
            version.pool.submit(job)
        except ApiError as error:
            self._metrics.request(version.name, version.version, error.status)
            raise
        try:
            while True:
                reply = await replies.get()
                if not reply.more:
                    seconds = time.monotonic() - job.since
                    self._metrics.request(version.name, version.version, reply.status, seconds)
                yield reply
                if not reply.more:
                    return
        finally:
            job.cancelled = True


async def described(version: Version, context: Context) -> None:
    """Wait for the handler's tensor signature, as long as the call lasts and the model may still load."""
    if version.pool.description:
        return
    remaining = context.time_remaining()
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(version.pool.described(), remaining)


def reply_error(reply: Reply) -> CallError | None:
    """Return the error for a reply with an error status, with the handler's message; None for other replies.

    In TorchServe, exceptions of a handler have an error status; a status that the handler sets for one request is OK.
    """
    if reply.message and not 200 <= reply.status < 300:
        return CallError(code(reply.status), f"{reply.message}\norg.pytorch.serve.http.InternalServerException")
    if reply.status < 400:
        return None
    message, kind = error_message(reply)
    return CallError(code(reply.status), f"{message}\norg.pytorch.serve.http.{kind}")


def error_message(reply: Reply) -> tuple[str, str]:
    """Return the message of a handler's error, and the class of TorchServe's exception for it."""
    text = reply.body.decode("utf-8", "replace")
    kind = "BadRequestException" if reply.status < 500 else "InternalServerException"
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, dict):
        message = document.get("message") or document.get("error")
        type_name = document.get("type")
        if isinstance(message, str):
            return message, type_name if isinstance(type_name, str) and type_name.endswith("Exception") else kind
    return text[:_MAX_DETAILS] or f"the handler responded with status {reply.status}", kind


def _deadline(version: Version, context: Context) -> float | None:
    """Return the earlier of the server's deadline and the client's; None if there is neither."""
    remaining = context.time_remaining()
    deadlines = (version.deadline(), None if remaining is None else time.monotonic() + remaining)
    return min((deadline for deadline in deadlines if deadline is not None), default=None)
