"""A gRPC call to a model: request to job, reply to response."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence

from torchmar.server.api_error import ApiError
from torchmar.server.grpc.calls import Code, Context, Failed, code, details
from torchmar.server.models.registry import Registry, Version
from torchmar.server.models.startup import StillLoading
from torchmar.server.telemetry.metrics import Metrics
from torchmar.server.workers.jobs import Job, Part, Reply

_MOST = 4096  # characters of a handler's answer that stand in the details of an error


class ModelCall:
    """What services ask models by.

    Args:
        registry: the models.
        metrics: where requests are counted.
    """

    def __init__(self, registry: Registry, metrics: Metrics) -> None:
        self._registry, self._metrics = registry, metrics

    def find(self, name: str, version: str) -> Version:
        """Return a version; an empty one is the default.

        Raises:
            Failed: there is none; INTERNAL, as TorchServe says of models that are to predict.
        """
        try:
            return self._registry.find(name, version or None)
        except StillLoading:
            raise  # the call waits for it
        except ApiError as refusal:
            raise Failed(Code.INTERNAL, details(refusal)) from None

    async def whole(
        self, found: Version, inputs: Sequence[Part], context: Context, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """Return what a model answers; of an answer in parts, all of them.

        Raises:
            Failed: as `parts`.
        """
        return b"".join([part async for part in self.parts(found, inputs, context, headers)])

    async def parts(
        self, found: Version, inputs: Sequence[Part], context: Context, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[bytes]:
        """Yield what a model answers, in the parts in which its handler sends it.

        Args:
            found: the model's version.
            inputs: what the handler's row has.
            context: of the call.
            headers: what the handler sees as the request's headers; default: none.

        Raises:
            Failed: the handler, or the server in its place, answers with an error.
        """
        try:
            async with contextlib.aclosing(self.replies(found, inputs, context, headers or {})) as replies:
                async for reply in replies:
                    if failed := failure(reply):
                        raise failed
                    yield reply.body
        except ApiError as refusal:
            # As TorchServe says that there is no worker, or too many wait for one.
            raise Failed(Code.INTERNAL, f"{refusal}\nInternalServerException.()") from None

    async def replies(
        self, found: Version, inputs: Sequence[Part], context: Context, headers: Mapping[str, str]
    ) -> AsyncGenerator[Reply, None]:
        """Yield the replies of a model: one, or one for each part of an answer.

        The call's deadline is the request's, and a client that ends the call ends the request.

        Raises:
            ApiError: the model takes no requests now.
        """
        waiting: asyncio.Queue[Reply] = asyncio.Queue()
        job = Job(str(uuid.uuid4()), headers, inputs, waiting.put_nowait, _deadline(found, context))
        try:
            found.pool.submit(job)
        except ApiError as refusal:
            self._metrics.request(found.name, found.version, refusal.status)
            raise
        try:
            while True:
                reply = await waiting.get()
                if not reply.more:
                    seconds = time.monotonic() - job.since
                    self._metrics.request(found.name, found.version, reply.status, seconds)
                yield reply
                if not reply.more:
                    return
        finally:
            job.cancelled = True


def failure(reply: Reply) -> Failed | None:
    """Return the error that a reply is, with the handler's words; None if it is none.

    TorchServe answers so what a handler raises; what a handler sets for one request alone is OK there, whatever it is.
    """
    if reply.message and not 200 <= reply.status < 300:
        return Failed(code(reply.status), f"{reply.message}\norg.pytorch.serve.http.InternalServerException")
    if reply.status < 400:
        return None
    message, kind = words(reply)
    return Failed(code(reply.status), f"{message}\norg.pytorch.serve.http.{kind}")


def words(reply: Reply) -> tuple[str, str]:
    """Return the message of a handler's error, and the class of TorchServe's exception for it."""
    text = reply.body.decode("utf-8", "replace")
    kind = "BadRequestException" if reply.status < 500 else "InternalServerException"
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, dict):
        message = document.get("message") or document.get("error")
        named = document.get("type")
        if isinstance(message, str):
            return message, named if isinstance(named, str) and named.endswith("Exception") else kind
    return text[:_MOST] or f"the handler answered with the status {reply.status}", kind


def _deadline(found: Version, context: Context) -> float | None:
    ours, left = found.deadline(), context.time_remaining()
    theirs = None if left is None else time.monotonic() + left
    return min(ours, theirs) if ours is not None and theirs is not None else ours if theirs is None else theirs
