"""Reception of a known number of bytes from a connection directly into their buffers.

The event loop would receive into its own buffer and pass the content as a new object, and the parts of a large message
would have to be joined: three copies, which are avoided if the protocol provides the buffers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

#: Number of bytes from which this is faster than the usual way; the event loop receives that many at once.
LARGE = 1 << 18


class BufferReceiver(asyncio.BufferedProtocol):
    """The protocol of a connection until its buffers are full.

    Args:
        transport: transport of the connection.
        owner: protocol of the connection before and after; it gets all events except those of reading.
        views: buffers, none of them empty.
        on_data: called whenever a part has been received.
        on_complete: called when the buffers are full, and the connection has its own protocol back.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        owner: asyncio.Protocol,
        views: list[memoryview],
        on_data: Callable[[], object],
        on_complete: Callable[[], object],
    ) -> None:
        self._transport, self._owner, self._views = transport, owner, views
        self._on_data, self._on_complete = on_data, on_complete
        transport.set_protocol(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Implement `asyncio.BufferedProtocol`."""
        return self._views[0]

    def buffer_updated(self, count: int) -> None:
        """Implement `asyncio.BufferedProtocol`."""
        self._on_data()
        self._views[0] = self._views[0][count:]
        if self._views[0]:
            return
        del self._views[0]
        if not self._views:
            self._transport.set_protocol(self._owner)
            self._on_complete()

    def eof_received(self) -> bool | None:
        """Implement `asyncio.BufferedProtocol`."""
        return self._owner.eof_received()

    def pause_writing(self) -> None:
        """Implement `asyncio.BaseProtocol`."""
        self._owner.pause_writing()

    def resume_writing(self) -> None:
        """Implement `asyncio.BaseProtocol`."""
        self._owner.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        """Implement `asyncio.BaseProtocol`."""
        self._owner.connection_lost(error)
