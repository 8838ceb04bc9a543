"""A listening socket and its connections."""

from __future__ import annotations

import asyncio
import os
import ssl

from torchmar.server.http import unix as unix_sockets
from torchmar.server.http.access import OnAccess
from torchmar.server.http.connection import Connection
from torchmar.server.http.context import App, Context, OnHead
from torchmar.server.http.limits import Limits
from torchmar.server.http.request import Request
from torchmar.server.http.responses import Cors, ResponseHeads

_BACKLOG = 2048
# Clients beyond the limit that get 503 at the same time; further ones are disconnected without a response.
_REJECTED = 256


async def listen(
    app: App,
    host: str,
    port: int,
    limits: Limits,
    *,
    tls: ssl.SSLContext | None = None,
    unix: str | None = None,
    cors: Cors | None = None,
    access: OnAccess | None = None,
    on_head: OnHead | None = None,
) -> Listener:
    """Listen, and pass requests to ``app`` until the listener is closed.

    Args:
        app: called in the loop with every request, in order on each connection; it may answer now or later.
            An `ApiError` that it raises is the response; any other exception is logged and answered with 500.
        host: name or address; for a name, all of its addresses.
        port: port number; 0: a free port.
        limits: limits on sizes and times of a client.
        tls: certificate and key; None: plain HTTP.
        unix: path of a Unix socket, in place of host and port.
        cors: rights of pages of other origins; their preflight requests are answered without the app.
        access: called with an event for every answered request.
        on_head: called in the loop with a request that has a long body, or whose client waits for 100 (Continue),
            before the body arrives. If it responds, the body is discarded, and ``app`` does not get the request. It is
            not called while earlier requests of the connection wait.

    Raises:
        OSError: the address cannot be bound.
    """
    context = Context(
        app=_with_preflights(app) if cors else app,
        limits=limits,
        heads=ResponseHeads(cors),
        on_head=on_head,
        on_access=access,
    )
    listener = Listener(context)
    await listener.open(host, port, tls, unix)
    return listener


class Listener:
    """A listening socket with its connections, returned by `listen`.

    Attributes:
        port: port number; 0 for a Unix socket.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self.port = 0
        self._connections: set[Connection] = set()
        self._rejected: set[Connection] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._unix, self._inode = "", 0
        # Often enough for the shortest timeout, but at most once a second.
        limits = context.limits
        shortest = min(limits.header_seconds, limits.body_seconds, limits.idle_seconds)
        self._interval = min(1.0, max(0.01, shortest / 4))

    async def open(self, host: str, port: int, tls: ssl.SSLContext | None, unix: str | None) -> None:
        """Begin to listen."""
        self._loop = loop = asyncio.get_running_loop()
        handshake_seconds = self._context.limits.header_seconds if tls else None

        def connection() -> Connection:
            return Connection(self._context, self._admit, self._discard)

        if unix is None:
            self._server = await loop.create_server(
                connection, host, port, ssl=tls, backlog=_BACKLOG, ssl_handshake_timeout=handshake_seconds
            )
            self.port = self._server.sockets[0].getsockname()[1]
        else:
            bound = unix_sockets.bind(unix)
            self._unix, self._inode = unix, os.lstat(unix).st_ino
            self._server = await loop.create_unix_server(
                connection, sock=bound, ssl=tls, backlog=_BACKLOG, ssl_handshake_timeout=handshake_seconds
            )
        self._timer = loop.call_later(self._interval, self._check_timeouts)

    async def close(self, grace: float) -> None:
        """Stop: close idle connections at once, and others after their current response, or after ``grace`` seconds."""
        self._context.closing = True
        self._server.close()
        if self._unix:
            unix_sockets.remove(self._unix, self._inode)
        for connection in self._all_connections():
            connection.shutdown()
        try:
            await asyncio.wait_for(self._empty.wait(), grace)
        except asyncio.TimeoutError:
            for connection in self._all_connections():
                connection.abort()
            await self._empty.wait()
        finally:
            self._timer.cancel()

    def _admit(self, connection: Connection) -> bool:
        """Add a new connection; return False if there are too many, so that the client gets 503."""
        context = self._context
        self._empty.clear()
        if not context.closing and len(self._connections) < context.limits.connections:
            self._connections.add(connection)
            return True
        respond = not context.closing and len(self._rejected) < _REJECTED
        self._rejected.add(connection)
        if not respond:
            connection.abort()
        return not respond

    def _discard(self, connection: Connection) -> None:
        """Remove a closed connection."""
        self._connections.discard(connection)
        self._rejected.discard(connection)
        if not self._connections and not self._rejected:
            self._empty.set()

    def _all_connections(self) -> list[Connection]:
        return [*self._connections, *self._rejected]

    def _check_timeouts(self) -> None:
        """Check all connections; one timer for all is cheaper than one for each."""
        self._timer = self._loop.call_later(self._interval, self._check_timeouts)
        now = self._loop.time()
        for connection in self._all_connections():
            connection.check_timeouts(now)


def _with_preflights(app: App) -> App:
    """Return an app that answers CORS preflight requests itself; all responses have the CORS headers."""

    def answer(request: Request) -> None:
        if request.method == "OPTIONS" and request.header("origin") and request.header("access-control-request-method"):
            request.respond(200)
        else:
            app(request)

    return answer
