"""torchmar.server.http hands requests over whole, answers in their order, and outlives every client."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import json
import logging
import queue
import select
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.certificates import certify
from torchmar.server.api_error import ApiError
from torchmar.server.http import App, Cors, Limits, Listener, Request, listen
from torchmar.server.http.connection import Connection
from torchmar.server.http.request_parser import BODY

PATIENCE = 20
LIMITS = Limits()
GET = b"GET / HTTP/1.1\r\n"
POST = b"POST / HTTP/1.1\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n"


def echo(request: Request) -> None:
    """Respond with the parsed request."""
    received = {
        "method": request.method,
        "target": request.target.decode("latin-1"),
        "path": request.path,
        "query": request.query,
        "headers": request.headers,
        "body": request.body.decode("latin-1"),
        "client": request.client,
    }
    request.respond(200, json.dumps(received).encode(), "application/json")


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes
    raw_head: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One connection, and the responses on it."""

    def __init__(self, to: socket.socket) -> None:
        to.settimeout(PATIENCE)
        self.socket, self._file = to, to.makefile("rb")

    def send(self, data: bytes) -> Client:
        self.socket.sendall(data)
        return self

    def answer(self, head: bool = False) -> Answer:
        """Read one answer; to be compared in full, its framing included."""
        lines = []
        while (line := self._file.readline()) not in (b"\r\n", b""):
            lines.append(line)
        assert lines, "the connection was closed without an answer"
        status = int(lines[0].split()[1])
        headers = {}
        for line in lines[1:]:
            name, _, value = line.decode("latin-1").partition(":")
            assert name.lower() not in headers, f"{name} twice"
            headers[name.lower()] = value.strip()
        body = b""
        if head or status in (100, 204, 304):
            pass
        elif headers.get("transfer-encoding") == "chunked":
            chunks = []
            while size := int(self._file.readline(), 16):
                chunks.append(self._file.read(size))
                assert self._file.readline() == b"\r\n"
            assert self._file.readline() == b"\r\n"
            body = b"".join(chunks)
        elif "content-length" in headers:
            body = self._file.read(int(headers["content-length"]))
            assert len(body) == int(headers["content-length"])
        else:
            body = self._file.read()
        return Answer(status, headers, body, b"".join(lines))

    def closed(self) -> bool:
        """Wait for the connection to end; False if something else came."""
        try:
            return self._file.read(1) == b""
        except ConnectionResetError:
            return True

    def rest(self) -> bytes:
        """Return the bytes that are received until the connection ends."""
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while data := self._file.read1():
                received += data
        return received

    def close(self) -> None:
        self._file.close()
        self.socket.close()


class Served:
    """An app behind a listener, in a loop in a thread of its own."""

    def __init__(self, loop: asyncio.AbstractEventLoop, listener: Listener, exits: contextlib.ExitStack) -> None:
        self.loop, self.listener, self._exits = loop, listener, exits

    def connect(self) -> Client:
        client = Client(socket.create_connection(("127.0.0.1", self.listener.port), PATIENCE))
        self._exits.callback(client.close)
        return client

    def ask(self, raw: bytes) -> Answer:
        return self.connect().send(raw).answer()

    def refuses(self, raw: bytes, status: int) -> None:
        """Assert that the answer is ``status`` in TorchServe's words, and that only this client is disconnected."""
        client = self.connect().send(raw)
        answer = client.answer()
        assert answer.status == status, answer
        assert answer.json["code"] == status
        assert answer.headers["connection"] == "close"
        assert client.closed()
        self.works()

    def works(self) -> None:
        assert self.ask(GET + b"\r\n").status == 200

    def run(self, task: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(task, self.loop)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call ``function`` in the server's loop."""

        async def called() -> Any:
            return function(*arguments)

        return self.run(called()).result(PATIENCE)


Serve = Callable[..., Served]


@pytest.fixture(params=["uvloop", "asyncio"])
def serve(request: pytest.FixtureRequest) -> Iterator[Serve]:
    """Return a function that serves an app, on both loops."""
    loop = uvloop.new_event_loop() if request.param == "uvloop" else asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    with contextlib.ExitStack() as exits:

        def start(app: App = echo, limits: Limits = LIMITS, **options: Any) -> Served:
            listening = listen(app, "127.0.0.1", 0, limits, **options)
            listener = asyncio.run_coroutine_threadsafe(listening, loop).result(PATIENCE)
            exits.callback(lambda: asyncio.run_coroutine_threadsafe(listener.close(0), loop).result(PATIENCE))
            return Served(loop, listener, exits)

        yield start
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


class Kept:
    """An app that keeps its requests for the test to answer."""

    def __init__(self) -> None:
        self.requests: queue.Queue[Request] = queue.Queue()
        self.disconnected: queue.Queue[Request] = queue.Queue()

    def __call__(self, request: Request) -> None:
        request.on_disconnect = functools.partial(self.disconnected.put, request)
        self.requests.put(request)

    def next(self) -> Request:
        return self.requests.get(timeout=PATIENCE)


# Requests and their answers.


def test_a_request_is_handed_over_whole(serve: Serve) -> None:
    client = serve().connect()
    answer = client.send(
        b"PUT /predictions/a%20b/1?x=1&y=a+b%C3%A9&z&x=2 HTTP/1.1\r\nHost: h\r\nX-One:  one \r\nx-empty:\r\n"
        b"X-One: two\r\nX-Latin: \xe9\r\nContent-Length: 5\r\n\r\nhello"
    ).answer()
    assert answer.status == 200
    received = answer.json
    address = "{}:{}".format(*client.socket.getsockname())
    assert received == {
        "method": "PUT",
        "target": "/predictions/a%20b/1?x=1&y=a+b%C3%A9&z&x=2",
        "path": "/predictions/a b/1",
        "query": [["x", "1"], ["y", "a bé"], ["z", ""], ["x", "2"]],
        "headers": [
            ["Host", "h"],
            ["X-One", "one"],
            ["x-empty", ""],
            ["X-One", "two"],
            ["X-Latin", "é"],
            ["Content-Length", "5"],
        ],
        "body": "hello",
        "client": address,
    }


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/", "/"),
        ("*", "*"),
        ("http://h:1/p/q?x=1", "/p/q"),
        ("http://h", "/"),
        ("//p", "//p"),
        ("/%ff%2f?", "/\ufffd/"),
    ],
)
def test_a_path_ends_before_the_parameters(serve: Serve, target: str, path: str) -> None:
    assert serve().ask(f"OPTIONS {target} HTTP/1.1\r\n\r\n".encode()).json["path"] == path


