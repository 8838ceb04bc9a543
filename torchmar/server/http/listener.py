"""A listening socket and its connections."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable

from torchmar.server.http import unix as unix_sockets
from torchmar.server.http.access import OnAccess, ToldRequest
from torchmar.server.http.connection import Connection
from torchmar.server.http.limits import Limits
from torchmar.server.http.request import Request
from torchmar.server.http.responses import Cors, ResponseHeads

App = Callable[[Request], None]

_BACKLOG = 2048
# Clients beyond the limit that get 503 at a time; more are disconnected without a response.
_TURNED_AWAY = 256


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
) -> Listener:
    """Listen, and hand requests to ``app`` until the listener is closed.

    Args:
        app: called in the loop with every request, in their order on each connection; it may answer now or later.
            An `ApiError` that it raises is the answer; any other exception is logged and answered with 500.
        host: name or address; all addresses of a name are listened on.
        port: 0 for one that is free.
        limits: on what clients may.
        tls: certificate and key; none for plain HTTP.
        unix: path of a socket to listen on in place of host and port.
        cors: what pages of other origins may do; they are answered without the app where they ask first.
        access: called with every request that was answered.

    Raises OSError if the address cannot be listened on.
    """
    listener = Listener(_answering_preflights(app) if cors else app, limits, ResponseHeads(cors), access)
    await listener.open(host, port, tls, unix)
    return listener


class Listener:
    """What `listen` returns.

    Attributes:
        port: the port listened on; 0 with a Unix socket.
        closing: whether every answer is the last of its connection.
    """

    def __init__(self, app: App, limits: Limits, heads: ResponseHeads, access: OnAccess | None = None) -> None:
        self.app, self.limits, self.heads, self.access = app, limits, heads, access
        # Access events cost time only where there is a callback.
        self.request: type[Request] = ToldRequest if access else Request
        self.port = 0
        self.closing = False
        self._connections: set[Connection] = set()
        self._turned_away: set[Connection] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._unix, self._inode = "", 0
        # Often enough for the shortest limit, once a second at most.
        shortest = min(limits.header_seconds, limits.body_seconds, limits.idle_seconds)
        self._every = min(1.0, max(0.01, shortest / 4))

    async def open(self, host: str, port: int, tls: ssl.SSLContext | None, unix: str | None) -> None:
        """Begin to listen."""
        self._loop = loop = asyncio.get_running_loop()
        patience = self.limits.header_seconds if tls else None

        def connection() -> Connection:
            return Connection(self)

        if unix is None:
            self._server = await loop.create_server(
                connection, host, port, ssl=tls, backlog=_BACKLOG, ssl_handshake_timeout=patience
            )
            self.port = self._server.sockets[0].getsockname()[1]
        else:
            bound = unix_sockets.bind(unix)
            self._unix, self._inode = unix, os.lstat(unix).st_ino
            self._server = await loop.create_unix_server(
                connection, sock=bound, ssl=tls, backlog=_BACKLOG, ssl_handshake_timeout=patience
            )
        self._timer = loop.call_later(self._every, self._sweep)

    async def close(self, grace: float) -> None:
        """Stop: idle connections at once, those with a request when it is answered, or after ``grace`` seconds."""
        self.closing = True
        self._server.close()
        if self._unix:
            unix_sockets.remove(self._unix, self._inode)
        for connection in self._everybody():
            connection.retire()
        try:
            await asyncio.wait_for(self._empty.wait(), grace)
        except asyncio.TimeoutError:
            for connection in self._everybody():
                connection.cut()
            await self._empty.wait()
        finally:
            self._timer.cancel()

    def admit(self, connection: Connection) -> bool:
        """Count a new connection; return False if there are too many, and the client gets 503."""
        self._empty.clear()
        if not self.closing and len(self._connections) < self.limits.connections:
            self._connections.add(connection)
            return True
        respond = not self.closing and len(self._turned_away) < _TURNED_AWAY
        self._turned_away.add(connection)
        if not respond:
            connection.cut()
        return not respond

    def discard(self, connection: Connection) -> None:
        """Count a connection out."""
        self._connections.discard(connection)
        self._turned_away.discard(connection)
        if not self._connections and not self._turned_away:
            self._empty.set()

    def _everybody(self) -> list[Connection]:
        return [*self._connections, *self._turned_away]

    def _sweep(self) -> None:
        """Look for slow clients: one timer for all is cheaper than one for each."""
        self._timer = self._loop.call_later(self._every, self._sweep)
        now = self._loop.time()
        for connection in self._everybody():
            connection.check(now)


def _answering_preflights(app: App) -> App:
    """Answer browsers that ask whether they may ask; the headers of the answer, which all answers have, say so."""

    def answer(request: Request) -> None:
        if request.method == "OPTIONS" and request.header("origin") and request.header("access-control-request-method"):
            request.respond(200)
        else:
            app(request)

    return answer
