"""A connection that never blocks: over TCP, a Unix socket or TLS."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass

from torchmar.errors import ConnectError
from torchmar.load.event_loop import READ, WRITE, EventLoop

_CHUNK = 1 << 18


@dataclass(frozen=True)
class Peer:
    """The other end of connections.

    Attributes:
        family: address family of the socket.
        address: address for `socket.socket.connect`.
        tls: TLS context; None: no TLS.
        host: host name that the certificate must have.
    """

    family: int
    address: tuple[str, int] | tuple[str, int, int, int] | str
    tls: ssl.SSLContext | None = None
    host: str = ""

    @classmethod
    def resolve(cls, host: str, port: int, tls: ssl.SSLContext | None = None) -> Peer:
        """Return the peer of a host name, with its first address.

        Raises:
            ConnectError: the name has no address.
        """
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        except OSError:
            raise ConnectError(f"cannot resolve the host name {host}") from None
        return cls(family, address, tls, host)  # type: ignore[arg-type]  # families that have names


class Stream:
    """One connection, which opens when the stream is created.

    Args:
        loop: event loop, which calls back when bytes arrive.
        peer: address of the other end.
        on_data: called with bytes that have arrived.
        on_close: called once with the reason, unless `close` was called.
    """

    __slots__ = ("_connected", "_data", "_loop", "_lost", "_out", "_socket", "closed")

    def __init__(
        self, loop: EventLoop, peer: Peer, on_data: Callable[[bytes], None], on_close: Callable[[str], None]
    ) -> None:
        self._loop, self._data, self._lost = loop, on_data, on_close
        self._out = b""
        self.closed = False
        self._connected = False
        plain = socket.socket(peer.family, socket.SOCK_STREAM)
        plain.setblocking(False)
        if peer.family != socket.AF_UNIX:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = plain.connect_ex(peer.address)
        self._socket = (
            peer.tls.wrap_socket(plain, server_hostname=peer.host, do_handshake_on_connect=False)
            if peer.tls and code in (0, errno.EISCONN)
            else plain
        )
        # The loop reports the result, even if it is known now: the caller may not expect on_close yet.
        if code not in (0, errno.EINPROGRESS, errno.EAGAIN):
            reason = os.strerror(code).lower()
            self._loop.watch(self._socket, WRITE, lambda _: self._fail(reason))
        else:
            self._loop.watch(self._socket, WRITE, lambda _: self._on_connected(peer))

    def write(self, data: bytes) -> None:
        """Send bytes, now or as soon as the connection accepts them."""
        if self._connected and not self._out:
            try:
                sent = self._socket.send(data)
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                sent = 0
            except OSError:
                return  # the loop reports that the connection is closed, with the reason
            if sent == len(data):
                return
            self._out = data[sent:]
            self._loop.watch(self._socket, READ | WRITE, self._on_ready)
        else:
            self._out += data

    def close(self) -> None:
        """Close the connection; unsent bytes are lost."""
        if not self.closed:
            self.closed = True
            self._loop.forget(self._socket)
            self._socket.close()

    def _on_connected(self, peer: Peer) -> None:
        if self.closed:
            return
        if code := self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._fail(os.strerror(code).lower())
            return
        if peer.tls:
            if not isinstance(self._socket, ssl.SSLSocket):
                self._loop.forget(self._socket)
                self._socket = peer.tls.wrap_socket(
                    self._socket, server_hostname=peer.host, do_handshake_on_connect=False
                )
            self._shake()
            return
        self._begin()

    def _shake(self, _: int = 0) -> None:
        assert isinstance(self._socket, ssl.SSLSocket)
        if self.closed:
            return
        try:
            self._socket.do_handshake()
        except ssl.SSLWantReadError:
            self._loop.watch(self._socket, READ, self._shake)
        except ssl.SSLWantWriteError:
            self._loop.watch(self._socket, WRITE, self._shake)
        except OSError as error:
            self._fail(f"TLS: {getattr(error, 'reason', '') or error.strerror}")
        else:
            self._begin()

    def _begin(self) -> None:
        self._connected = True
        self._loop.watch(self._socket, READ, self._on_readable)
        waiting, self._out = self._out, b""
        if waiting:
            self.write(waiting)

    def _on_ready(self, events: int) -> None:
        """Send waiting bytes; afterwards, only arriving bytes matter again."""
        if events & WRITE and not self.closed:
            waiting, self._out = self._out, b""
            self._loop.watch(self._socket, READ, self._on_readable)
            self.write(waiting)
        if events & READ:
            self._on_readable(events)

    def _on_readable(self, _: int) -> None:
        if self.closed:
            return
        while True:
            try:
                data = self._socket.recv(_CHUNK)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            except OSError as error:
                self._fail((error.strerror or str(error)).lower())
                return
            if not data:
                self._fail("connection closed")
                return
            self._data(data)
            # TLS may hold decrypted bytes, for which no event follows.
            if self.closed or not isinstance(self._socket, ssl.SSLSocket):
                return

    def _fail(self, reason: str) -> None:
        if not self.closed:
            self.close()
            self._lost(reason)
