"""HTTP/2 for a load client: the part of RFC 9113 that unary calls over gRPC need.

A call with grpcio takes 60 (asyncio) to 80 microseconds of a core, and a call with this module 13. The frames of a call
are prepared as bytes before it is due, except for the number of its stream. Headers of answers are decoded only once:
without a dynamic table (SETTINGS_HEADER_TABLE_SIZE 0), equal headers have equal bytes.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import hpack

from torchmar.load.calls import Call, Owner
from torchmar.load.event_loop import EventLoop
from torchmar.load.stream import Peer, Stream

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
_HEADER_TABLE_SIZE, _ENABLE_PUSH, _MAX_STREAMS, _INITIAL_WINDOW, _MAX_FRAME = 1, 2, 3, 4, 5
_LARGEST_WINDOW = (1 << 31) - 1
_REFILL = 1 << 30  # received bytes after which the window of the connection is enlarged again
_CANCEL = 8
_FIRST_STREAMS, _MOST_STREAMS = 100, 1000  # concurrent streams, before and after the server's own limit is known
_FRAME = struct.Struct(">HBBBI")  # the length has 24 bits


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return a frame."""
    return _FRAME.pack(len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream) + payload


_PREFACE = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    + frame(
        _SETTINGS,
        0,
        0,
        struct.pack(">HIHIHI", _HEADER_TABLE_SIZE, 0, _ENABLE_PUSH, 0, _INITIAL_WINDOW, _LARGEST_WINDOW),
    )
    + frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _LARGEST_WINDOW - 0xFFFF))
)


@dataclass(frozen=True)
class UnaryRequest:
    """The frames of a call, without the numbers of its stream.

    Attributes:
        head: frame of the headers, up to the stream number.
        block: the headers.
        data_head: frame of the message, up to the stream number; only for a message that fits into one frame.
        message: message with the prefix of gRPC.
    """

    head: bytes
    block: bytes
    data_head: bytes
    message: bytes

    @classmethod
    def of(cls, headers: Sequence[tuple[str, str]], message: bytes) -> UnaryRequest:
        """Return the frames of a call with a serialized message."""
        tuples = [hpack.NeverIndexedHeaderTuple(name, value) for name, value in headers]
        block = bytes(hpack.Encoder().encode(tuples, huffman=False))
        prefixed = struct.pack(">BI", 0, len(message)) + message
        return cls(
            frame(_HEADERS, _END_HEADERS, 0, block)[:5],
            block,
            _FRAME.pack(len(prefixed) >> 8 & 0xFFFF, len(prefixed) & 0xFF, _DATA, _END_STREAM, 0)[:5],
            prefixed,
        )


#: Passes the answer to a call to the owner: its status and details, and its message.
Finish = Callable[[Owner, Call, Mapping[str, str], bytes], None]


