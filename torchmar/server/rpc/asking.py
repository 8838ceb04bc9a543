"""A request that came over gRPC on its way to a model and back."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence

from torchmar.server.jobs import Input, Job, Reply
from torchmar.server.metrics import Metrics
from torchmar.server.refusal import Refusal
from torchmar.server.registry import Registry, Version
from torchmar.server.rpc.calls import Code, Context, Failed, code, details


class Asking:
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
        except Refusal as refusal:
            raise Failed(Code.INTERNAL, details(refusal)) from None

    async def whole(
        self, found: Version, inputs: Sequence[Input], context: Context, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """Return what a model answers; of an answer in parts, all of them.

        Raises:
            Failed: as `parts`.
        """
        return b"".join([part async for part in self.parts(found, inputs, context, headers)])

    async def parts(
        self, found: Version, inputs: Sequence[Input], context: Context, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[bytes]:
        """Yield what a model answers, in the parts in which its handler sends it.

        The call's deadline is the request's, and a client that ends the call ends the request.

        Args:
            found: the model's version.
            inputs: what the handler's row has.
            context: of the call.
            headers: what the handler sees as the request's headers; default: none.

        Raises:
            Failed: the handler, or the server in its place, answers with an error.
        """
        async with contextlib.aclosing(self._replies(found, inputs, context, headers or {})) as replies:
            async for reply in replies:
                # Without a message it is the handler's own answer, whatever status it has given it.
                if reply.message and not 200 <= reply.status < 300:
                    raise Failed(code(reply.status), f"{reply.message}\norg.pytorch.serve.http.InternalServerException")
                yield reply.body

    async def _replies(
        self, found: Version, inputs: Sequence[Input], context: Context, headers: Mapping[str, str]
    ) -> AsyncGenerator[Reply, None]:
        waiting: asyncio.Queue[Reply] = asyncio.Queue()
        job = Job(str(uuid.uuid4()), headers, inputs, waiting.put_nowait, _deadline(found, context))
        try:
            found.pool.submit(job)
        except Refusal as refusal:
            self._metrics.request(found.name, found.version, refusal.status)
            raise Failed(Code.INTERNAL, f"{refusal}\nInternalServerException.()") from None
        try:
            while True:
                reply = await waiting.get()
                if not reply.more:
                    self._metrics.request(found.name, found.version, reply.status)
                yield reply
                if not reply.more:
                    return
        finally:
            job.cancelled = True


def _deadline(found: Version, context: Context) -> float | None:
    ours, left = found.deadline(), context.time_remaining()
    theirs = None if left is None else time.monotonic() + left
    return min(ours, theirs) if ours is not None and theirs is not None else ours if theirs is None else theirs