def test_a_header_is_found_by_its_name_in_lower_case_the_first_of_several(serve: Serve) -> None:
    served = serve(lambda request: request.respond(200, repr([request.header(x) for x in ("x-a", "no")]).encode()))
    assert served.ask(GET + b"X-A:  1 \r\nx-a: 2\r\n\r\n").body == b"['1', '']"


def test_answers_have_the_headers_that_torchserve_sends(serve: Serve) -> None:
    served = serve(lambda request: request.respond(201, b"body", "text/plain", [("x-request-id", "1")]))
    answer = served.ask(GET + b"\r\n")
    assert answer.headers == {
        "content-type": "text/plain",
        "x-request-id": "1",
        "pragma": "no-cache",
        "cache-control": "no-cache; no-store, must-revalidate, private",
        "expires": "Thu, 01 Jan 1970 00:00:00 UTC",
        "content-length": "4",
        "connection": "keep-alive",
    }
    assert answer.raw_head.startswith(b"HTTP/1.1 201 Created\r\n")


def test_an_unknown_status_is_sent_as_it_is(serve: Serve) -> None:
    answer = serve(lambda request: request.respond(499, b"body")).ask(GET + b"\r\n")
    assert answer.raw_head.startswith(b"HTTP/1.1 499 Unknown\r\n")
    assert answer.body == b"body"


def test_a_connection_serves_requests_until_one_has_connection_close(serve: Serve) -> None:
    client = serve().connect()
    for number in range(3):
        answer = client.send(b"GET /%d HTTP/1.1\r\n\r\n" % number).answer()
        assert (answer.json["path"], answer.headers["connection"]) == (f"/{number}", "keep-alive")
    # Lines between requests are what old clients send.
    answer = client.send(b"\r\n\r\n" + GET + b"Connection: close\r\n\r\n" + GET + b"\r\n").answer()
    assert answer.headers["connection"] == "close"
    assert client.closed()


def test_http_1_0_closes_unless_keep_alive_is_requested(serve: Serve) -> None:
    client = serve().connect()
    answer = client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").answer()
    assert answer.headers["connection"] == "keep-alive"
    answer = client.send(b"GET / HTTP/1.0\r\n\r\n").answer()
    assert answer.headers["connection"] == "close"
    assert client.closed()


def test_head_gets_the_head_alone(serve: Serve) -> None:
    client = serve(lambda request: request.respond(200, b"x" * 100_000)).connect()
    for _ in range(2):
        assert client.send(b"HEAD / HTTP/1.1\r\n\r\n").answer(head=True).headers["content-length"] == "100000"
    assert len(client.send(GET + b"\r\n").answer().body) == 100_000


@pytest.mark.parametrize("status", [204, 304])
def test_statuses_without_a_body_get_none(serve: Serve, status: int) -> None:
    client = serve(lambda request: request.respond(status, b"not sent")).connect()
    for _ in range(2):
        assert "content-length" not in client.send(GET + b"\r\n").answer().headers


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 6_000_000])
def test_bodies_of_any_size_are_received_and_sent(serve: Serve, size: int) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    served = serve(lambda request: request.respond(200, request.body))
    answer = served.ask(POST + b"Content-Length: %d\r\n\r\n" % size + content[:size])
    assert answer.body == content[:size]


def test_a_request_behind_a_large_body_is_received(serve: Serve) -> None:
    client = serve().connect()
    body = b"x" * 1_000_000
    large = POST + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    client.send(large + large + GET + b"\r\n")
    assert [len(client.answer().json["body"]) for _ in range(3)] == [len(body), len(body), 0]
    for _ in range(3):
        assert len(client.send(large).answer().json["body"]) == len(body)


def test_the_length_of_a_body_that_is_not_sent_occupies_no_memory(serve: Serve) -> None:
    served = serve(limits=Limits(body=1 << 31))
    before = psutil.Process().memory_info().rss
    clients = [served.connect().send(POST + b"Content-Length: 1000000000\r\n\r\n" + b"x" * 100) for _ in range(4)]
    served.works()
    assert psutil.Process().memory_info().rss - before < 100_000_000
    for client in clients:
        client.close()
    served.works()


def test_chunked_bodies_are_joined_and_their_trailers_left_out(serve: Serve) -> None:
    client = serve().connect()
    for _ in range(2):
        received = client.send(CHUNKED + b"\r\n5;a=b\r\nhello\r\n01\r\n!\r\n0\r\nX-Trailer: 1\r\n\r\n").answer().json
        assert received["body"] == "hello!"
        assert received["headers"] == [["Transfer-Encoding", "chunked"]]


def test_a_body_in_a_great_many_pieces_is_whole(serve: Serve) -> None:
    numbers = [b"%d," % number for number in range(20_000)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in numbers)
    served = serve(lambda request: request.respond(200, request.body))
    assert served.ask(CHUNKED + b"\r\n" + chunks + b"0\r\n\r\n").body == b"".join(numbers)


def test_the_pieces_of_a_body_are_joined_before_there_are_many(serve: Serve) -> None:
    served = serve()
    client = served.connect().send(CHUNKED + b"\r\n")

    async def pieces_kept() -> int:
        while not (
            receiving := [connection for connection in served.listener._connections if connection._parser.state == BODY]
        ):
            await asyncio.sleep(0)
        for _ in range(100):
            receiving[0].data_received(b"1\r\nx\r\n" * 1000)
        return len(receiving[0]._parser._pieces)

    assert served.run(pieces_kept()).result(PATIENCE) < 1200
    assert len(client.send(b"0\r\n\r\n").answer().json["body"]) == 100_000


def test_requests_sent_at_once_are_answered_in_their_order(serve: Serve) -> None:
    served = serve()
    client = served.connect().send(
        b"".join(b"POST /%d HTTP/1.1\r\nContent-Length: 2\r\n\r\nab" % number for number in range(5000))
    )
    assert [client.answer().json["path"] for _ in range(5000)] == [f"/{number}" for number in range(5000)]


