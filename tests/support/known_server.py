"""A server of known behaviour, for tests of load measurements: a process with TorchServe's paths over HTTP/1.1.

``POST /predictions/NAME`` is answered with `right_answer` of its body; ``GET /ping``, ``GET /models/NAME`` and
``GET /counts`` are for clients and tests. Run as a module, it serves the behaviour in its argument until stdin ends.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import http.client
import json
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from tests.support.paths import ROOT

_REASONS = {200: "OK", 404: "Not Found", 411: "Length Required", 503: "Service Unavailable"}


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """The behaviour of a server; the defaults answer every request correctly after 20 ms.

    Attributes:
        delay_s: seconds from a complete request (or a free worker) to its answer.
        workers: number of simultaneous requests, others wait; None: all. One worker with a delay of 20 ms
            answers at most 50 requests a second.
        stall_at: the prediction at which a stall begins, in which nothing is read or answered; 0: none. It is no
            time, because on a busy machine, a measurement begins long after the first prediction.
        stall_s: the length of the stall in seconds.
        error_every: number of predictions of which one gets the status 503; 0: none.
        wrong_every: number of predictions of which one gets a wrong answer with the status 200; 0: none.
        read_bytes_per_s: speed of reading requests, on each connection; None: no limit.
    """

    delay_s: float = 0.02
    workers: int | None = None
    stall_at: int = 0
    stall_s: float = 2.0
    error_every: int = 0
    wrong_every: int = 0
    read_bytes_per_s: int | None = None


def right_answer(body: bytes) -> bytes:
    """Return the right answer to a body, which differs for all bodies."""
    return json.dumps({"bytes": len(body), "crc32": zlib.crc32(body)}).encode()


@dataclass(frozen=True)
class KnownServer:
    """A running server: its address, and the number of predictions by their outcome."""

    address: str

    def counts(self) -> dict[str, int]:
        """Return the numbers of ``right``, ``wrong`` and ``error`` predictions, and the number of ``connections``."""
        connection = http.client.HTTPConnection(self.address.removeprefix("http://"), timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", "/counts")
            return dict(json.loads(connection.getresponse().read()))


@contextlib.contextmanager
def running(behaviour: Behaviour | None = None) -> Iterator[KnownServer]:
    """Run a server in a separate process, so that it does not compete with its client for the interpreter."""
    document = json.dumps(dataclasses.asdict(behaviour or Behaviour()))
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.known_server", document],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin and process.stdout
    try:
        port = int(process.stdout.readline())
        yield KnownServer(f"http://127.0.0.1:{port}")
    finally:
        process.stdin.close()
        process.stdout.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:  # it is in a long stall
            process.kill()
            process.wait()


class _Server:
    """The state that all connections share: the order of predictions, workers, the stall."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.outcomes = collections.Counter(right=0, wrong=0, error=0, connections=0)
        self._predictions = 0
        self._free_at = [0.0] * (behaviour.workers or 0)
        self._loop = asyncio.get_running_loop()

    def predict(self, body: bytes) -> tuple[float, int, bytes]:
        """Return the time of the answer (by the event loop's clock), its status and its body."""
        behaviour, now = self.behaviour, self._loop.time()
        self._predictions += 1
        if self._predictions == behaviour.stall_at:
            # Blocks the event loop, so that connections stall like those of a stopped process.
            self._loop.call_soon(time.sleep, behaviour.stall_s)
        start = now
        if self._free_at:
            start = max(now, self._free_at[0])
            self._free_at = sorted([*self._free_at[1:], start + behaviour.delay_s])
        outcome, status, answer = "right", 200, right_answer(body)
        if behaviour.error_every and self._predictions % behaviour.error_every == 0:
            outcome, status, answer = "error", 503, _error(503, "InternalServerException", "Prediction failed")
        elif behaviour.wrong_every and self._predictions % behaviour.wrong_every == 0:
            outcome, answer = "wrong", right_answer(body + b"another")
        self.outcomes[outcome] += 1
        return start + behaviour.delay_s, status, answer


def _error(code: int, kind: str, message: str) -> bytes:
    return json.dumps({"code": code, "type": kind, "message": message}, indent=2).encode()


class _Connection(asyncio.BufferedProtocol):
    """One connection: requests are answered in order, one at a time."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._read_rate = server.behaviour.read_bytes_per_s
        # A slow reader reads 20 times a second.
        self._buffer = bytearray(max(1, self._read_rate // 20) if self._read_rate else 1 << 16)
        self._received = bytearray()
        self._answering = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server.outcomes["connections"] += 1

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._received += self._buffer[:nbytes]
        if self._read_rate:
            self._transport.pause_reading()
            self._loop.call_later(nbytes / self._read_rate, self._resume)
        self._next()

    def _resume(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def _next(self) -> None:
        head, separator, _ = self._received.partition(b"\r\n\r\n")
        if self._answering or not separator:
            return
        first, *lines = bytes(head).decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if "transfer-encoding" in headers:
            self._reply(411, _error(411, "LengthRequired", "a request needs a Content-Length"), close=True)
            return
        end = len(head) + 4 + int(headers.get("content-length", 0))
        if len(self._received) < end:
            return
        body = bytes(self._received[len(head) + 4 : end])
        del self._received[:end]
        method, path, _ = first.split(" ", 2)
        close = headers.get("connection", "").lower() == "close"
        parts = path.partition("?")[0].strip("/").split("/")
        if method == "POST" and parts[0] == "predictions" and len(parts) in (2, 3):
            at, status, answer = self._server.predict(body)
            self._answering = True
            self._loop.call_at(at, self._reply, status, answer, close)
        elif path == "/ping":
            self._reply(200, b'{"status": "Healthy"}', close)
        elif path == "/counts":
            self._reply(200, json.dumps(self._server.outcomes).encode(), close)
        elif method == "GET" and parts[0] == "models" and len(parts) == 2:
            model = {"modelName": parts[1], "modelVersion": "1.0", "workers": [{"id": "9000", "status": "READY"}]}
            self._reply(200, json.dumps([model]).encode(), close)
        else:
            self._reply(404, _error(404, "ResourceNotFoundException", f"no such path: {path}"), close)

    def _reply(self, status: int, body: bytes, close: bool) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(
            f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: {'close' if close else 'keep-alive'}\r\n\r\n".encode()
            + body
        )
        self._answering = False
        if close:
            self._transport.close()
        elif self._received:
            self._next()


async def _serve(behaviour: Behaviour) -> None:
    loop = asyncio.get_running_loop()
    server = _Server(behaviour)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if behaviour.read_bytes_per_s:
        # Otherwise the kernel would read megabytes ahead, and no client would notice a slow reader.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    listener.bind(("127.0.0.1", 0))
    await loop.create_server(lambda: _Connection(server), sock=listener, backlog=1024)
    print(listener.getsockname()[1], flush=True)  # noqa: T201  # read by the process that started this one
    ended = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), ended.set)
    await ended.wait()


if __name__ == "__main__":
    asyncio.run(_serve(Behaviour(**json.loads(sys.argv[1]))))
