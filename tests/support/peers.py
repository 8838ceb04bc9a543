"""A server that sends prepared answers."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Peer:
    """A server that answers its connections one after the other with the given bytes, or closes them."""

    answers: list[bytes]
    received: list[bytes] = field(default_factory=list)
    address: str = ""

    @contextlib.contextmanager
    def listening(self) -> Iterator[Peer]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.address = f"http://127.0.0.1:{listener.getsockname()[1]}"
            threading.Thread(target=self._serve, args=(listener,), daemon=True).start()
            yield self

    def _serve(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            for answer in self.answers:
                connection, _ = listener.accept()
                with connection:
                    self.received.append(connection.recv(65536))
                    connection.sendall(answer)
