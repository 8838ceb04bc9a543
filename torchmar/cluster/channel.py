"""The connection between a front and a replica: both prove that they have the secret, then both send frames.

The replica listens at its node's address, and at a Unix socket for fronts of the same node. Its secret travels over
Ray only. Each side proves, by an HMAC over random numbers of both sides, that it has the secret, which is never sent.
If Ray's own connections are encrypted (RAY_USE_TLS), this one is too, with the same certificates.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import secrets
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from torchmar.server.workers.frame_connection import FrameConnection

# Kinds of frames that a front sends.
REQUESTS = 32  # a list of `Request`; the bodies are the parts of the requests
CANCEL = 33  # the numbers of requests whose clients have disconnected
PING = 34  # the number of the front's requests that wait or run, on all replicas
# Kinds of frames that a replica sends.
REPLIES = 35  # `Replies`, with the response bodies
STATE = 36  # whether its worker is ready
DRAIN = 37  # the replica ends as soon as it has answered its requests
PONG = 38

# : Number, id, headers, seconds spent waiting, seconds until the deadline (None: no deadline), whether the request may
# have
#: ended a worker; then name, content type and size of each part.
Request = tuple[int, str, Mapping[str, str], float, float | None, bool, Sequence[tuple[str, str, int]]]
#: ``replies``: number, status, content type, headers, size of the body, error, whether parts follow; ``batches`` and
#: ``metrics``: arguments of `PoolObserver.on_batch` and `on_metrics` since the previous frame.
Replies = Mapping[str, Any]

_GREETING = b"torchmar1"  # ends with the version of this protocol
_SIZE = 32  # bytes of a random number and of a proof
_SECONDS = 10.0  # time limit for the proofs


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """The addresses at which a replica listens.

    Attributes:
        host: address of the replica's node.
        port: TCP port at this address.
        unix: path of a Unix socket on the node; empty: there is none.
        node_id: Ray's id of the node.
        secret: secret that fronts must prove to have.
    """

    host: str
    port: int
    unix: str
    node_id: str
    secret: bytes = field(repr=False)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class Channel(FrameConnection):
    """One end of a connection; frames may be sent from ``on_open`` on.

    Args:
        secret: secret of the replica.
        front: whether this is the front's end.
        on_open: called when the other side has proved that it has the secret.
        on_frame: called with kind, document and bodies of each frame.
        on_close: called when either side has closed the connection, also before ``on_open``.

    Attributes:
        problem: reason why the other side was rejected; empty: it was not rejected, or it has closed the connection.
    """

    def __init__(
        self,
        secret: bytes,
        *,
        front: bool,
        on_open: Callable[[], None],
        on_frame: Callable[[int, Any, Sequence[bytes]], None],
        on_close: Callable[[], None],
    ) -> None:
        super().__init__(on_open, on_frame, on_close, body_sizes)
        self.problem = ""
        self._secret, self._front = secret, front
        self._numbers = b""  # the random number of the replica, then that of the front
        self._received = b""
        self._made = False
        self._next: Callable[[bytes], None] | None = self._prove if front else self._verify_front
        self._expected = len(_GREETING) + _SIZE if front else 2 * _SIZE
        self._timer: asyncio.TimerHandle

    def abort(self) -> None:
        """Close the connection at once, if it is open."""
        if self._made:
            super().abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Implement `asyncio.Protocol`."""
        self._transport, self._made = cast(asyncio.Transport, transport), True  # uvloop's has another base
        self._timer = asyncio.get_running_loop().call_later(_SECONDS, self._reject, "it has not proved its secret")
        if not self._front:
            self._numbers = secrets.token_bytes(_SIZE)
            self._transport.write(_GREETING + self._numbers)

    def data_received(self, data: bytes) -> None:
        """Implement `asyncio.Protocol`."""
        if self._next is None:
            super().data_received(data)
            return
        self._received += data
        while self._next is not None and not self.problem and len(self._received) >= self._expected:
            proof, self._received = self._received[: self._expected], self._received[self._expected :]
            self._next(proof)
        if self._next is None and self._received:
            data, self._received = self._received, b""
            super().data_received(data)

    def connection_lost(self, error: Exception | None) -> None:
        """Implement `asyncio.Protocol`."""
        self._timer.cancel()
        super().connection_lost(error)

    def _prove(self, greeting: bytes) -> None:
        if not greeting.startswith(_GREETING):
            self._reject("another program, or another version of torchmar, listens there")
            return
        number = secrets.token_bytes(_SIZE)
        self._numbers = greeting[len(_GREETING) :] + number
        self._transport.write(number + self._proof(b"front"))
        self._next, self._expected = self._verify_replica, _SIZE

    def _verify_front(self, message: bytes) -> None:
        self._numbers += message[:_SIZE]
        if not hmac.compare_digest(message[_SIZE:], self._proof(b"front")):
            self._reject("it does not have the secret")
            return
        self._transport.write(self._proof(b"replica"))
        self._open()

    def _verify_replica(self, proof: bytes) -> None:
        if hmac.compare_digest(proof, self._proof(b"replica")):
            self._open()
        else:
            self._reject("it does not have the secret")

    def _proof(self, side: bytes) -> bytes:
        return hmac.digest(self._secret, side + self._numbers, hashlib.sha256)

    def _open(self) -> None:
        self._timer.cancel()
        self._next = None
        self._on_open()

    def _reject(self, problem: str) -> None:
        self.problem = problem
        self.abort()


def body_sizes(kind: int, document: Any) -> list[int]:
    """Return the size of each body of a frame, from the frame's document."""
    if kind == REQUESTS:
        return [size for *_, parts in document for _, _, size in parts]
    return [reply[4] for reply in document["replies"]] if kind == REPLIES else []


def tls_contexts(environment: Mapping[str, str]) -> tuple[ssl.SSLContext, ssl.SSLContext] | None:
    """Return the TLS contexts of a replica and of a front; None: Ray's variables do not ask for encryption.

    As with Ray's own connections, both sides have a certificate of Ray's authority. Host names are not checked, because
    nodes are addressed by their IP addresses.
    """
    if environment.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        return None
    certificate, key = environment["RAY_TLS_SERVER_CERT"], environment["RAY_TLS_SERVER_KEY"]
    authority = environment.get("RAY_TLS_CA_CERT")
    contexts = []
    for purpose in (ssl.Purpose.CLIENT_AUTH, ssl.Purpose.SERVER_AUTH):
        context = ssl.create_default_context(purpose, cafile=authority)
        context.load_cert_chain(certificate, key)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED if authority else ssl.CERT_NONE
        contexts.append(context)
    replica, front = contexts
    return replica, front


async def connect(
    endpoint: Endpoint, node_id: str, create: Callable[[], Channel], environment: Mapping[str, str] = os.environ
) -> None:
    """Connect a front to a replica; ``on_open`` of the channel is called when both have proved the secret.

    Args:
        endpoint: addresses of the replica.
        node_id: Ray's id of the front's node.
        create: returns the front's end of the connection.
        environment: environment that has Ray's variables for TLS.

    Raises:
        OSError: no address accepts the connection.
    """
    loop = asyncio.get_running_loop()
    if endpoint.unix and endpoint.node_id == node_id and Path(endpoint.unix).exists():
        await loop.create_unix_connection(create, endpoint.unix)
        return
    contexts = tls_contexts(environment)
    await loop.create_connection(create, endpoint.host, endpoint.port, ssl=contexts[1] if contexts else None)
