"""The text that the middleware sends has no secrets, its time limit applies, applications read their whole body."""

from __future__ import annotations

import asyncio
import doctest
import importlib
import io
import logging
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest

from torchmar.guard import AsgiGuard, Guard, Verdict, WsgiGuard, as_text
from torchmar.guard.http_request import redacted

FORM = "application/x-www-form-urlencoded"


@pytest.fixture
def silent() -> Iterator[str]:
    """Return the address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def absent() -> str:
    """Return an address where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Return the body that was sent."""
    start_response("200 OK", [])
    return [environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))]


def answer(app: WsgiGuard, body: bytes = b"", **environ: Any) -> tuple[str, bytes]:
    setup_testing_defaults(environ)
    environ |= {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
    statuses: list[str] = []
    content = b"".join(app(environ, lambda status, headers: statuses.append(status)))
    return statuses[0], content


# ------------------------------------------------------------------------------------- what is sent


def test_the_text_has_method_target_headers_and_body() -> None:
    text = as_text("POST", "/a%20b?c=d", {"Content-Type": FORM}, b"x=%27&y=2")
    assert text == f"POST /a%20b?c=d\nContent-Type: {FORM}\n\nx=%27&y=2"


def test_headers_with_credentials_are_left_out() -> None:
    text = as_text("GET", "/", {"Cookie": "s=1", "AUTHORIZATION": "Bearer 2", "X-Api-Key": "3", "Accept": "4"})
    assert text == "GET /\nAccept: 4"


@pytest.mark.parametrize("content_type", ["image/png", "application/octet-stream", "application/zip"])
def test_a_body_that_is_no_text_is_left_out(content_type: str) -> None:
    assert as_text("PUT", "/", {"Content-Type": content_type}, b"\x89PNG").endswith(content_type)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("GET /?a=1&access_token=x%27y&b=2", "GET /?a=1&access_token=***&b=2"),
        ("POST /\n\nuser%5Bpassword%5D=geheim&next=/", "POST /\n\nuser%5Bpassword%5D=***&next=/"),
        ('{"a": {"new_password": "g\\"h"}, "b": "c"}', '{"a": {"new_password": "***"}, "b": "c"}'),
        ('{"client_secret":"cut off', '{"client_secret":"***'),
        ('{"token": 12345, "b": 1}', '{"token": ***, "b": 1}'),
        (
            '--x\r\nContent-Disposition: form-data; name="password"\r\n\r\nge\r\nheim\r\n--x--',
            '--x\r\nContent-Disposition: form-data; name="password"\r\n\r\n***\r\n--x--',
        ),
        ("GET /passwords?page=2", "GET /passwords?page=2"),
    ],
)
def test_values_of_fields_that_hold_secrets_are_replaced(text: str, expected: str) -> None:
    assert redacted(text, ["password", "token", "secret"]) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("password" * 500, "password" * 500),
        ('"password' * 500, '"password' * 500),
        ('"password":"' + "\\" * 4000, '"password":"***'),
        ("?" * 4000, "?" * 4000),
        ('name="' * 700, 'name="' * 700),
    ],
)
def test_values_are_replaced_in_hostile_text_without_exponential_backtracking(text: str, expected: str) -> None:
    assert redacted(text, ["password", "token", "secret"]) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"headers": ["Cookie"]}, "cookie holds credentials"),
        ({"on_failure": "open"}, "'allow' or 'block'"),
        ({"threshold": 0}, "threshold is 0"),
        ({"time_limit_s": 0}, "time_limit_s is 0"),
        ({"max_body": -1}, "max_body is -1"),
    ],
)
def test_wrong_options_are_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Guard("http://127.0.0.1:8080", **options)


# ----------------------------------------------------------------------------- without an answer


@pytest.mark.parametrize(("on_failure", "status"), [("allow", "200 OK"), ("block", "503 Service Unavailable")])
def test_after_the_time_limit_a_request_is_allowed_or_blocked(silent: str, on_failure: Any, status: str) -> None:
    guard = Guard(silent, time_limit_s=0.1, on_failure=on_failure)
    assert answer(WsgiGuard(application, guard), b"body")[0] == status
    assert "within 0.1 s" in (guard.check("GET", "/", {}).error or "")
    guard.close()


@pytest.mark.parametrize("on_failure", ["allow", "block"])
def test_without_a_server_a_request_is_allowed_or_blocked(absent: str, on_failure: Any) -> None:
    verdict = Guard(absent, on_failure=on_failure, time_limit_s=5).check("GET", "/", {})
    assert verdict.blocked == (on_failure == "block")
    assert verdict.probability is None
    assert verdict.error


def test_the_event_loop_runs_while_a_request_waits(silent: str) -> None:
    async def run() -> tuple[list[Verdict], int]:
        guard = Guard(silent, time_limit_s=0.5, connections=1)
        checks = asyncio.gather(*(guard.check_async("GET", "/", {}) for _ in range(5)))
        turns = 0
        while not checks.done():
            await asyncio.sleep(0.01)
            turns += 1
        return await checks, turns

    verdicts, turns = asyncio.run(run())
    # Also those that wait for the only connection have the limit.
    assert [verdict.blocked for verdict in verdicts] == [False] * 5
    assert all("within 0.5 s" in (verdict.error or "") for verdict in verdicts)
    assert turns > 1


def test_a_closed_guard_does_as_configured(absent: str) -> None:
    guard = Guard(absent, on_failure="block")
    guard.close()
    assert guard.check("GET", "/", {}).status == 503


def test_the_log_has_the_path_and_neither_query_nor_body(absent: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "torchmar.guard"):
        Guard(absent, time_limit_s=5).check("POST", "/pay%0a\n?card=4711", {"content-type": FORM}, b"pin=0815")
    assert "POST /pay%0a\\n without a verdict" in caplog.text
    assert "4711" not in caplog.text
    assert "0815" not in caplog.text


# ------------------------------------------------------------------------------------- the bodies


def test_a_wsgi_application_reads_its_whole_body(absent: str) -> None:
    body = bytes(range(256)) * 100
    app = WsgiGuard(application, Guard(absent, max_body=1000, time_limit_s=5))
    assert answer(app, body, REQUEST_METHOD="POST") == ("200 OK", body)


@pytest.mark.parametrize("max_body", [1, 5, 6, 7, 100])
def test_a_wsgi_application_reads_its_body_by_lines(absent: str, max_body: int) -> None:
    lines: list[bytes] = []

    def by_lines(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        stream = environ["wsgi.input"]
        lines.extend([stream.readline(3), stream.readline(), stream.read(2), *stream])
        return []

    answer(WsgiGuard(by_lines, Guard(absent, max_body=max_body, time_limit_s=5)), b"one\ntwo\nthree\nfour")
    assert lines == [b"one", b"\n", b"tw", b"o\n", b"three\n", b"four"]


@pytest.mark.parametrize("max_body", [0, 3, 4, 100])
def test_an_asgi_application_receives_every_message_of_its_body(absent: str, max_body: int) -> None:
    incoming = [
        {"type": "http.request", "body": part, "more_body": part != b"ef"} for part in (b"ab", b"", b"cd", b"ef")
    ]
    received: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while True:
            received.append(await receive())
            if not received[-1].get("more_body"):
                return

    async def run() -> None:
        messages = iter(incoming)

        async def receive() -> Any:
            return next(messages)

        async def send(message: Any) -> None:
            raise AssertionError(message)

        scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-length", b"6")]}
        await AsgiGuard(app, Guard(absent, max_body=max_body, time_limit_s=5))(scope, receive, send)

    asyncio.run(run())
    assert received == incoming


@pytest.mark.parametrize("name", ["asgi", "guard", "http_request", "wsgi"])
def test_examples_of_docstrings_work(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"torchmar.guard.{name}"))
    assert result.failed == 0
    assert result.attempted or name == "asgi"


def test_the_middleware_imports_neither_torch_nor_a_framework() -> None:
    code = (
        "import sys, torchmar.guard\n"
        "heavy = {'torch', 'numpy', 'django', 'starlette', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