def test_answers_given_later_keep_the_order_too(serve: Serve) -> None:
    kept = Kept()
    served = serve(kept)
    client = served.connect().send(b"".join(b"GET /%d HTTP/1.1\r\n\r\n" % number for number in range(10)))
    for number in range(10):
        request = kept.next()
        assert kept.requests.empty()
        served.call(request.respond, 200, request.target)
        assert client.answer().body == b"/%d" % number


def test_a_client_that_sends_without_end_is_not_read_from_until_it_is_answered(serve: Serve) -> None:
    kept = Kept()
    served = serve(kept)
    client = served.connect()
    stream = (POST + b"Content-Length: 60000\r\n\r\n" + b"x" * 60_000) * 2000
    sent = 0
    client.socket.setblocking(False)
    # Until the socket takes nothing more for a while, which a server that reads on would not let happen.
    while sent < len(stream) and select.select([], [client.socket], [], 0.5)[1]:
        sent += client.socket.send(stream[sent : sent + 1_000_000])
    # The system buffers some; 120 MB are a great deal more than that.
    assert sent < len(stream) // 2
    client.socket.settimeout(PATIENCE)
    rest = threading.Thread(target=client.send, args=(stream[sent:],))
    rest.start()
    for _ in range(2000):
        served.call(kept.next().respond, 200)
        assert client.answer().status == 200
    rest.join()


