"""An answer that a handler sends in parts is an event stream for clients that accept one."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from tests.support import event_stream
from tests.support.event_stream import Event
from tests.support.packing import pack_handler
from tests.support.servers import write_config
from tests.support.waiting import until
from torchmar.engines.builtin import Builtin

# Does what the header ``do`` says: sends parts through TorchServe's function, or yields them.
SENDS = """
import pathlib, time
from ts.handler_utils.utils import send_intermediate_predict_response

def handle(rows, context):
    if rows is None:
        return None
    what, _, more = (context.get_request_header(0, "do") or "").partition(" ")
    def send(*parts):
        for part in parts:
            send_intermediate_predict_response([part], context.request_ids, "Intermediate", 200, context)
    if what == "parts":
        send("one", "two\\nlines\\r\\nmore", "")
        return ["three"]
    if what == "documents":
        send({"token": 1})
        return [{"token": 2, "text": "K\u00e4se"}]
    if what == "own":
        context.set_response_content_type(0, "text/event-stream")
        send("event: mine\\ndata: 1\\n\\n")
        return ["data: 2\\n\\n"]
    if what == "binary":
        send("one", b"\\xff\\xfe")
        return ["three"]
    if what == "image":
        context.set_response_content_type(0, "image/png")
        return [b"\\x89PNG\\xff"]
    if what == "break":
        send("one")
        raise ValueError("no")
    if what == "status":
        send("one")
        context.set_response_status(418, idx=0)
        return [{"message": "short and stout"}]
    if what == "large":
        send("one")
        return ["x" * 200_000]
    if what == "exit":
        send("one")
        import os
        os._exit(3)
    if what == "refuse":
        context.set_response_status(422, idx=0)
        return [{"message": "no"}]
    if what == "wait":
        send("begun")
        while not pathlib.Path(more).exists():
            send("tick")
            time.sleep(0.01)
        pathlib.Path(more + ".ended").write_text("")
        return ["ended"]
    if what == "seen":
        send("first")
        while not pathlib.Path(more).exists():
            time.sleep(0.01)
        return ["last"]
    return ["whole"]
"""
YIELDS = """
def handle(rows, context):
    if rows is None:
        return None
    return parts(rows, context)

def parts(rows, context):
    what = context.get_request_header(0, "do") or ""
    yield [f"one of {len(rows)}"] * len(rows)
    if what == "break":
        raise ValueError("no")
    if what == "short":
        yield []
    yield [{"two": 2}] * len(rows)
    if what == "return":
        return ["end"] * len(rows)
"""
EVENTS = {"Accept": "text/event-stream"}
MOST = 100_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builtin]:
    folder = tmp_path_factory.mktemp("events")
    for name, code in (("sends", SENDS), ("yields", YIELDS)):
        pack_handler(folder / "store", code, name=name)
    config = write_config(
        folder,
        disable_token_authorization="true",
        torchmar_routes='{"/chat": "sends"}',
        torchmar_access_log="true",
        max_response_size=str(MOST),
    )
    with Builtin(config, folder / "store", folder / "run") as running:
        for name in ("sends", "yields"):
            running.load(folder / "store" / f"{name}-1.0.mar")
        yield running


@contextlib.contextmanager
def asked(
    server: Builtin, do: str, headers: Mapping[str, str] = EVENTS, path: str = "/predictions/sends"
) -> Iterator[http.client.HTTPResponse]:
    address = str(server.server.inference).rpartition("/")[2]
    with closing(http.client.HTTPConnection(address, timeout=60)) as connection:
        connection.request("POST", path, b"x", {"do": do, **headers})
        yield connection.getresponse()


def chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Yield what was received, when it was received."""
    while data := response.read1():
        yield data


def events(
    server: Builtin, do: str, headers: Mapping[str, str] = EVENTS, path: str = "/predictions/sends"
) -> list[Event]:
    with asked(server, do, headers, path) as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/event-stream"
        return list(event_stream.parse(chunks(response)))


def test_each_part_is_an_event_and_the_end_closes_the_stream(server: Builtin) -> None:
    expected = [Event("message", "one"), Event("message", "two\nlines\nmore"), Event("message", "three")]
    assert events(server, "parts") == expected
    assert events(server, "parts", {"Accept": "application/json;q=0.9, text/event-stream"}) == expected
    assert events(server, "parts", path="/chat") == expected
    first, last = events(server, "documents")
    assert (json.loads(first.data), json.loads(last.data)) == ({"token": 1}, {"token": 2, "text": "K\u00e4se"})


def test_events_are_neither_cached_nor_held_back(server: Builtin, tmp_path: Path) -> None:
    with asked(server, f"seen {tmp_path / 'go'}") as response:
        assert response.headers["Cache-Control"] == "no-cache"
        assert response.headers["X-Accel-Buffering"] == "no"
        assert response.headers["x-request-id"]
        stream = event_stream.parse(chunks(response))
        assert next(stream).data == "first"  # while the handler waits
        (tmp_path / "go").write_text("")
        assert [event.data for event in stream] == ["last"]