class Http2Connection:
    """One connection, with many calls at a time.

    Args:
        loop: event loop, which calls back when bytes arrive.
        peer: address of the server.
        requests: frames of each request, by its index.
        owner: receives the answers.
        finish: passes an answer to the owner.
        multiplex: whether to carry more than one call at a time.
    """

    __slots__ = (
        "_block",
        "_buffer",
        "_closing",
        "_decoder",
        "_finish",
        "_initial_window",
        "_known",
        "_loop",
        "_max_frame",
        "_multiplex",
        "_next",
        "_out",
        "_owner",
        "_received",
        "_requests",
        "_stream",
        "_streams",
        "_unsent",
        "_window",
        "capacity",
        "in_flight",
    )

    def __init__(
        self,
        loop: EventLoop,
        peer: Peer,
        requests: Sequence[UnaryRequest],
        owner: Owner,
        finish: Finish,
        *,
        multiplex: bool,
    ) -> None:
        self.in_flight, self.capacity = 0, _FIRST_STREAMS if multiplex else 1
        self._loop, self._requests, self._owner, self._finish = loop, requests, owner, finish
        self._multiplex = multiplex
        self._decoder = hpack.Decoder()
        self._known: dict[bytes, dict[str, str]] = {}  # decoded headers, by their bytes
        self._streams: dict[int, _Open] = {}
        self._next = 1
        self._window = self._initial_window = 0xFFFF  # bytes that may be sent
        self._max_frame = 1 << 14
        self._unsent: deque[_Unsent] = deque()
        self._received = 0  # bytes since the window of the connection was enlarged
        self._buffer = b""
        self._block: tuple[int, int, bytes] | None = None  # headers that continue in a CONTINUATION frame
        self._closing = False
        self._out: list[bytes] = []
        self._stream = Stream(loop, peer, self._on_data, self._on_close)
        self._stream.write(_PREFACE)

    def send(self, call: Call) -> None:
        """Send the request of a call."""
        request = self._requests[call.index]
        number = self._next
        self._next = number + 2
        self._streams[number] = _Open(call)
        self.in_flight += 1
        key = number.to_bytes(4, "big")
        size = len(request.message)
        if size <= self._window and size <= self._initial_window and size <= self._max_frame and not self._unsent:
            self._window -= size
            self._write(b"".join((request.head, key, request.block, request.data_head, key, request.message)))
            return
        self._write(b"".join((request.head, key, request.block)))
        self._unsent.append(_Unsent(number, request.message, self._initial_window))
        self._send_unsent()

    def cancel(self, call: Call) -> None:
        """Cancel a call; other calls of the connection continue."""
        for number, stream in self._streams.items():
            if stream.call is call:
                self._write(frame(_RST_STREAM, 0, number, struct.pack(">I", _CANCEL)))
                self._unsent = deque(unsent for unsent in self._unsent if unsent.number != number)
                self._end(number)
                self._freed()
                return

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()

    # Sending.

    def _write(self, data: bytes) -> None:
        # Calls of the same moment are sent with one system call.
        if not self._out:
            self._loop.before_wait(self._flush)
        self._out.append(data)

    def _flush(self) -> None:
        data, self._out = b"".join(self._out), []
        if not self._stream.closed:
            self._stream.write(data)

    def _send_unsent(self) -> None:
        """Send as much of the waiting messages as the server's windows allow."""
        waiting, self._unsent = self._unsent, deque()
        for unsent in waiting:
            while True:
                size = min(len(unsent.rest), self._window, unsent.window, self._max_frame)
                if size <= 0:
                    self._unsent.append(unsent)
                    break
                chunk, unsent.rest = unsent.rest[:size], unsent.rest[size:]
                self._window -= size
                unsent.window -= size
                self._write(frame(_DATA, 0 if unsent.rest else _END_STREAM, unsent.number, chunk))
                if not unsent.rest:
                    break

    # Receiving.

    def _on_data(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        at, end = 0, len(data)
        unpack = _FRAME.unpack_from
        while end - at >= 9:
            high, low, kind, flags, number = unpack(data, at)
            stop = at + 9 + (high << 8 | low)
            if stop > end:
                break
            payload = data[at + 9 : stop]
            at = stop
            if kind == _DATA:
                self._on_message(number, flags, payload)
            elif kind == _HEADERS:
                self._on_headers(number, flags, payload)
            else:
                self._on_other(kind, flags, number, payload)
            if self._stream.closed:
                return
        self._buffer = data[at:]

    def _on_message(self, number: int, flags: int, payload: bytes) -> None:
        self._received += len(payload)
        if self._received > _REFILL:
            self._write(frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", self._received)))
            self._received = 0
        stream = self._streams.get(number)
        if stream is None:
            return  # the call was cancelled
        if flags & _PADDED:
            payload = payload[1 : len(payload) - payload[0]]
        stream.body = stream.body + payload if stream.body else payload
        if flags & _END_STREAM:
            self._break("malformed answer: the trailers are missing")

    def _on_headers(self, number: int, flags: int, payload: bytes) -> None:
        if flags & (_PADDED | _PRIORITY):
            padding = payload[0] if flags & _PADDED else 0
            start = (1 if flags & _PADDED else 0) + (5 if flags & _PRIORITY else 0)
            payload = payload[start : len(payload) - padding]
        if not flags & _END_HEADERS:
            self._block = number, flags, payload
            return
        headers = self._known.get(payload)
        if headers is None:
            try:
                headers = {_text(name): _text(value) for name, value in self._decoder.decode(payload, raw=True)}
            except hpack.HPACKError:
                self._break("malformed answer: the headers cannot be decoded")
                return
            # With an empty dynamic table, these bytes always have the same meaning.
            if not self._decoder.header_table.dynamic_entries and len(self._known) < 1000:
                self._known[payload] = headers
        if not flags & _END_STREAM:
            stream = self._streams.get(number)
            if stream is not None and headers.get(":status", "200") != "200":
                stream.http_status = headers[":status"]
            return
        stream = self._end(number)
        if stream is not None:
            if "grpc-status" not in headers:
                headers = {**headers, "http-status": headers.get(":status", stream.http_status)}
            self._finish(self._owner, stream.call, headers, stream.body[5:])
            self._freed()

    def _on_other(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == _SETTINGS and not flags & _ACK:
            self._on_settings(payload)
        elif kind == _WINDOW_UPDATE:
            (size,) = struct.unpack(">I", payload)
            if number == 0:
                self._window += size
            for unsent in self._unsent:
                if unsent.number == number:
                    unsent.window += size
            self._send_unsent()
        elif kind == _PING and not flags & _ACK:
            self._write(frame(_PING, _ACK, 0, payload))
        elif kind == _CONTINUATION and self._block is not None:
            first, first_flags, block = self._block
            self._block = None
            self._on_headers(first, (first_flags & _END_STREAM) | (flags & _END_HEADERS), block + payload)
        elif kind == _RST_STREAM:
            stream = self._end(number)
            if stream is not None:
                self._owner.failed(stream.call, "stream reset", f"error {int.from_bytes(payload, 'big')} of HTTP/2")
                self._freed()
        elif kind == _GOAWAY:
            self._on_goaway(payload)

    def _on_settings(self, payload: bytes) -> None:
        for key, value in struct.iter_unpack(">HI", payload):
            if key == _MAX_STREAMS and self._multiplex:
                self.capacity = max(1, min(value, _MOST_STREAMS))
            elif key == _INITIAL_WINDOW:
                for unsent in self._unsent:
                    unsent.window += value - self._initial_window
                self._initial_window = value
            elif key == _MAX_FRAME:
                self._max_frame = value
        if self._multiplex and not any(key == _MAX_STREAMS for key, _ in struct.iter_unpack(">HI", payload)):
            self.capacity = _MOST_STREAMS
        self._write(frame(_SETTINGS, _ACK, 0))
        self._send_unsent()

    def _on_goaway(self, payload: bytes) -> None:
        """Finish the calls that the server has accepted, and send no further calls."""
        last, code = struct.unpack_from(">II", payload)
        self._closing = True
        reason = f"the server closes the connection: error {code} of HTTP/2 {_text(payload[8:])}".rstrip()
        for number in [number for number in self._streams if number > last]:
            stream = self._end(number)
            assert stream is not None
            self._owner.failed(stream.call, "connection closed", reason)
        self._owner.lost(self, reason)
        if not self._streams:
            self._stream.close()

    # The end of calls and of the connection.

    def _end(self, number: int) -> _Open | None:
        stream = self._streams.pop(number, None)
        if stream is not None:
            self.in_flight -= 1
        return stream

    def _freed(self) -> None:
        if not self._closing:
            self._owner.free(self)
        elif not self._streams:
            self._stream.close()

    def _break(self, reason: str) -> None:
        self._stream.close()
        self._on_close(reason)

    def _on_close(self, reason: str) -> None:
        kind = reason.partition(":")[0]
        streams, self._streams, self.in_flight = self._streams, {}, 0
        for stream in streams.values():
            self._owner.failed(stream.call, kind, reason)
        if not self._closing:
            self._closing = True
            self._owner.lost(self, reason)


class _Open:
    """A call without an answer, with the received part of its answer."""

    __slots__ = ("body", "call", "http_status")

    def __init__(self, call: Call) -> None:
        self.call = call
        self.body = b""
        self.http_status = "200"


class _Unsent:
    """The rest of a message for which the server's windows had no room."""

    __slots__ = ("number", "rest", "window")

    def __init__(self, number: int, rest: bytes, window: int) -> None:
        self.number, self.rest, self.window = number, rest, window


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