def test_a_client_that_expects_100_continue_gets_it(serve: Serve) -> None:
    client = serve().connect()
    for _ in range(2):
        client.send(POST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        assert client.answer().status == 100
        assert client.send(b"hello").answer().json["body"] == "hello"


def test_100_continue_is_not_sent_in_the_middle_of_another_response(serve: Serve) -> None:
    kept = Kept()
    served = serve(kept)
    client = served.connect().send(GET + b"\r\n" + POST + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    first = kept.next()
    served.call(first.start, 200)
    served.call(first.send, b"first")
    served.call(first.end)
    assert client.answer().body == b"first"
    assert client.answer().status == 100
    client.send(b"ab")
    served.call(kept.next().respond, 200, b"second")
    assert client.answer().body == b"second"


def test_other_expectations_are_not_met(serve: Serve) -> None:
    serve().refuses(POST + b"Content-Length: 5\r\nExpect: wonders\r\n\r\nhello", 417)


# Responses before the body.

REJECT = b"POST /no HTTP/1.1\r\n"


def reject(request: Request) -> None:
    """Respond to requests for ``/no`` before their bodies."""
    if request.target == b"/no":
        request.respond_error(ApiError(503, "ServiceUnavailableException", "no", {"Retry-After": "1"}))


def framed(size: int, chunked: bool) -> bytes:
    """Return the rest of a request with a body of so many bytes, the head's last lines included."""
    if not chunked:
        return b"Content-Length: %d\r\n\r\n" % size + b"x" * size
    half = size // 2
    chunks = (b"%x\r\n" % part + b"x" * part + b"\r\n" for part in (half, size - half))
    return b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(chunks) + b"0\r\ntrailer: x\r\n\r\n"


@pytest.mark.parametrize("size", [5_000, 900_000])
@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("piece", [1 << 24, 4_999])
def test_a_body_after_its_response_is_discarded_and_the_next_request_is_answered(
    serve: Serve, size: int, chunked: bool, piece: int
) -> None:
    kept = Kept()
    served = serve(kept, on_head=reject)
    client = served.connect()
    stream = REJECT + framed(size, chunked) + GET + b"\r\n"
    for _ in range(2):
        sending = threading.Thread(
            target=lambda: [client.send(stream[start : start + piece]) for start in range(0, len(stream), piece)]
        )
        sending.start()
        answer = client.answer()
        assert (answer.status, answer.json["message"], answer.headers["connection"]) == (503, "no", "keep-alive")
        request = kept.next()
        assert (request.method, request.body) == ("GET", b"")
        served.call(request.respond, 200, b"next")
        assert client.answer().body == b"next"
        sending.join()
    assert kept.requests.empty()


def test_the_response_does_not_wait_for_the_body(serve: Serve) -> None:
    client = serve(on_head=reject).connect()
    client.send(REJECT + b"Content-Length: 10000\r\n\r\n")
    assert client.answer().status == 503
    assert client.send(b"x" * 10_000 + GET + b"\r\n").answer().status == 200


@pytest.mark.parametrize("line", [b"Expect: 100-continue\r\n", b"Connection: close\r\n"])
@pytest.mark.parametrize("size", [5, 600_000])
def test_a_connection_that_cannot_go_on_ends_after_the_response(serve: Serve, line: bytes, size: int) -> None:
    served = serve(on_head=reject, limits=Limits(idle_seconds=60))
    client = served.connect().send(REJECT + line + b"Content-Length: %d\r\n\r\n" % size)
    if line.startswith(b"Connection") and size < 4096:
        client.send(b"x" * size)  # a short body is waited for
    answer = client.answer()
    assert answer.headers["connection"] == "close"
    assert answer.status == (200 if line.startswith(b"Connection") and size < 4096 else 503)
    if answer.status == 503:
        client.send(b"x" * size)  # is discarded: the connection is not reset
    assert client.closed()
    served.works()


def test_a_body_that_is_accepted_is_received(serve: Serve) -> None:
    client = serve(on_head=reject).connect()
    client.send(POST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n")
    assert client.answer().status == 100
    assert client.send(b"hello").answer().json["body"] == "hello"
    assert client.send(POST + framed(9_000, True)).answer().json["body"] == "x" * 9_000


def test_a_request_behind_others_is_answered_in_its_turn(serve: Serve) -> None:
    kept = Kept()
    served = serve(kept, on_head=reject)
    client = served.connect().send(GET + b"\r\n" + REJECT + framed(5_000, False))
    served.call(kept.next().respond, 200, b"first")
    assert client.answer().body == b"first"
    request = kept.next()
    assert len(request.body) == 5_000
    served.call(request.respond, 200, b"second")
    assert client.answer().body == b"second"


@pytest.mark.parametrize("rest", [b"zz\r\n", b"7d0\r\n" + b"x" * 2_000 + b"\r\n7d0\r\n" + b"x" * 2_000])
def test_a_request_with_a_broken_or_endless_body_gets_no_second_response(serve: Serve, rest: bytes) -> None:
    served = serve(on_head=reject, limits=Limits(body=3_000))
    client = served.connect().send(REJECT + b"Transfer-Encoding: chunked\r\n\r\n")
    assert client.answer().status == 503
    assert client.send(rest).rest() == b""
    served.works()


def test_a_body_that_stops_after_its_response_ends_the_connection(serve: Serve) -> None:
    client = serve(on_head=reject, limits=Limits(body_seconds=0.2)).connect()
    client.send(REJECT + b"Content-Length: 10000\r\n\r\n" + b"x" * 100)
    assert client.answer().status == 503
    assert client.rest() == b""


def test_an_application_that_fails_before_the_body_is_answered_for(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(request: Request) -> None:
        raise ValueError(request.target)

    client = serve(on_head=fail).connect().send(REJECT + framed(5_000, False) + GET + b"\r\n")
    assert client.answer().status == 500
    assert client.answer().status == 200
    assert "POST /no failed" in caplog.text


def test_closing_waits_for_no_body_whose_response_was_sent(serve: Serve) -> None:
    served = serve(on_head=reject)
    client = served.connect().send(REJECT + b"Content-Length: 10000\r\n\r\n")
    assert client.answer().status == 503
    closing = served.run(served.listener.close(10 * PATIENCE))
    assert client.closed()
    client.close()
    closing.result(PATIENCE)


# Other protocols.


@pytest.mark.parametrize(
    ("framing", "body"), [(b"Content-Length: 5", b"hello"), (b"Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\n\r\n")]
)
@pytest.mark.parametrize("at_once", [True, False])
def test_the_wish_for_another_protocol_is_ignored(serve: Serve, framing: bytes, body: bytes, at_once: bool) -> None:
    wish = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n"
    client = serve().connect()
    for part in (POST + wish + framing + b"\r\n\r\n" + body, GET + wish + b"\r\n", b"GET /last HTTP/1.1\r\n\r\n"):
        for piece in [part] if at_once else [part[i : i + 1] for i in range(len(part))]:
            client.send(piece)
    assert client.answer().json["body"] == "hello"
    assert client.answer().json["method"] == "GET"
    assert client.answer().json["path"] == "/last"


# Streams.


def streamed(request: Request) -> None:
    request.start(200, "text/plain", [("X-One", "1")])
    for part in (b"one", b"", b"two" * 50_000):
        request.send(part)
    request.end()
    request.send(b"too late")
    request.end()


def test_a_stream_is_sent_in_chunks_and_the_connection_stays_open(serve: Serve) -> None:
    client = serve(streamed).connect()
    for _ in range(2):
        answer = client.send(GET + b"\r\n").answer()
        assert answer.headers["transfer-encoding"] == "chunked"
        assert "content-length" not in answer.headers
        assert answer.headers["x-one"] == "1"
        assert answer.body == b"one" + b"two" * 50_000


def test_a_stream_ends_with_the_connection_for_http_1_0(serve: Serve) -> None:
    answer = serve(streamed).ask(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert answer.headers["connection"] == "close"
    assert "transfer-encoding" not in answer.headers
    assert answer.body == b"one" + b"two" * 50_000


def test_head_gets_no_part_of_a_stream(serve: Serve) -> None:
    client = serve(streamed).connect()
    for _ in range(2):
        assert client.send(b"HEAD / HTTP/1.1\r\n\r\n").answer(head=True).headers["transfer-encoding"] == "chunked"


def test_a_stream_that_broke_is_not_taken_for_a_whole_one(serve: Serve) -> None:
    kept = Kept()
    served = serve(kept)
    client = served.connect().send(GET + b"\r\n")
    request = kept.next()
    served.call(request.start, 200)
    served.call(request.send, b"part")
    served.call(request.abort)
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := client.socket.recv(1000):
            received += data
    assert not received.endswith(b"0\r\n\r\n")


def test_a_stream_waits_for_the_client_to_take_it(serve: Serve) -> None:
    kept = Kept()
    served = serve(kept)
    client = served.connect().send(GET + b"\r\n")
    request = kept.next()
    left = []

    async def stream() -> None:
        request.start(200)
        for _ in range(500):
            request.send(b"x" * 100_000)
            await request.drain()
            left.append(request._writer._transport.get_write_buffer_size())
        request.end()

    streaming = served.run(stream())
    assert len(client.answer().body) == 50_000_000
    streaming.result(PATIENCE)
    assert max(left) < 200_000


# Refusals and faults.


def test_an_error_of_the_parser_is_answered_with_its_message(serve: Serve) -> None:
    def app(request: Request) -> None:
        if request.method == "POST":
            raise ApiError(404, "ModelNotFoundException", "Model not found: x")
        request.respond(200)

    client = serve(app).connect()
    answer = client.send(POST + b"Content-Length: 0\r\n\r\n").answer()
    assert (answer.status, answer.headers["connection"]) == (404, "keep-alive")
    assert (
        answer.body == b'{\n  "code": 404,\n  "type": "ModelNotFoundException",\n  "message": "Model not found: x"\n}\n'
    )
    assert client.send(GET + b"\r\n").answer().status == 200


def test_any_other_exception_is_logged_and_not_sent_to_the_client(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    def app(request: Request) -> None:
        raise KeyError("secret")

    client = serve(app).connect()
    for _ in range(2):
        answer = client.send(GET + b"\r\n").answer()
        assert answer.status == 500
        assert answer.json["type"] == "InternalServerException"
        assert b"secret" not in answer.body
    records = [record for record in caplog.records if record.name == "torchmar.server"]
    assert len(records) == 2
    assert records[0].exc_info is not None
    assert isinstance(records[0].exc_info[1], KeyError)


def test_an_exception_after_the_answer_began_cuts_it(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    def app(request: Request) -> None:
        request.start(200)
        request.send(b"part")
        raise KeyError("late")

    client = serve(app).connect().send(GET + b"\r\n")
    received = client.rest()
    assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    assert received.endswith(b"\r\n\r\n4\r\npart\r\n")  # and no last chunk


def test_an_exception_after_a_whole_answer_takes_nothing_back(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    def app(request: Request) -> None:
        request.respond(200, b"whole")
        raise KeyError("late")

    client = serve(app).connect()
    for _ in range(2):
        assert client.send(GET + b"\r\n").answer().body == b"whole"
    assert "late" in caplog.text


def test_a_second_answer_is_an_error_of_the_app(serve: Serve) -> None:
    kept = Kept()
    served = serve(kept)
    client = served.connect().send(GET + b"\r\n")
    request = kept.next()
    served.call(request.respond, 200, b"first")
    with pytest.raises(RuntimeError, match="GET / has been answered already"):
        served.call(request.respond, 200, b"second")
    assert client.answer().body == b"first"


@pytest.mark.parametrize(
    ("status", "content_type", "headers"),
    [
        (200, "", [("x", "a\r\nSet-Cookie: b")]),
        (200, "", [("x", "a\nb")]),
        (200, "", [("x", "a\rb")]),
        (200, "", [("x", "a\0b")]),
        (200, "", [("x\r\ny", "a")]),
        (200, "", [("x: y", "a")]),
        (200, "", [("", "a")]),
        (200, "text/plain\r\nx: y", []),
        (100, "", []),
        (99, "", []),
        (1000, "", []),
    ],
)
@pytest.mark.parametrize("begin", ["respond", "start"])
def test_answers_that_would_break_the_protocol_are_not_sent(
    serve: Serve,
    begin: str,
    status: int,
    content_type: str,
    headers: list[tuple[str, str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def app(request: Request) -> None:
        if request.path == "/good":
            request.respond(200)
        elif begin == "respond":
            request.respond(status, b"", content_type, headers)
        else:
            request.start(status, content_type, headers)
            request.send(b"x")
            request.end()

    client = serve(app).connect()
    answer = client.send(GET + b"\r\n").answer()
    assert answer.status == 500
    assert "x" not in answer.headers
    assert "GET / failed" in caplog.text
    assert client.send(b"GET /good HTTP/1.1\r\n\r\n").answer().status == 200


def test_framing_headers_are_set_by_the_server_only(serve: Serve) -> None:
    headers = [("Content-Length", "1"), ("transfer-encoding", "chunked"), ("Connection", "close"), ("Pragma", "x")]
    client = serve(lambda request: request.respond(200, b"body", "", [*headers, ("X-Tab", "a\tb\xa0")])).connect()
    for _ in range(2):
        answer = client.send(GET + b"\r\n").answer()
        assert (answer.body, answer.headers["pragma"]) == (b"body", "no-cache")
        assert answer.headers["x-tab"] == "a\tb"  # the no-break space is stripped by the test itself


# Limits.


def test_a_body_over_the_limit_is_rejected_before_it_is_sent(serve: Serve) -> None:
    served = serve(limits=Limits(body=1000))
    served.refuses(POST + b"Content-Length: 1001\r\nExpect: 100-continue\r\n\r\n", 413)
    served.refuses(POST + b"Content-Length: 1001\r\n\r\n", 413)
    assert len(served.ask(POST + b"Content-Length: 1000\r\n\r\n" + b"x" * 1000).json["body"]) == 1000


def test_a_client_that_still_sends_a_rejected_body_can_read_the_error(serve: Serve) -> None:
    served = serve(limits=Limits(body=1000))
    client = served.connect().send(POST + b"Content-Length: 30000000\r\n\r\n" + b"x" * 30_000_000)
    assert client.answer().status == 413
    assert client.closed()


def test_a_chunked_body_is_rejected_when_it_grows_over_the_limit(serve: Serve) -> None:
    served = serve(limits=Limits(body=1000))
    served.refuses(CHUNKED + b"\r\n" + b"64\r\n%b\r\n" % (b"x" * 100) * 11, 413)
    served.refuses(CHUNKED + b"\r\n3e9\r\n" + b"x" * 1001, 413)
    assert served.ask(CHUNKED + b"\r\n3e8\r\n" + b"x" * 1000 + b"\r\n0\r\n\r\n").status == 200


def test_an_error_waits_for_the_responses_before_it(serve: Serve) -> None:
    kept = Kept()
    served = serve(kept, Limits(body=10))
    client = served.connect().send(GET + b"\r\n" + GET + b"\r\n" + POST + b"Content-Length: 11\r\n\r\n" + b"x" * 11)
    for _ in range(2):
        served.call(kept.next().respond, 200)
    assert [client.answer().status for _ in range(3)] == [200, 200, 413]
    assert client.closed()
    assert kept.requests.empty()


def test_headers_over_the_limit_are_rejected(serve: Serve) -> None:
    served = serve(limits=Limits(header=10_000))
    served.refuses(GET + b"X-Long: " + b"x" * 10_000 + b"\r\n\r\n", 431)
    served.refuses(GET + b"".join(b"X-%d: x\r\n" % number for number in range(2000)) + b"\r\n", 431)
    assert served.ask(GET + b"X-Long: " + b"x" * 9000 + b"\r\n\r\n").status == 200


def test_headers_that_never_end_are_rejected(serve: Serve) -> None:
    client = serve(limits=Limits(header=10_000)).connect().send(GET + b"X-Long: ")
    with contextlib.suppress(ConnectionError):
        for _ in range(10_000):
            client.send(b"x" * 100)
    assert client.answer().status == 431


def test_trailers_that_never_end_are_rejected(serve: Serve) -> None:
    client = serve(limits=Limits(header=10_000)).connect().send(CHUNKED + b"\r\n1\r\nx\r\n0\r\nX-Long: ")
    with contextlib.suppress(ConnectionError):
        for _ in range(10_000):
            client.send(b"x" * 100)
    assert client.answer().status == 431


def test_small_headers_behind_a_large_body_are_not_counted_as_large(serve: Serve) -> None:
    request = POST + b"Content-Length: 200000\r\n\r\n" + b"x" * 200_000 + GET + b"X: y\r\n"
    client = serve(limits=Limits(header=100)).connect()
    client.send(request).send(b"\r\n")
    assert len(client.answer().json["body"]) == 200_000
    assert client.answer().json["headers"] == [["X", "y"]]


def test_a_url_over_the_limit_is_rejected(serve: Serve) -> None:
    served = serve(limits=Limits(target=1000))
    served.refuses(b"GET /" + b"x" * 1000 + b" HTTP/1.1\r\n\r\n", 414)
    served.refuses(b"GET /" + b"x" * 1000, 414)
    assert served.ask(b"GET /" + b"x" * 999 + b" HTTP/1.1\r\n\r\n").status == 200


def test_connections_over_the_limit_get_503(serve: Serve) -> None:
    served = serve(limits=Limits(connections=2))
    first, second = served.connect(), served.connect()
    for client in (first, second):
        assert client.send(GET + b"\r\n").answer().status == 200
    third = served.connect().send(GET + b"\r\n")
    answer = third.answer()
    assert (answer.status, answer.json["type"]) == (503, "ServiceUnavailableException")
    assert third.closed()
    assert first.send(GET + b"Connection: close\r\n\r\n").answer().status == 200
    assert first.closed()
    # The place is free once the server has seen the end of the connection, which may be after its client did.
    for _ in range(100):
        fourth = served.connect()
        if fourth.send(GET + b"\r\n").answer().status == 200:
            break
        fourth.close()
    else:
        pytest.fail("the place was not given away")


# What is wrong, or meant to deceive.


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GARBAGE\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # TLS, spoken to a port without
        (b"GET  HTTP/1.1\r\n\r\n", 400),
        (b"GET /a b HTTP/1.1\r\n\r\n", 400),
        (b"GET /\x00 HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\n\n", 400),
        (b"GET / HTTP/1.2\r\n\r\n", 400),
        (b"get / HTTP/1.1\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 505),
        (b"GET / HTTP/2.0\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"CONNECT h:1 HTTP/1.1\r\n\r\n", 405),
        (GET + b"no colon\r\n\r\n", 400),
        (GET + b": no name\r\n\r\n", 400),
        (GET + b"A B: x\r\n\r\n", 400),
        (GET + b"A: x\r\n folded\r\n\r\n", 400),
        (GET + b"A: x\x00\r\n\r\n", 400),
        (GET + b"A: x\ry\r\n\r\n", 400),
        (GET + b"A: x\nB: y\r\n\r\n", 400),
        (POST + b"Content-Length: -1\r\n\r\n", 400),
        (POST + b"Content-Length: 0x5\r\n\r\nhello", 400),
        (POST + b"Content-Length: \r\n\r\n", 400),
        (POST + b"Content-Length: 99999999999999999999999\r\n\r\n", 400),
        (CHUNKED + b"\r\nxyz\r\n", 400),
        (CHUNKED + b"\r\n5\r\nhelloo\r\n", 400),
        (CHUNKED + b"\r\n5\nhello\n0\n\n", 400),
        (CHUNKED + b"\r\nffffffffffffffffff\r\n", 400),
    ],
)
def test_input_that_is_not_http_is_rejected(serve: Serve, raw: bytes, status: int) -> None:
    serve().refuses(raw, status)


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5\r\nContent-Length: 5\r\n",
        b"Content-Length: 5, 5\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length : 5\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: gzip\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: \x0bchunked\r\n",
        b"Transfer-Encoding:\r\n chunked\r\n",
        b"Transfer-Encoding : chunked\r\n",
    ],
)
@pytest.mark.parametrize("wish", [b"", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"])
def test_no_request_is_smuggled_in_a_body_whose_length_is_in_doubt(serve: Serve, framing: bytes, wish: bytes) -> None:
    seen = []

    def app(request: Request) -> None:
        seen.append(request.path)
        request.respond(200)

    served = serve(app)
    client = served.connect().send(POST + wish + framing + b"\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n")
    assert client.answer().status in (400, 501)
    assert client.closed()
    assert "/smuggled" not in seen
    served.works()


def test_http_1_0_has_no_chunks(serve: Serve) -> None:
    serve().refuses(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400)


GOOD = (
    b"POST /a?x=%20 HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nX-Empty:\r\n\r\nhello"
    b"GET /b HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    b"PUT /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n3\r\n, 1\r\n0\r\nT: r\r\n\r\n"
    b"POST /d HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
    b"POST /e HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nhi"
    b"HEAD /f HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    b"GET /g HTTP/1.1\r\nConnection: close\r\n\r\n"
)


@pytest.fixture
def fed(serve: Serve) -> tuple[Served, Callable[[list[bytes]], bytes]]:
    """Return a server, and a function that has it read exactly these pieces and returns all that it sent."""
    served = serve(limits=Limits(header_seconds=0.1, body_seconds=0.1, idle_seconds=0.5))

    async def arrive(pieces: list[bytes], before: set[Connection]) -> None:
        while not (new := served.listener._connections - before):
            await asyncio.sleep(0)
        (connection,) = new
        for piece in pieces:
            # Past the socket, which would join pieces that come quickly.
            if not connection.lost:
                connection.data_received(piece)
            await asyncio.sleep(0)

    def feed(pieces: list[bytes]) -> bytes:
        before = served.call(set, served.listener._connections)
        with contextlib.closing(served.connect()) as client:
            served.run(arrive(pieces, before)).result(PATIENCE)
            received = []
            with contextlib.suppress(ConnectionError):
                while data := client.socket.recv(65_536):
                    received.append(data)
            return b"".join(received)

    return served, feed


BYTES = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@BYTES
@given(cuts=st.lists(st.integers(0, len(GOOD)), max_size=40).map(sorted))
def test_requests_are_the_same_however_their_bytes_arrive(
    fed: tuple[Served, Callable[[list[bytes]], bytes]], cuts: list[int]
) -> None:
    _, feed = fed
    pieces = [GOOD[start:end] for start, end in zip([0, *cuts], [*cuts, len(GOOD)], strict=True)]
    received = feed(pieces)
    assert received.count(b"HTTP/1.1 200 OK") == 7
    handled_requests = [
        json.loads(line) for line in received.split(b"\r\n\r\n")[1:] for line in [line.split(b"HTTP/1.1")[0]] if line
    ]
    assert [(handled["path"], handled["body"]) for handled in handled_requests] == [
        ("/a", "hello"),
        ("/b", ""),
        ("/c", "hello, 1"),
        ("/d", "hi"),
        ("/e", "hi"),
        ("/g", ""),
    ]


@BYTES
@given(
    start=st.integers(0, len(GOOD)),
    length=st.integers(0, 40),
    junk=st.binary(max_size=30)
    | st.sampled_from([b"\r\n", b"\r", b"\n", b"\0", b":", b" ", b"HTTP/1.1", b"0\r\n\r\n"]),
    pieces=st.integers(1, 300),
    whole=st.booleans(),
)
def test_whatever_is_sent_the_connection_ends_and_the_next_works(
    fed: tuple[Served, Callable[[list[bytes]], bytes]], start: int, length: int, junk: bytes, pieces: int, whole: bool
) -> None:
    served, feed = fed
    raw = GOOD[:start] + junk + GOOD[start + length :] if whole else GOOD[:start] + junk
    received = feed([raw[i : i + pieces] for i in range(0, len(raw), pieces)])
    assert received == b"" or received.startswith(b"HTTP/1.1 ")
    served.works()


# Slow and vanishing clients.


def test_headers_that_do_not_arrive_are_not_waited_for(serve: Serve) -> None:
    client = serve(limits=Limits(header_seconds=0.2)).connect().send(GET + b"X: y\r\n")
    answer = client.answer()
    assert (answer.status, answer.json["type"]) == (408, "RequestTimeoutException")
    assert client.closed()


def test_headers_that_trickle_are_not_waited_for_either(serve: Serve) -> None:
    client = serve(limits=Limits(header_seconds=0.2)).connect().send(GET)
    answered = threading.Event()

    def trickle() -> None:
        with contextlib.suppress(OSError):
            while not answered.wait(0.02):
                client.send(b"X: y\r\n")

    trickling = threading.Thread(target=trickle)
    trickling.start()
    try:
        assert client.answer().status == 408
    finally:
        answered.set()
        trickling.join()


def test_a_body_that_stops_arriving_is_not_waited_for(serve: Serve) -> None:
    served = serve(limits=Limits(body_seconds=0.2))
    for length in (5, 5_000_000):
        client = served.connect().send(POST + b"Content-Length: %d\r\n\r\nhel" % length)
        assert client.answer().status == 408
        client.send(b"more")
        assert client.closed()


def test_an_idle_connection_is_closed_without_a_word(serve: Serve) -> None:
    served = serve(limits=Limits(idle_seconds=0.5))
    assert served.connect().closed()
    client = served.connect().send(GET + b"\r\n")
    assert client.answer().status == 200
    assert client.closed()


def test_an_answer_is_waited_for_as_long_as_it_takes(serve: Serve) -> None:
    kept = Kept()
    served = serve(kept, Limits(header_seconds=0.1, body_seconds=0.1, idle_seconds=0.5))
    client = served.connect().send(GET + b"\r\n")
    request = kept.next()
    assert served.connect().closed()  # which takes as long as an idle client is borne
    assert served.connect().closed()
    served.call(request.respond, 200)
    assert client.answer().status == 200


def narrow(served: Served) -> Client:
    """Connect with small buffers, so that a client that does not read is noticed early."""
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plain.connect(("127.0.0.1", served.listener.port))
    return Client(plain)


def test_a_client_that_does_not_take_its_answer_is_cut_off(serve: Serve) -> None:
    served = serve(lambda request: request.respond(200, b"x" * 30_000_000), Limits(body_seconds=0.2))
    client = narrow(served).send(GET + b"\r\n")
    served.run(emptied(served.listener)).result(PATIENCE)
    with contextlib.suppress(ConnectionResetError):
        received = 0
        while data := client.socket.recv(1_000_000):
            received += len(data)
        assert received < 30_000_000
    client.close()


def test_the_code_that_streams_to_it_is_called_back_once(serve: Serve) -> None:
    kept = Kept()
    served = serve(kept, Limits(body_seconds=0.2))
    client = narrow(served).send(GET + b"\r\n")
    request = kept.next()

    async def stream() -> None:
        request.start(200)
        while not request.disconnected:
            request.send(b"x" * 100_000)
            await request.drain()

    served.run(stream()).result(PATIENCE)
    assert kept.disconnected.get(timeout=PATIENCE) is request
    assert kept.disconnected.empty()
    client.close()


def test_a_client_that_does_not_read_gets_no_more_answers_made(serve: Serve) -> None:
    handled = []

    def app(request: Request) -> None:
        handled.append(1)
        request.respond(200, b"x" * 1_000_000)

    served = serve(app, Limits(body_seconds=0.2))
    client = narrow(served).send((GET + b"\r\n") * 1000)
    served.run(emptied(served.listener)).result(PATIENCE)
    assert len(handled) < 100
    client.close()


async def emptied(listener: Listener) -> None:
    """Wait until a first client has connected and all have disconnected."""
    while not listener._all_connections():
        await asyncio.sleep(0.01)
    while listener._all_connections():
        await asyncio.sleep(0.01)


def test_on_disconnect_is_called_once(serve: Serve) -> None:
    kept = Kept()
    served = serve(kept)
    client = served.connect().send(GET + b"\r\n" + GET + b"\r\n")
    request = kept.next()
    assert not request.disconnected
    client.close()
    assert kept.disconnected.get(timeout=PATIENCE) is request
    assert request.disconnected
    # Later responses of the app are discarded, and the second request is not passed to it.
    served.call(request.respond, 200, b"discarded")
    served.call(request.send, b"discarded")
    served.call(request.end)
    served.run(request.drain()).result(PATIENCE)
    assert kept.disconnected.empty()
    assert kept.requests.empty()


def test_on_disconnect_is_not_called_after_a_complete_response(serve: Serve) -> None:
    kept = Kept()
    served = serve(kept)
    client = served.connect().send(GET + b"\r\n")
    request = kept.next()
    served.call(request.respond, 200)
    assert client.answer().status == 200
    client.close()
    served.run(all_disconnected(served.listener)).result(PATIENCE)
    assert kept.disconnected.empty()
    assert not request.disconnected


async def all_disconnected(listener: Listener) -> None:
    while listener._all_connections():
        await asyncio.sleep(0.01)


def test_an_on_disconnect_that_fails_is_logged(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    kept = Kept()
    served = serve(kept)
    client = served.connect().send(GET + b"\r\n")
    request = kept.next()
    disconnected = threading.Event()

    def fail() -> None:
        disconnected.set()
        raise KeyError("no")

    request.on_disconnect = fail
    client.close()
    assert disconnected.wait(PATIENCE)
    served.run(all_disconnected(served.listener)).result(PATIENCE)
    assert "on_disconnect failed" in caplog.text


def test_thousands_of_connections_leave_nothing_behind(serve: Serve) -> None:
    served = serve()
    for number in range(1500):
        client = served.connect()
        if number % 3:
            client.send(GET + b"\r\n" if number % 2 else GET)
        client.close()
    served.run(all_disconnected(served.listener)).result(PATIENCE)
    served.works()


# CORS, TLS, Unix sockets.


def test_pages_of_other_origins_get_the_cors_headers(serve: Serve) -> None:
    served = serve(cors=Cors("https://a.example", "GET, POST", "X-One"))
    client = served.connect()
    preflight = b"OPTIONS /x HTTP/1.1\r\nOrigin: https://a.example\r\nAccess-Control-Request-Method: POST\r\n\r\n"
    for raw, body in ((preflight, False), (GET + b"\r\n", True), (b"OPTIONS / HTTP/1.1\r\n\r\n", True)):
        answer = client.send(raw).answer()
        assert answer.status == 200
        assert bool(answer.body) is body
        assert {name: value for name, value in answer.headers.items() if name.startswith("access")} == {
            "access-control-allow-origin": "https://a.example",
            "access-control-allow-methods": "GET, POST",
            "access-control-allow-headers": "X-One",
        }
    rejected = served.ask(b"GARBAGE\r\n\r\n")
    assert rejected.headers["access-control-allow-origin"] == "https://a.example"


def test_without_cors_an_app_answers_options_itself(serve: Serve) -> None:
    answer = serve().ask(b"OPTIONS /x HTTP/1.1\r\nOrigin: https://a\r\nAccess-Control-Request-Method: POST\r\n\r\n")
    assert answer.json["method"] == "OPTIONS"
    assert not [name for name in answer.headers if name.startswith("access")]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a certificate for 127.0.0.1 and its key, in one file."""
    folder = tmp_path_factory.mktemp("tls")
    file = folder / "both.pem"
    file.write_bytes(b"".join(part.read_bytes() for part in certify(folder)))
    return file


def test_it_serves_over_tls(serve: Serve, certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    served = serve(lambda request: request.respond(200, request.body), Limits(body=5_000_000), tls=context)
    trusting = ssl.create_default_context(cafile=certificate)

    def connect() -> Client:
        plain = socket.create_connection(("127.0.0.1", served.listener.port), PATIENCE)
        return Client(trusting.wrap_socket(plain, server_hostname="127.0.0.1"))

    client = connect()
    for size in (10, 3_000_000):
        answer = client.send(POST + b"Content-Length: %d\r\n\r\n" % size + b"x" * size).answer()
        assert len(answer.body) == size
    assert client.send(GET + b"Connection: close\r\n\r\n").answer().headers["connection"] == "close"
    assert client.closed()
    # What is refused can be read here too, though the server cannot close its half of the connection.
    rejected = connect().send(POST + b"Content-Length: 6000000\r\n\r\n" + b"x" * 1_000_000)
    assert rejected.answer().status == 413
    rejected.close()
    # A client without TLS does not affect the others.
    plain = served.connect().send(GET + b"\r\n")
    plain.close()
    assert connect().send(GET + b"\r\n").answer().status == 200


def test_a_unix_socket_is_listened_on_and_removed(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "server.sock"
    served = serve(unix=str(path))
    plain = socket.socket(socket.AF_UNIX)
    plain.connect(str(path))
    client = Client(plain)
    assert client.send(GET + b"\r\n").answer().json["client"] == "unix"
    assert served.listener.port == 0
    client.close()
    served.run(served.listener.close(1)).result(PATIENCE)
    assert not path.exists()


def test_a_unix_socket_is_taken_over_from_a_dead_server_only(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "server.sock"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    served = serve(unix=str(path))
    with pytest.raises(OSError, match="already in use by another server") as caught:
        serve(unix=str(path))
    assert caught.value.errno == errno.EADDRINUSE
    assert caught.value.filename == str(path)
    served.run(served.listener.close(1)).result(PATIENCE)

    path.write_text("precious")
    with pytest.raises(OSError, match="not a socket"):
        serve(unix=str(path))
    assert path.read_text() == "precious"
    with pytest.raises(OSError, match="cannot create the socket"):
        serve(unix=str(tmp_path / "missing" / "server.sock"))
    with pytest.raises(OSError, match="too long"):
        serve(unix=str(tmp_path / ("x" * 200)))


def test_a_port_that_is_taken_is_an_error(serve: Serve) -> None:
    served = serve()
    with pytest.raises(OSError) as caught:
        served.run(listen(echo, "127.0.0.1", served.listener.port, Limits())).result(PATIENCE)
    assert caught.value.errno == errno.EADDRINUSE


# The end.


def test_closing_answers_requests_and_disconnects_idle_clients(serve: Serve) -> None:
    kept = Kept()
    served = serve(kept)
    idle, busy, receiving = served.connect(), served.connect(), served.connect()
    served.call(lambda: None)
    busy.send(GET + b"\r\n")
    request = kept.next()
    receiving.send(POST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n")
    assert receiving.answer().status == 100
    closing = served.run(served.listener.close(10 * PATIENCE))
    assert idle.closed()
    with pytest.raises(ConnectionRefusedError):
        served.connect()
    assert not closing.done()
    served.call(request.respond, 200)
    assert busy.answer().headers["connection"] == "close"
    assert busy.closed()
    receiving.send(b"hello")
    served.call(kept.next().respond, 200)
    assert receiving.answer().headers["connection"] == "close"
    assert receiving.closed()
    closing.result(PATIENCE)


def test_closing_ends_after_the_last_part_of_a_stream(serve: Serve) -> None:
    kept = Kept()
    served = serve(kept)
    client = served.connect().send(GET + b"\r\n")
    request = kept.next()
    served.call(request.start, 200)
    closing = served.run(served.listener.close(10 * PATIENCE))
    served.call(request.send, b"last")
    served.call(request.end)
    assert client.answer().body == b"last"
    assert client.closed()
    closing.result(PATIENCE)


def test_closing_waits_no_longer_than_its_grace(serve: Serve) -> None:
    kept = Kept()
    served = serve(kept)
    client = served.connect().send(GET + b"\r\n")
    request = kept.next()
    served.run(served.listener.close(0.1)).result(PATIENCE)
    assert kept.disconnected.get(timeout=PATIENCE) is request
    assert client.closed()


def test_nothing_is_logged_of_clients_that_misbehave(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    served = serve()
    for raw in (b"GARBAGE\r\n\r\n", GET, POST + b"Content-Length: 99999999\r\n\r\n"):
        served.connect().send(raw).close()
    served.works()
    assert not [record for record in caplog.records if record.name.startswith("torchmar")]
