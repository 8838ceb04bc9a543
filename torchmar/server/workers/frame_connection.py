"""A connection that carries frames (see `torchmar.worker.process.frames`), in an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

from torchmar.server.buffer_receiver import LARGE, BufferReceiver
from torchmar.worker.process import frames

_SMALL = 1 << 16  # bytes
_HEAD_SIZE = frames.HEAD.size


class FrameConnection(asyncio.Protocol):
    """One end of a connection.

    Args:
        on_open: called when the connection is made.
        on_frame: called with kind, document and bodies of each frame.
        on_close: called when either side has closed the connection.
        body_sizes: returns the sizes of a frame's bodies, from its kind and document.
    """

    def __init__(
        self,
        on_open: Callable[[], None],
        on_frame: Callable[[int, Any, Sequence[bytes]], None],
        on_close: Callable[[], None],
        body_sizes: Callable[[int, Any], list[int]] = frames.body_sizes,
    ) -> None:
        self._on_open, self._on_frame, self._on_close = on_open, on_frame, on_close
        self._body_sizes = body_sizes
        self._transport: asyncio.Transport
        self._data = bytearray()
        self._needed = 0  # bytes up to the end of a frame in ``_data``

    def send(self, kind: int, document: Any, bodies: Sequence[bytes | bytearray | memoryview] = ()) -> None:
        """Send a frame."""
        buffers = frames.encode(kind, document, bodies)
        # Small bodies are sent with one system call; large ones are not copied together.
        if sum(map(len, bodies)) < _SMALL:
            self._transport.write(b"".join(buffers))
        else:
            self._transport.writelines(buffers)

    def abort(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Implement `asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)  # a cast, because uvloop's transport has another base
        self._on_open()

    def data_received(self, data: bytes) -> None:
        """Implement `asyncio.Protocol`."""
        if self._data:
            self._data += data
            if len(self._data) < self._needed:
                return
            data = self._data  # type: ignore[assignment]
        view, size, offset, self._needed = memoryview(data), len(data), 0, _HEAD_SIZE
        while (start := offset + _HEAD_SIZE) <= size:
            kind, text, bodies = frames.HEAD.unpack_from(data, offset)
            body = start + text
            end = body + bodies
            if size < end:
                self._needed = end - offset
                if end - size >= LARGE:
                    self._needed = body - offset
                    if body <= size:
                        self._receive_bodies(kind, frames.loads(view[start:body]), view[body:])
                        offset = size
                break
            document = frames.loads(view[start:body])
            sizes = self._body_sizes(kind, document)
            self._on_frame(kind, document, list(map(bytes, frames.split(view[body:end], sizes))))
            offset = end
        if offset < size:
            self._data = bytearray(view[offset:])
        elif self._data:
            self._data = bytearray()

    def _receive_bodies(self, kind: int, document: Any, first: memoryview) -> None:
        """Receive the bodies of a large frame into their own memory; ``first`` has been received already."""
        bodies = [bytearray(size) for size in self._body_sizes(kind, document)]
        received = cast("list[bytes]", bodies)  # they are not changed from then on
        views = frames.copy_into([memoryview(body) for body in bodies if body], first)
        BufferReceiver(self._transport, self, views, lambda: None, lambda: self._on_frame(kind, document, received))

    def connection_lost(self, error: Exception | None) -> None:
        """Implement `asyncio.Protocol`."""
        self._on_close()
