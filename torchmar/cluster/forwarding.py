"""The management API across fronts: requests that are forwarded to the leading front, and run there."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable

from torchmar.cluster.calls import Call, Response
from torchmar.cluster.directory import ANNOUNCE_SECONDS
from torchmar.cluster.session import Session
from torchmar.server.api_error import ApiError
from torchmar.server.background_tasks import BackgroundTasks
from torchmar.server.http import Request
from torchmar.server.http.context import Context
from torchmar.server.http.limits import Limits
from torchmar.server.http.responses import ResponseHeads
from torchmar.server.telemetry import logs

_CONTENT_TYPE = re.compile(rb"\r\ncontent-type: ([^\r\n]*)")
_CONTEXT = Context(app=lambda request: None, limits=Limits(), heads=ResponseHeads())  # context of forwarded requests
_CALL_SECONDS = 3600.0  # a registration may download an archive


class Forwarding:
    """The calls of a front; see `torchmar.cluster.calls`.

    Args:
        session: the cluster.
        tasks: background tasks of the front.
        served: waits until the front serves a given revision of the shared state.
        published: waits until the changes of the front are published, and returns their revision.
    """

    def __init__(
        self,
        session: Session,
        tasks: BackgroundTasks,
        served: Callable[[int], Awaitable[None]],
        published: Callable[[], Awaitable[int]],
    ) -> None:
        self._session, self._tasks = session, tasks
        self._served, self._published = served, published

    async def forward(self, request: Request) -> None:
        """Send a request to the leading front, and its response to the client."""
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in request.headers]
        call = Call(0, request.method, request.target, headers, request.body)
        try:
            response: Response | None = await self._session.directory.call.remote(call, _CALL_SECONDS)
        except Exception as error:  # Ray raises exceptions of many classes
            response = None
            logs.SERVER.error("%s %s is not passed on: %s", request.method, request.path, error)
        if response is None:
            message = "No other server of the cluster has answered; whether it has done this is not known."
            request.respond_error(ApiError(503, "ServiceUnavailableException", message))
            return
        # Wait, so that the client's next request to this front sees its change.
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._served(response.revision), 5 * ANNOUNCE_SECONDS)
        request.respond(response.status, response.body, response.content_type, response.headers)

    async def run_calls(self, manage: Callable[[Request, list[str]], None]) -> None:
        """Run calls of other fronts while this one leads; does not return.

        Args:
            manage: responds to a request of the management API whose token has been checked.
        """
        directory, front = self._session.directory, self._session.front
        while True:
            try:
                call: Call | None = await directory.next_call.remote(front)
                may_run = call and await directory.take.remote(front, call.id)
            except Exception:  # Ray raises exceptions of many classes
                await asyncio.sleep(ANNOUNCE_SECONDS)
                continue
            if call and may_run:
                self._tasks.start(self._run(call, manage))

    async def _run(self, call: Call, manage: Callable[[Request, list[str]], None]) -> None:
        responded = asyncio.Event()
        writer = _Collected()
        fields = {name.lower(): value for name, value in reversed(call.headers)}
        request = Request(
            _CONTEXT,
            writer,
            lambda request: responded.set(),
            "cluster",
            call.method,
            call.target,
            call.headers,
            fields,
            http_1_0=False,
        )
        request.content = call.body
        try:
            manage(request, request.path.rstrip("/").split("/")[1:])
        except ApiError as error:
            request.respond_error(error)
        except Exception as error:
            request.fail(error)
        await responded.wait()
        revision = await self._published()
        content_type = _CONTENT_TYPE.search(bytes(writer.head))
        response = Response(
            request.status,
            content_type[1].decode("latin-1") if content_type else "",
            list(request.response_headers),
            bytes(writer.body),
            revision,
        )
        await self._session.directory.respond.remote(call.id, response)


class _Collected:
    """A `torchmar.server.http.request.ResponseWriter` that keeps the response."""

    def __init__(self) -> None:
        self.head, self.body = bytearray(), bytearray()

    def write_response(self, head: bytes, length: int, body: bytes) -> None:
        """Implement `ResponseWriter`, as all of these methods."""
        self.head += head
        self.body += body

    def write_head(self, head: bytes, *, close: bool = False) -> None:
        """Keep it."""
        self.head += head

    def write(self, data: bytes) -> None:
        """Keep it."""
        self.body += data

    def write_parts(self, parts: list[bytes]) -> None:
        """Keep it."""
        self.body += b"".join(parts)

    async def drain(self) -> None:
        """Return at once: there is no connection to wait for."""

    def abort(self) -> None:
        """Do nothing: the part that was written is the response."""
