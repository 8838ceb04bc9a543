"""ASGI middleware (version 3), for HTTP requests and for WebSocket handshakes; needs asyncio."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from torchmar.guard.guard import Guard

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class AsgiGuard:
    """An ASGI application behind a guard: blocked requests get 403, or 503 if the model did not answer.

    Args:
        app: the application.
        guard: the guard.

    Examples:
        With Starlette or FastAPI: ``app.add_middleware(AsgiGuard, guard=Guard("http://127.0.0.1:8080"))``.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], guard: Guard) -> None:
        self.app = app
        self.guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or block it."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        body = b""
        if scope["type"] == "http" and (headers.get("content-length", "0") != "0" or "transfer-encoding" in headers):
            body, receive = await _read_start(receive, self.guard.max_body)
        verdict = await self.guard.check_async(scope.get("method", "GET"), target(scope), headers, body)
        if not verdict.blocked:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()  # websocket.connect, which a server sends before it accepts a message
            await send({"type": "websocket.close", "code": 1008})
        else:
            content = f"{HTTPStatus(verdict.status).phrase}\n".encode()
            length = str(len(content)).encode()
            response = [(b"content-type", b"text/plain"), (b"content-length", length)]
            await send({"type": "http.response.start", "status": verdict.status, "headers": response})
            await send({"type": "http.response.body", "body": content})


def target(scope: Scope) -> str:
    """Return path and query as the client sent them, if the server has kept them; otherwise the path, encoded again."""
    raw = scope.get("raw_path")
    path = raw.decode("latin-1") if raw else quote(scope["path"], safe="/:@!$&'()*+,;=~")
    query = scope.get("query_string", b"").decode("latin-1")
    # Some servers include the query in raw_path.
    return path.partition("?")[0] + (f"?{query}" if query else "")


async def _read_start(receive: Receive, size: int) -> tuple[bytes, Receive]:
    """Return the first bytes of the body, and a ``receive`` that returns the messages again."""
    messages: list[Message] = []
    start = b""
    while len(start) < size:
        message = await receive()
        messages.append(message)
        start += message.get("body", b"")
        if message["type"] != "http.request" or not message.get("more_body"):
            break
    messages.reverse()

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return start[:size], replay
