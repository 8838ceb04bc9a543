"""The data plane between a server and its workers: frames of a head, a JSON document, and bodies as raw bytes.

The head contains the kind of frame (1 byte) and the sizes of document and bodies (32 bits each, big-endian). The
document contains the size of each body, and the bodies follow it; they are neither joined nor escaped. `messages` has
the types of the documents. Large bodies are received into separate memory, so that they need not be copied.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any

from .polling import PollGate, yield_core

dumps: Callable[[Any], bytes]
loads: Callable[[Any], Any]
try:
    import orjson as orjson
except ImportError:  # it is in the server's extra; workers work without it
    orjson = None  # type: ignore[assignment]

    def dumps(value: Any) -> bytes:
        """Return a document as JSON text."""
        return _dumps_any_text(value)

    def loads(text: Any) -> Any:
        """Return the document of JSON text."""
        return json.loads(bytes(text))
else:
    dumps, loads = orjson.dumps, orjson.loads

# Kinds of frames to a worker.
BATCH = 1  # `messages.Batch`; the bodies are the parts of the requests
THREADS = 2  # largest number of threads for torch from now on
TRACED_BATCH = 6  # like BATCH; `messages.Responses` then has the times of the steps
# Kinds of frames from a worker.
RESPONSES = 3  # `messages.Responses`, with the response bodies
PART = 4  # `messages.PartHead`, with the part's body; more parts of this streamed response follow
LOADED = 5  # `messages.WorkerReady` or `messages.LoadFailed`

HEAD = struct.Struct("!BII")


def encode(kind: int, document: Any, bodies: Sequence[bytes | bytearray | memoryview] = ()) -> list[Any]:
    """Return the buffers of a frame, for ``sendmsg`` or ``writelines``."""
    try:
        text = dumps(document)
    except TypeError:
        text = _dumps_any_text(document)
    return [HEAD.pack(kind, len(text), sum(map(len, bodies))) + text, *bodies]


def _dumps_any_text(document: Any) -> bytes:
    """Return a document as JSON text; lone surrogates, which a handler's message may contain, become ``?``."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def body_sizes(kind: int, document: Any) -> list[int]:
    """Return the size of each body of a frame, from the frame's document."""
    if kind in (BATCH, TRACED_BATCH):
        return [size for _, _, parts in document for _, _, size in parts]
    if kind == RESPONSES:
        return [head[3] for head in document["responses"]]
    return [document[4]] if kind == PART else []


def split(content: memoryview, sizes: Sequence[int]) -> list[memoryview]:
    """Return the consecutive bodies in ``content``."""
    bodies, end = [], 0
    for size in sizes:
        start, end = end, end + size
        bodies.append(content[start:end])
    return bodies


def copy_into(views: list[memoryview], content: memoryview) -> list[memoryview]:
    """Copy content into sufficiently large, non-empty buffers; return the unused rest of the buffers."""
    while content:
        count = min(len(content), len(views[0]))
        views[0][:count] = content[:count]
        content = content[count:]
        _advance(views, count)
    return views


class DisconnectedError(Exception):
    """The other side has closed the connection."""


class Receiver:
    """Reads frames from a blocking socket, with as few system calls as possible.

    Args:
        connection: socket to read from.
        poll_seconds: time to busy-poll for the next frame if the previous one arrived within this time, because
            sleeping and waking takes longer than a small model needs. 0: never poll. See `polling` for exceptions.
        on_idle: called when no data has arrived for a second; once, until data arrives again.
    """

    def __init__(
        self, connection: socket.socket, poll_seconds: float = 0.0, on_idle: Callable[[], object] | None = None
    ) -> None:
        self._connection, self._poll_seconds, self._on_idle = connection, poll_seconds, on_idle
        self._readable = select.poll()
        self._readable.register(connection, select.POLLIN)
        self._polls = False
        self._gate = PollGate()
        self._rest = b""  # received data after the last frame

    def receive(self) -> tuple[int, Any, Sequence[bytearray | memoryview]]:
        """Return kind, document and bodies of the next frame; the caller owns bodies that are a ``bytearray``.

        Raises:
            DisconnectedError: the connection is closed.
            OSError: the connection failed, or its timeout has expired.
        """
        data = self._rest
        while len(data) < HEAD.size:
            data += self._receive_bytes(_AT_LEAST)
        kind, text, size = HEAD.unpack_from(data)
        start = HEAD.size + text
        if len(data) < start:
            rest = bytearray(start - len(data))
            self._fill([memoryview(rest)])
            data += rest
        view = memoryview(data)
        document = loads(view[HEAD.size : start]) if text else None
        end = start + size
        sizes = body_sizes(kind, document)
        if len(data) < end:
            self._rest = b""
            return kind, document, self._receive_bodies(view[start:], sizes)
        self._rest = data[end:]
        return kind, document, split(view[start:end], sizes)

    def _receive_bodies(self, first: memoryview, sizes: Sequence[int]) -> list[bytearray]:
        """Return bodies; ``first`` is the part that was received already."""
        bodies = [bytearray(size) for size in sizes]
        self._fill(copy_into([memoryview(body) for body in bodies if body], first))
        return bodies

    def _fill(self, views: list[memoryview]) -> None:
        """Receive until all views are full."""
        while views:
            count = self._connection.recvmsg_into(views[:_AT_ONCE])[0]
            if not count:
                raise DisconnectedError
            _advance(views, count)

    def _receive_bytes(self, size: int) -> bytes:
        started = time.monotonic()
        data = self._poll(size, started) if self._polls and self._gate.enter(started) else None
        if data is None:
            if self._on_idle and not self._readable.poll(_IDLE_MS):
                self._on_idle()
            data = self._connection.recv(size)
        self._polls = time.monotonic() - started < self._poll_seconds
        if not data:
            raise DisconnectedError
        return data

    def _poll(self, size: int, now: float) -> bytes | None:
        """Busy-poll for data; None: no data has arrived in time, or other programs need the core."""
        end, free = now + self._poll_seconds, True
        try:
            while free and now < end:
                try:
                    return self._connection.recv(size, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    now, free = yield_core(now)
            return None
        finally:
            self._gate.leave(time.monotonic())


def send(connection: socket.socket, buffers: list[Any]) -> None:
    """Send all buffers over a blocking socket."""
    if sum(map(len, buffers)) < _SMALL:
        connection.sendall(b"".join(buffers))
        return
    views = [memoryview(buffer) for buffer in buffers if len(buffer)]
    while views:
        _advance(views, connection.sendmsg(views[:_AT_ONCE]))


def _advance(views: list[memoryview], count: int) -> None:
    """Remove the first ``count`` bytes of buffers, after they were sent or received."""
    full = 0
    while full < len(views) and count >= len(views[full]):
        count -= len(views[full])
        full += 1
    del views[:full]
    if count:
        views[0] = views[0][count:]


_IDLE_MS = 1000
_AT_LEAST = 1 << 16  # bytes in one read, which is enough for most frames
_SMALL = 1 << 16  # bytes whose copying takes less time than a list of buffers for the system
_AT_ONCE = 512  # buffers in one call; systems accept 1024
