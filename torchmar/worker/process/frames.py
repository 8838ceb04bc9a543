"""The bytes between a server and its workers: a head, a document, and bodies as they are.

A frame is ``kind`` (1 byte), the sizes of document and bodies (32 bits each, big-endian), a JSON
document, and the bodies one after another; the document says how long each is. Bodies are
neither copied together nor escaped on their way.
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
except ImportError:  # it is in the server's extra; a worker does without
    orjson = None  # type: ignore[assignment]

    def dumps(value: Any) -> bytes:
        """Return a document as JSON."""
        return json.dumps(value, separators=(",", ":")).encode()

    def loads(text: Any) -> Any:
        """Return what JSON says."""
        return json.loads(bytes(text))
else:
    dumps, loads = orjson.dumps, orjson.loads

# To a worker.
BATCH = 1  # [[request id, headers, [[name, content type, size], ...]], ...]
THREADS = 2  # how many threads torch may use from now on
# From a worker.
ANSWERS = 3  # {"seconds", "answers": [[status, content type, headers, size, what is wrong], ...], "metrics": [...]}
PART = 4  # [index in the batch, status, content type, headers, size, what is wrong]: more of a streamed answer follows
LOADED = 5  # {"ok", "message"}

HEAD = struct.Struct("!BII")


def encode(kind: int, document: Any, bodies: Sequence[bytes | bytearray | memoryview] = ()) -> list[Any]:
    """Return the buffers of a frame, for ``sendmsg`` or ``writelines``."""
    text = dumps(document)
    return [HEAD.pack(kind, len(text), sum(map(len, bodies))) + text, *bodies]


class Gone(Exception):
    """The other side has closed the connection."""


class Receiver:
    """Reads frames from a blocking socket, in as few calls as they take.

    Args:
        connection: to read from.
        poll: seconds to stay awake for the next frame, where the one before it came within them. To fall asleep
            and be woken takes longer than what a small model computes. 0: sleep at once. See `polling` for exceptions.
        idle: called when nothing has come for a second, once until something does.
    """

    def __init__(self, connection: socket.socket, poll: float = 0.0, idle: Callable[[], object] | None = None) -> None:
        self._connection, self._poll, self._idle = connection, poll, idle
        self._readable = select.poll()
        self._readable.register(connection, select.POLLIN)
        self._awake = False
        self._gate = PollGate()
        self._left = b""

    def receive(self) -> tuple[int, Any, memoryview]:
        """Return kind, document and bodies of the next frame.

        Raises:
            Gone: the connection is closed.
            OSError: it failed, or took longer than its timeout.
        """
        data: bytes | bytearray = self._left
        while len(data) < HEAD.size:
            data += self._more(65536)
        kind, text, bodies = HEAD.unpack_from(data)
        size = HEAD.size + text + bodies
        if len(data) < size:
            whole = bytearray(size)
            whole[: len(data)] = data
            view, filled = memoryview(whole), len(data)
            while filled < size:
                count = self._connection.recv_into(view[filled:])
                if not count:
                    raise Gone
                filled += count
            data = whole
        frame = memoryview(data)
        self._left = bytes(frame[size:])
        start = HEAD.size + text
        return kind, loads(frame[HEAD.size : start]) if text else None, frame[start:size]

    def _more(self, size: int) -> bytes:
        begun = time.monotonic()
        data = self._soon(size, begun) if self._awake and self._gate.enter(begun) else None
        if data is None:
            if self._idle and not self._readable.poll(_IDLE):
                self._idle()
            data = self._connection.recv(size)
        self._awake = time.monotonic() - begun < self._poll
        if not data:
            raise Gone
        return data

    def _soon(self, size: int, now: float) -> bytes | None:
        """Return what comes while this is awake; None: nothing, or others want the core."""
        until, free = now + self._poll, True
        try:
            while free and now < until:
                try:
                    return self._connection.recv(size, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    now, free = yield_core(now)
            return None
        finally:
            self._gate.leave(time.monotonic())


def send(connection: socket.socket, buffers: list[Any]) -> None:
    """Send buffers over a blocking socket, all of them."""
    if len(buffers) == 1:
        connection.sendall(buffers[0])
        return
    views = [memoryview(buffer) for buffer in buffers if len(buffer)]
    while views:
        sent = connection.sendmsg(views[:_AT_ONCE])
        while views and sent >= len(views[0]):
            sent -= len(views[0])
            views.pop(0)
        if sent:
            views[0] = views[0][sent:]


_IDLE = 1000  # milliseconds
_AT_ONCE = 512  # buffers; systems take 1024 in one call
