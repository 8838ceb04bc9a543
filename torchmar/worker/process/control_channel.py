"""The control channel between processes: JSON messages, one per line, which may carry open files."""

from __future__ import annotations

import array
import contextlib
import json
import os
import select
import signal
import socket
from collections.abc import Iterator, Sequence
from typing import Any

from .messages import Message, from_wire, to_wire

MOST_FILES = 16  # limit for a message


class ControlWriter:
    """The sending half of a connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection

    def send(self, message: Message, files: Sequence[int] = ()) -> None:
        """Send a message and files; a closed connection is no error here, because reading reports it."""
        data = json.dumps({"files": len(files), "message": to_wire(message)}).encode() + b"\n"
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if files:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))]
                data = data[self.socket.sendmsg([data], rights) :]
            self.socket.sendall(data)


class MessageParser:
    """A parser of received bytes and files."""

    def __init__(self) -> None:
        self._data = b""
        self._files: list[int] = []

    def feed(self, data: bytes, ancillary: Any = ()) -> Iterator[tuple[Any, list[int]]]:
        """Yield the complete messages, each with its files."""
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
                self._files += numbers
        *lines, self._data = (self._data + data).split(b"\n")
        for line in lines:
            document = json.loads(line)
            count = document["files"]
            files, self._files = self._files[:count], self._files[count:]
            yield from_wire(document["message"]), files


class ControlReader:
    """The receiving half of a process, which also reports exited children.

    The iterator yields ``(message, files)``, and ``(None, [])`` when children have exited; it ends when the other side
    has closed the connection.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._parser = MessageParser()
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        os.set_blocking(self._read, False)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def close(self) -> None:
        """Close the signal pipe in a forked child."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(self._read)
        os.close(self._write)

    def __iter__(self) -> Iterator[tuple[Any, list[int]]]:
        while True:
            ready, _, _ = select.select([self._connection.fileno(), self._read], [], [])
            if self._read in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._read, 4096)
                yield None, []
            if self._connection.fileno() in ready:
                try:
                    data, ancillary, _, _ = self._connection.recvmsg(65536, socket.CMSG_SPACE(MOST_FILES * 4))
                except ConnectionError:
                    return
                if not data:
                    return
                yield from self._parser.feed(data, ancillary)
