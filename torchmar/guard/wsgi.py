"""WSGI middleware (PEP 3333)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from torchmar.guard.guard import Guard


class WsgiGuard:
    """A WSGI application behind a guard: blocked requests get 403, or 503 if the model did not answer.

    Args:
        application: the application.
        guard: the guard.

    Examples:
        >>> def application(environ, start_response):
        ...     start_response("200 OK", [("Content-Type", "text/plain")])
        ...     return [b"hello"]
        >>> application = WsgiGuard(application, Guard("http://127.0.0.1:8080"))
    """

    def __init__(self, application: Callable[..., Iterable[bytes]], guard: Guard) -> None:
        self.application = application
        self.guard = guard

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request, or block it."""
        body = _read_start(environ, self.guard.max_body)
        verdict = self.guard.check(environ["REQUEST_METHOD"], target(environ), headers(environ), body)
        if not verdict.blocked:
            return self.application(environ, start_response)
        phrase = HTTPStatus(verdict.status).phrase
        content = f"{phrase}\n".encode()
        start_response(
            f"{verdict.status} {phrase}", [("Content-Type", "text/plain"), ("Content-Length", str(len(content)))]
        )
        return [content]


def target(environ: dict[str, Any]) -> str:
    """Return path and query as the client sent them, if the server has kept them; otherwise the path, encoded again."""
    raw = environ.get("RAW_URI") or environ.get("REQUEST_URI")  # gunicorn; uWSGI, mod_wsgi
    if raw:
        return str(raw)
    path = (environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")).encode("latin-1", errors="replace")
    query = environ.get("QUERY_STRING", "")
    return quote(path, safe="/:@!$&'()*+,;=~") + (f"?{query}" if query else "")


def headers(environ: dict[str, Any]) -> dict[str, str]:
    """Return the headers of a request, by name in lower case."""
    pairs = {key[5:].replace("_", "-").lower(): str(value) for key, value in environ.items() if key.startswith("HTTP_")}
    if environ.get("CONTENT_TYPE"):
        pairs["content-type"] = str(environ["CONTENT_TYPE"])
    return pairs


def _read_start(environ: dict[str, Any], size: int) -> bytes:
    """Return the first bytes of the body; the application can read them again."""
    length = environ.get("CONTENT_LENGTH") or ""
    # Without a length, the stream has an end only if the server marks it; otherwise a read would never return.
    count = min(int(length), size) if length.isdecimal() else size if environ.get("wsgi.input_terminated") else 0
    if not count:
        return b""
    stream = environ["wsgi.input"]
    start: bytes = stream.read(count)
    environ["wsgi.input"] = _Replayed(start, stream)
    return start


class _Replayed:
    """A stream whose first bytes have been read already."""

    def __init__(self, start: bytes, stream: Any) -> None:
        self._start = start
        self._stream = stream

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            start, self._start = self._start, b""
            return start + bytes(self._stream.read())
        start, self._start = self._start[:size], self._start[size:]
        return start + bytes(self._stream.read(size - len(start))) if len(start) < size else start

    def readline(self, size: int | None = -1) -> bytes:
        limit = len(self._start) if size is None or size < 0 else size
        end = self._start.find(b"\n", 0, limit) + 1
        if end or (self._start and limit < len(self._start)):
            return self.read(end or limit)
        start, self._start = self._start, b""
        if size is None or size < 0:
            return start + bytes(self._stream.readline())
        return start + bytes(self._stream.readline(size - len(start))) if len(start) < size else start

    def readlines(self, hint: int = -1) -> list[bytes]:
        return list(self)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")