@pytest.mark.parametrize("accept", ["", "*/*", "application/json", "text/event-stream;q=0, */*"])
def test_without_that_header_the_answer_is_as_before(server: Builtin, accept: str) -> None:
    headers = {"Accept": accept} if accept else {}
    with asked(server, "parts", headers) as response:
        assert response.headers["Content-Type"] != "text/event-stream"
        assert "no-store" in response.headers["Cache-Control"]
        assert response.read() == b"onetwo\nlines\r\nmorethree"
    with asked(server, "break", headers) as response, pytest.raises((http.client.IncompleteRead, OSError)):
        response.read()


@pytest.mark.parametrize(
    ("do", "code", "message"),
    [
        ("break", 503, "Prediction failed"),
        ("large", 500, "more than max_response_size"),
        ("exit", 500, "Worker died."),
        ("binary", 500, "not UTF-8 text"),
    ],
)
def test_an_error_in_the_middle_is_an_event_and_the_last(server: Builtin, do: str, code: int, message: str) -> None:
    first, last = events(server, do)
    assert first == Event("message", "one")
    document = json.loads(last.data)
    assert (last.type, document["code"]) == ("error", code)
    assert message in document["message"]


def test_a_last_part_with_an_error_status_is_an_error(server: Builtin) -> None:
    _, last = events(server, "status")
    assert (last.type, json.loads(last.data)) == ("error", {"message": "short and stout"})


def test_an_error_before_the_first_part_has_its_own_status(server: Builtin) -> None:
    with asked(server, "refuse") as response:
        assert (response.status, json.loads(response.read())) == (422, {"message": "no"})
    with asked(server, "", path="/predictions/nobody") as response:
        assert (response.status, json.loads(response.read())["type"]) == (404, "ModelNotFoundException")


def test_a_whole_answer_is_one_event_only_for_a_client_that_reads_nothing_else(server: Builtin) -> None:
    assert events(server, "whole") == [Event("message", "whole")]
    with asked(server, "whole", {"Accept": "text/event-stream, application/json"}) as response:
        assert response.read() == b"whole"
    with asked(server, "image") as response:
        assert (response.headers["Content-Type"], response.read()) == ("image/png", b"\x89PNG\xff")


def test_events_that_a_handler_writes_itself_are_not_wrapped(server: Builtin) -> None:
    assert events(server, "own") == [Event("mine", "1"), Event("message", "2")]


def test_a_handler_may_yield_its_parts(server: Builtin) -> None:
    path = "/predictions/yields"
    one, two = events(server, "", path=path)
    assert (one.data, json.loads(two.data)) == ("one of 1", {"two": 2})
    assert [event.data for event in events(server, "return", path=path)][-1] == "end"
    with asked(server, "", {}, path) as response:
        assert response.read() == b'one of 1{\n  "two": 2\n}'
    for do, message in (("break", "Prediction failed"), ("short", "number of batch response mismatched")):
        *_, last = events(server, do, path=path)
        assert (last.type, json.loads(last.data)["message"]) == ("error", message)


def test_the_job_of_a_client_that_disconnects_is_cancelled(server: Builtin, tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    (before,) = server.management.describe("sends")[0].workers
    with asked(server, f"wait {stop}") as response:
        stream = event_stream.parse(chunks(response))
        assert [next(stream).data for _ in range(2)] == ["begun", "tick"]
        request_id = response.headers["x-request-id"]
    log = server.folder / "logs" / "access.log"
    until(lambda: any(request_id in line and " 499 " in line for line in log.read_text().splitlines()))
    stop.write_text("")
    until(lambda: (tmp_path / "stop.ended").exists())
    assert events(server, "parts")[0].data == "one"
    (after,) = server.management.describe("sends")[0].workers
    assert after.pid == before.pid


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_curl_shows_each_event_as_it_is_sent(server: Builtin, tmp_path: Path) -> None:
    url = f"{server.server.inference}/chat"
    arguments = ["curl", "-sN", url, "-d", "x", "-H", "Accept: text/event-stream", "-H", f"do: seen {tmp_path / 'go'}"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as curl:
        assert curl.stdout
        assert curl.stdout.readline() == b"data: first\n"
        (tmp_path / "go").write_text("")
        assert curl.stdout.read() == b"\ndata: last\n\n"


def test_a_client_of_http_1_0_reads_events_until_the_connection_is_closed(server: Builtin) -> None:
    host, _, port = str(server.server.inference).rpartition("/")[2].partition(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(
            b"POST /chat HTTP/1.0\r\nAccept: text/event-stream\r\ndo: parts\r\nContent-Length: 1\r\n\r\nx"
        )
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    body = received.partition(b"\r\n\r\n")[2]
    assert [event.data for event in event_stream.parse([body])] == ["one", "two\nlines\nmore", "three"]
