"""HTTP/1.1 answers of every form, from a real socket."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from torchmar.load.calls import Call, Connection
from torchmar.load.event_loop import EventLoop, clock
from torchmar.load.http1 import Http1Connection
from torchmar.load.stream import Peer

_PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Events:
    """The events of one connection."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, bytes]] = []
        self.failures: list[tuple[str, str]] = []
        self.losses: list[str] = []
        self.freed = 0

    def answered(self, call: Call, status: int, body: bytes) -> None:
        self.answers.append((status, body))

    def failed(self, call: Call, kind: str, example: str) -> None:
        self.failures.append((kind, example))

    def free(self, connection: Connection) -> None:
        self.freed += 1

    def lost(self, connection: Connection, reason: str) -> None:
        self.losses.append(reason)

    @property
    def ended(self) -> bool:
        return bool(self.freed or self.losses)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def exchange(listener: socket.socket, *parts: bytes, close: bool = False) -> Events:
    """Send one request; the server answers with the parts, one packet each, and closes the connection or not."""
    got = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.recv(1000)
            for part in parts:
                connection.sendall(part)
                got.wait(0.02)  # so that parts arrive apart
            if not close:
                got.wait(10)

    server = threading.Thread(target=serve)
    server.start()
    events = Events()
    with EventLoop() as loop:
        peer = Peer.resolve("127.0.0.1", listener.getsockname()[1])
        connection = Http1Connection(loop, peer, [b"POST / HTTP/1.1\r\n\r\n"], events)
        connection.send(Call(0, clock()))
        deadline = clock() + 10
        while not events.ended and clock() < deadline:
            loop.poll(clock() + 0.05)
        connection.close()
    got.set()
    server.join()
    return events


@pytest.mark.parametrize(
    ("parts", "answer"),
    [
        ((_PLAIN,), (200, b"ok")),
        ((_PLAIN[:5], _PLAIN[5:30], _PLAIN[30:-1], _PLAIN[-1:]), (200, b"ok")),
        ((b"HTTP/1.1 503 \r\ncontent-length:0\r\n\r\n",), (503, b"")),
        ((b"HTTP/1.1 204 No Content\r\n\r\n",), (204, b"")),
        ((b"HTTP/1.1 100 Continue\r\n\r\n", _PLAIN), (200, b"ok")),
        ((b"HTTP/1.1 100 Continue\r\n\r\n" + _PLAIN,), (200, b"ok")),
        (
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n",),
            (200, b"abcde"),
        ),
        (
            (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"3\r\nab", b"c\r\n0\r\n", b"\r\n"),
            (200, b"abc"),
        ),
    ],
)
def test_an_answer_is_read_whatever_its_form(
    listener: socket.socket, parts: tuple[bytes, ...], answer: tuple[int, bytes]
) -> None:
    events = exchange(listener, *parts)
    assert (events.answers, events.failures, events.losses, events.freed) == ([answer], [], [], 1)


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nConnection: close\r\n", b"HTTP/1.0 200 OK\r\n"])
def test_a_connection_that_the_server_closes_after_the_answer_is_not_used_again(
    listener: socket.socket, head: bytes
) -> None:
    events = exchange(listener, head + b"Content-Length: 1\r\n\r\n1")
    assert (events.answers, events.freed) == ([(200, b"1")], 0)
    assert events.losses == ["connection closed"]


def test_a_body_without_length_ends_with_the_connection(listener: socket.socket) -> None:
    events = exchange(listener, b"HTTP/1.1 200 OK\r\n\r\nab", b"cd", close=True)
    assert (events.answers, events.failures) == ([(200, b"abcd")], [])


@pytest.mark.parametrize(
    ("parts", "kind"),
    [
        ((), "connection closed"),
        ((_PLAIN[:-1],), "connection closed"),
        ((b"SSH-2.0-OpenSSH_9.2\r\n",), "malformed answer"),
        ((b"HTTP/1.1 abc\r\n\r\n",), "malformed answer"),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",), "malformed answer"),
        ((_PLAIN + b"more",), "malformed answer"),
        ((b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",), "malformed answer"),
    ],
)
def test_what_is_no_answer_is_a_failure(listener: socket.socket, parts: tuple[bytes, ...], kind: str) -> None:
    events = exchange(listener, *parts, close=True)
    assert events.answers == []
    assert [failure[0] for failure in events.failures] == [kind]
    assert len(events.losses) == 1


def test_a_refused_connection_is_a_failure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    events = Events()
    with EventLoop() as loop:
        connection = Http1Connection(loop, Peer.resolve("127.0.0.1", port), [b""], events)
        connection.send(Call(0, clock()))
        while not events.ended:
            loop.poll(clock() + 0.05)
    assert [failure[0] for failure in events.failures] == ["connection refused"]
