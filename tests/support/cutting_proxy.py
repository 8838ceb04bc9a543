"""A TCP proxy that cuts connections, like a network that fails in the middle of an answer."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class CuttingProxy:
    """A proxy for one server of this machine.

    Attributes:
        upstream: port of the server.
        cuts: numbers of bytes from the server after which the next connections are cut, one for each connection.
        cut: number of connections that were cut.
        connections: number of all connections, including refused ones.
        refuses_after: bytes from the server, of all connections together, after which all are cut and no connection is
            accepted, as if the network was down; None: no limit.
        received: bytes from the clients.
        port: port of the proxy.
    """

    upstream: int
    cuts: list[int] = field(default_factory=list)
    cut: int = 0
    connections: int = 0
    refuses_after: int | None = None
    received: bytearray = field(default_factory=bytearray)
    port: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def running(self) -> Iterator[CuttingProxy]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
            yield self

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                self.connections += 1
                if self.refuses_after is not None and self.refuses_after <= 0:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self.upstream))
                for pump in (self._requests, self._responses):
                    threading.Thread(target=pump, args=(client, server), daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                self.received += data
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def _responses(self, client: socket.socket, server: socket.socket) -> None:
        sent = 0
        with contextlib.suppress(OSError), client, server:
            while data := server.recv(1 << 14):
                passed = self._passed(sent, len(data))
                client.sendall(data[:passed])
                if passed < len(data):
                    client.shutdown(socket.SHUT_RDWR)
                    return
                sent += passed
            client.shutdown(socket.SHUT_WR)

    def _passed(self, sent: int, count: int) -> int:
        """Return the number of the ``count`` bytes that are passed on by a connection that has passed ``sent``."""
        with self._lock:
            if self.cuts and sent + count > self.cuts[0]:
                self.cut += 1
                return max(0, self.cuts.pop(0) - sent)
            if self.refuses_after is not None:
                passed = max(0, min(count, self.refuses_after))
                self.refuses_after -= count
                return passed
            return count
