"""The bytes of responses, with the headers that TorchServe sends."""

from __future__ import annotations

import http
import string
from collections.abc import Iterable
from dataclasses import dataclass

from torchmar.server.api_error import ApiError

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
KEEP_ALIVE = b"connection: keep-alive\r\n"
CLOSE = b"connection: close\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n"
LAST_CHUNK = b"0\r\n\r\n"
JSON = "application/json"
# Statuses of responses without a body and without a header for its length.
BODILESS = frozenset({204, 304})

_UNCACHED = (
    b"Pragma: no-cache\r\n"
    b"Cache-Control: no-cache; no-store, must-revalidate, private\r\n"
    b"Expires: Thu, 01 Jan 1970 00:00:00 UTC\r\n"
)
# Clients of event streams and proxies read this header strictly; TorchServe's has a semicolon in place of a comma.
_EVENTS_UNCACHED = b"Cache-Control: no-cache\r\n"
_REVALIDATED = b"Cache-Control: no-cache\r\n"
# Headers that only the server sets; TorchServe also overwrites a handler's headers with these names.
_SERVER_HEADERS = frozenset(
    {
        "cache-control",
        "connection",
        "content-length",
        "expires",
        "keep-alive",
        "pragma",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_NAME = frozenset(string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~")
# Limits for the caches: handlers choose statuses, content types and names, which may differ each time.
_CACHE_SIZE = 1024


@dataclass(frozen=True)
class Cors:
    """The rights of pages of other origins; TorchServe's ``cors_allowed_origin``, ``_methods`` and ``_headers``.

    Each header is sent unchanged with every response; an empty one is not sent.
    """

    origin: str
    methods: str = ""
    headers: str = ""


class ResponseHeads(dict[tuple[int, str], bytes]):
    """The first lines of responses, cached for each status and content type: ``heads[200, "text/plain"]``.

    Args:
        cors: headers for every response.
        cache_control: header that limits how long clients may keep a response; similar headers may follow.

    Raises ValueError for values that cannot be sent.
    """

    def __init__(self, cors: Cors | None = None, cache_control: bytes = _UNCACHED) -> None:
        super().__init__()
        self._prefixes: dict[str, bytes] = {}
        self._cors = b""
        self._cache_control = cache_control
        self._revalidated: ResponseHeads | None = None
        self._given_cors = cors
        if cors:
            allowed = {"origin": cors.origin, "methods": cors.methods, "headers": cors.headers}
            self._cors = self.lines((f"access-control-allow-{name}", value) for name, value in allowed.items() if value)

    def __missing__(self, key: tuple[int, str]) -> bytes:
        status, content_type = key
        if not 200 <= status <= 999:
            raise ValueError(f"{status} is not the status of a response")
        try:
            reason = http.HTTPStatus(status).phrase
        except ValueError:
            reason = "Unknown"
        lines = self.lines([("content-type", content_type)]) if content_type else b""
        if len(self) >= _CACHE_SIZE:
            self.clear()
        lines += _EVENTS_UNCACHED if content_type.startswith("text/event-stream") else self._cache_control
        self[key] = head = b"HTTP/1.1 %d %b\r\n%b%b" % (status, reason.encode(), lines, self._cors)
        return head

    @property
    def revalidated(self) -> ResponseHeads:
        """The heads of responses that clients may keep, but must revalidate before each use (``ETag``)."""
        if self._revalidated is None:
            self._revalidated = ResponseHeads(self._given_cors, _REVALIDATED)
        return self._revalidated

    def lines(self, headers: Iterable[tuple[str, str]]) -> bytes:
        """Return the lines of ``headers``, without headers that only the server sets."""
        lines = b""
        for name, value in headers:
            prefix = self._prefixes.get(name)
            if prefix is None:
                prefix = self._prefix(name)
            if prefix:
                # One quick test that is almost always true; only the other headers are searched.
                if not value.isprintable() and not {"\r", "\n", "\0"}.isdisjoint(value):
                    raise ValueError(f"the value of header {name} has a line break or a NUL in it: {value[:80]!r}")
                lines += b"%b%b\r\n" % (prefix, value.encode("latin-1", "replace"))
        return lines

    def _prefix(self, name: str) -> bytes:
        """Return ``b"name: "``, or an empty value if only the server sets the header."""
        if not name or not _NAME.issuperset(name):
            raise ValueError(f"{name[:80]!r} is not the name of a header")
        if len(self._prefixes) >= _CACHE_SIZE:
            self._prefixes.clear()
        self._prefixes[name] = prefix = b"" if name.lower() in _SERVER_HEADERS else b"%b: " % name.encode()
        return prefix

    def final_response(self, error: ApiError, target: bytes) -> bytes:
        """Return an error response after which the connection ends.

        Args:
            error: error to send.
            target: target of the request, as far as it is known.
        """
        body = error.body_for(target)
        head = self[error.status, JSON] + self.lines(error.headers.items())
        return b"%b%bcontent-length: %d\r\n\r\n%b" % (head, CLOSE, len(body), body)
