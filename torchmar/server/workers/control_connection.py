"""The server's end of a control channel to a fork server or a model process."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Any

from torchmar.server.workers.worker_process import WorkerProcess
from torchmar.worker.process.control_channel import MOST_FILES, ControlWriter, MessageParser
from torchmar.worker.process.messages import Forked, Kill, Message


class ControlConnection:
    """A control channel in the server's loop.

    Args:
        connection: the socket; closed with the channel.
        on_message: called with each message and its files.
        on_close: called when the process has closed its end.

    Attributes:
        closed: whether either side has closed the channel.
    """

    def __init__(
        self,
        connection: socket.socket,
        on_message: Callable[[Message, list[int]], None],
        on_close: Callable[[], None],
    ) -> None:
        self.closed = False
        self._connection, self._on_message, self._on_close = connection, on_message, on_close
        self._parser = MessageParser()
        self._writer = ControlWriter(connection)
        # Reading does not block, because the socket is readable; written messages are short.
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(connection.fileno(), self._read)

    def send(self, message: Message, files: Sequence[int] = ()) -> None:
        """Send a message and files; do nothing if the channel is closed."""
        if not self.closed:
            self._writer.send(message, files)

    def close(self) -> None:
        """Close the channel; ``on_close`` is not called."""
        if not self.closed:
            self.closed = True
            self._loop.remove_reader(self._connection.fileno())
            self._connection.close()

    def _read(self) -> None:
        try:
            size = socket.CMSG_SPACE(MOST_FILES * 4)
            data, ancillary, _, _ = self._connection.recvmsg(65536, size, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        if not data:
            self.close()
            self._on_close()
            return
        for message, files in self._parser.feed(data, ancillary):
            self._on_message(message, files)


class ForkRequests:
    """Requests for forked processes, sent over a control channel, without a reply.

    Args:
        send: sends a message over the channel, to kill processes on systems without pidfds.
    """

    def __init__(self, send: Callable[[Message], None]) -> None:
        self._send = send
        self._futures: dict[int, asyncio.Future[WorkerProcess]] = {}
        self._count = 0

    def add(self) -> tuple[int, asyncio.Future[WorkerProcess]]:
        """Return the id of a new request, and a future for its process."""
        self._count += 1
        future: asyncio.Future[WorkerProcess] = asyncio.get_running_loop().create_future()
        self._futures[self._count] = future
        return self._count, future

    def complete(self, message: Forked, files: Sequence[int]) -> None:
        """Resolve the future of a request; kill the process if the caller was cancelled."""
        process = WorkerProcess(message.pid, files, lambda: self._send(Kill(message.id)))
        future = self._futures.pop(message.id, None)
        if future is None or future.done():
            process.kill()
            process.close()
        else:
            future.set_result(process)

    def fail_one(self, number: int, error: Exception) -> None:
        """Fail the request with an id."""
        if future := self._futures.pop(number, None):
            fail(future, error)

    def fail(self, error: Callable[[], Exception]) -> None:
        """Fail all requests."""
        futures, self._futures = self._futures, {}
        for future in futures.values():
            fail(future, error())


def fail(future: asyncio.Future[Any], error: Exception) -> None:
    """Set the exception of a future, unless it is done."""
    if not future.done():
        future.set_exception(error)
        future.exception()  # marks the exception as retrieved, since there may be no waiter
