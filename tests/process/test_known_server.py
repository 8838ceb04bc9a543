"""The server of known behaviour, with which load measurements are tested, has the behaviour that it is given."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from contextlib import closing
from urllib.parse import urlsplit

import pytest

from tests.support import known_server
from tests.support.known_server import Behaviour, right_answer

pytestmark = pytest.mark.process


def connect(address: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)


def predict(connection: http.client.HTTPConnection, body: bytes) -> tuple[int, bytes]:
    connection.request("POST", "/predictions/known", body)
    response = connection.getresponse()
    return response.status, response.read()


def test_one_connection_gets_the_right_answers_none_before_the_delay() -> None:
    with known_server.running() as server, closing(connect(server.address)) as connection:
        for number in range(5):
            start = time.monotonic()
            assert predict(connection, b"%d" % number) == (200, right_answer(b"%d" % number))
            assert time.monotonic() - start >= 0.02
        assert server.counts() == {"right": 5, "wrong": 0, "error": 0, "connections": 2}


def test_every_hundredth_answer_is_an_error_or_wrong() -> None:
    behaviour = Behaviour(delay_s=0, error_every=100, wrong_every=50)
    with known_server.running(behaviour) as server, closing(connect(server.address)) as connection:
        answers = [predict(connection, b"x") for _ in range(200)]
        assert [number for number, (status, _) in enumerate(answers, 1) if status == 503] == [100, 200]
        assert json.loads(answers[99][1])["type"] == "InternalServerException"
        wrong = [
            number for number, (status, body) in enumerate(answers, 1) if (status, body) != (200, right_answer(b"x"))
        ]
        assert wrong == [50, 100, 150, 200]
        assert server.counts() == {"right": 196, "wrong": 2, "error": 2, "connections": 2}


def test_a_stall_delays_every_connection_once() -> None:
    behaviour = Behaviour(delay_s=0, stall_at=40, stall_s=1)
    with known_server.running(behaviour) as server:
        longest = []

        def send() -> None:
            times = []
            with closing(connect(server.address)) as connection:
                for _ in range(60):
                    start = time.monotonic()
                    assert predict(connection, b"x")[0] == 200
                    times.append(time.monotonic() - start)
                    time.sleep(0.02)
            longest.append(max(times))

        threads = [threading.Thread(target=send) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(longest) == 2
    assert all(seconds > 0.8 for seconds in longest)


def test_one_worker_answers_one_request_after_the_other() -> None:
    with known_server.running(Behaviour(delay_s=0.05, workers=1)) as server:
        connections = [connect(server.address) for _ in range(4)]
        start = time.monotonic()
        for connection in connections:
            connection.request("POST", "/predictions/known", b"x")
        for connection in connections:
            with closing(connection):
                assert connection.getresponse().read() == right_answer(b"x")
        assert time.monotonic() - start >= 0.2


def test_a_slow_reader_makes_the_client_wait_with_its_request() -> None:
    with known_server.running(Behaviour(delay_s=0, read_bytes_per_s=1_000_000)) as server:
        body = bytes(500_000)
        with closing(connect(server.address)) as connection:
            start = time.monotonic()
            assert predict(connection, body) == (200, right_answer(body))
            assert time.monotonic() - start >= 0.4
    with (
        known_server.running(Behaviour(delay_s=0, read_bytes_per_s=1000)) as server,
        socket.create_connection(("127.0.0.1", urlsplit(server.address).port or 0)) as client,
    ):
        client.sendall(b"POST /predictions/known HTTP/1.1\r\ncontent-length: 10000000\r\n\r\n")
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            for _ in range(1000):
                client.send(bytes(10_000))


def test_other_paths_are_those_of_torchserve() -> None:
    with known_server.running() as server, closing(connect(server.address)) as connection:
        statuses = {}
        for path in ("/ping", "/models/known", "/nowhere"):
            connection.request("GET", path)
            response = connection.getresponse()
            statuses[path] = response.status
            document = json.loads(response.read())
        assert statuses == {"/ping": 200, "/models/known": 200, "/nowhere": 404}
        assert document == {"code": 404, "type": "ResourceNotFoundException", "message": "no such path: /nowhere"}
