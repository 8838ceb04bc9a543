"""HTTP/1.1 for a load client: requests are ready as bytes, and only the needed parts of answers are parsed.

A parser of complete messages takes several times as long as reading only the status, the length and the body.
"""

from __future__ import annotations

from collections.abc import Sequence

from torchmar.load.calls import Call, Owner
from torchmar.load.event_loop import EventLoop
from torchmar.load.stream import Peer, Stream

_MAX_HEAD = 1 << 16
_END = b"\r\n\r\n"


class Http1Connection:
    """One connection, with one request at a time.

    Args:
        loop: event loop, which calls back when bytes arrive.
        peer: address of the server.
        requests: bytes of each request, by its index.
        owner: receives the answers.
    """

    __slots__ = ("_buffer", "_call", "_owner", "_requests", "_stream", "_wanted", "capacity", "in_flight")

    def __init__(self, loop: EventLoop, peer: Peer, requests: Sequence[bytes], owner: Owner) -> None:
        self.in_flight, self.capacity = 0, 1
        self._requests, self._owner = requests, owner
        self._call: Call | None = None
        self._buffer = b""
        self._wanted = 0  # bytes of the whole answer, once its length is known
        self._stream = Stream(loop, peer, self._on_data, self._on_close)

    def send(self, call: Call) -> None:
        """Send the request of a call."""
        self._call, self.in_flight = call, 1
        self._stream.write(self._requests[call.index])

    def cancel(self, call: Call) -> None:
        """Close the connection: the late answer would otherwise be mistaken for the next one."""
        self._call = None
        self.close()
        self._owner.lost(self, "cancelled")

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()

    def _on_data(self, data: bytes) -> None:
        call = self._call
        if call is None:
            self._break("an answer without a request", data)
            return
        if self._buffer:
            data = self._buffer = self._buffer + data
            if len(data) < self._wanted:
                return
        # The usual answer arrives all at once.
        end = data.find(_END)
        status, length = 0, -1
        head = b""
        try:
            if end > 0:
                status = int(data[9:12])
                head = data[:end].lower()
                at = head.find(b"\r\ncontent-length:")
                if at >= 0 and b"\r\ntransfer-encoding:" not in head:
                    stop = head.find(b"\r", at + 17)
                    length = int(head[at + 17 :] if stop < 0 else head[at + 17 : stop])
        except ValueError:
            self._break("malformed answer", data)
            return
        if status < 200 or length < 0:
            self._unusual(call, data, end, status)
            return
        total = end + 4 + length
        if len(data) < total:
            self._buffer, self._wanted = data, total
        elif len(data) > total:
            self._break("malformed answer", data)
        else:
            self._finish(call, status, data[end + 4 :], _closes(head))

    def _finish(self, call: Call, status: int, body: bytes, closing: bool) -> None:
        self._call, self._buffer, self._wanted, self.in_flight = None, b"", 0, 0
        if closing:
            self._stream.close()
        self._owner.answered(call, status, body)
        if closing:
            self._owner.lost(self, "connection closed")
        else:
            self._owner.free(self)

    def _unusual(self, call: Call, data: bytes, end: int, status: int) -> None:
        """Read an answer that is incomplete, interim, chunked or without a length."""
        self._buffer = data
        if end < 0:
            if len(data) > _MAX_HEAD or data[:7] != b"HTTP/1."[: len(data)]:
                self._break("malformed answer", data)
            return
        head = data[:end].lower()
        if 100 <= status < 200:  # an interim answer: the final one follows
            self._buffer = b""
            if rest := data[end + 4 :]:
                self._on_data(rest)
        elif status < 100:
            self._break("malformed answer", data)
        elif b"\r\ntransfer-encoding:" in head:
            try:
                body = _unchunked(data, end + 4)
            except ValueError:
                self._break("malformed answer", data)
                return
            if body is not None:
                self._finish(call, status, body, _closes(head))
        elif status in (204, 304):
            self._finish(call, status, b"", _closes(head))
        # Without a length, the body ends with the connection.

    def _on_close(self, reason: str) -> None:
        call, self._call = self._call, None
        if call is not None:
            end = self._buffer.find(_END)
            head = self._buffer[:end].lower()
            framed = self._wanted or b"\r\ntransfer-encoding:" in head
            if end > 0 and not framed and reason == "connection closed" and self._buffer[9:12].isdigit():
                self._owner.answered(call, int(self._buffer[9:12]), self._buffer[end + 4 :])
            else:
                self._owner.failed(call, reason, _shown(self._buffer))
        self._owner.lost(self, reason)

    def _break(self, reason: str, data: bytes) -> None:
        call, self._call = self._call, None
        self._stream.close()
        if call is not None:
            self._owner.failed(call, reason, _shown(data))
        self._owner.lost(self, reason)


def _closes(head: bytes) -> bool:
    """Return whether the server closes the connection after an answer with this head, which is in lower case."""
    if b"\r\nconnection: close" in head:
        return True
    return head[:8] == b"http/1.0" and b"\r\nconnection: keep-alive" not in head


def _unchunked(data: bytes, start: int) -> bytes | None:
    """Return the body from chunks; None if it is not complete.

    Raises:
        ValueError: the chunks are malformed.
    """
    parts: list[bytes] = []
    while True:
        line = data.find(b"\r\n", start)
        if line < 0:
            return None
        size = int(data[start:line].partition(b";")[0], 16)
        if not size:
            return b"".join(parts) if data.find(b"\r\n", line + 2) >= 0 else None
        start = line + 2 + size + 2
        if start > len(data):
            return None
        parts.append(data[line + 2 : line + 2 + size])


def _shown(data: bytes) -> str:
    return repr(data[:100]) if data else "no answer"
