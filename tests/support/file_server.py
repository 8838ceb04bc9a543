"""An HTTP server of one file, with range requests (RFC 9110), whose connections break when a test requests it."""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FileServer:
    """A server of one file.

    Attributes:
        content: content of the file.
        etag: entity tag; None: made from the content; empty: none is sent.
        breaks: numbers of body bytes after which the next connections break, one for each.
        ranges: whether range requests are honoured.
        statuses: status codes of the next responses, in place of the file.
        pause_s: seconds between two parts; 0: the body is sent at once.
        part: bytes of each part.
        stalls: event that a test sets; until then, no byte of a body is sent; None: bodies are sent.
        requested: Range headers of the requests; empty for a request without one.
        address: address of the server.
    """

    content: bytes
    etag: str | None = None
    breaks: list[int] = field(default_factory=list)
    ranges: bool = True
    statuses: list[int] = field(default_factory=list)
    pause_s: float = 0
    part: int = 1 << 14
    stalls: threading.Event | None = None
    requested: list[str] = field(default_factory=list)
    address: str = ""

    @contextlib.contextmanager
    def serving(self) -> Iterator[FileServer]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *of: object) -> None:
                """Log nothing."""

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            self.address = f"http://127.0.0.1:{server.server_port}"
            threading.Thread(target=server.serve_forever, daemon=True).start()
            try:
                yield self
            finally:
                server.shutdown()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.requested.append(request.headers.get("range", ""))
        if self.statuses:
            request.send_error(self.statuses.pop(0))
            return
        etag = f'"{hashlib.sha256(self.content).hexdigest()[:16]}"' if self.etag is None else self.etag
        start = 0
        match = re.fullmatch(r"bytes=(\d+)-", self.requested[-1])
        if match and self.ranges and etag and request.headers.get("if-range") == etag:
            start = int(match[1])
        size = len(self.content)
        if start >= size:
            request.send_error(416)
            return
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        if etag:
            request.send_header("ETag", etag)
        request.send_header("Content-Length", str(size - start))
        request.end_headers()
        body = self.content[start:]
        if self.breaks:
            body = body[: self.breaks.pop(0)]
        if self.stalls:
            self.stalls.wait()
        with contextlib.suppress(OSError):
            for start in range(0, len(body), self.part) if self.pause_s else ():
                request.wfile.write(body[start : start + self.part])
                time.sleep(self.pause_s)
            if not self.pause_s:
                request.wfile.write(body)
        request.close_connection = True
