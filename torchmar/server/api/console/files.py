"""The files of the console's page: compressed once, with an ETag, and headers that restrict browsers to this server."""

from __future__ import annotations

import asyncio
import base64
import functools
import gzip
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from torchmar.server.api_error import ApiError
from torchmar.server.http import Request, compression

FOLDER = Path(__file__).parents[2] / "console"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
INDEX = "index.html"
#: The page of a console to which only links sign in, and not tokens.
LINK_ONLY = "link.html"
_INLINE_SCRIPT = re.compile(rb'<script type="importmap">(.*?)</script>', re.DOTALL)
#: Headers of every response below ``/console``. The page makes pictures of explanations and samples itself (blob:).
SECURITY_HEADERS = (
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)
_POLICY = (
    "default-src 'self'; script-src 'self' {hash}; img-src 'self' blob:; media-src 'self' blob:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
#: Headers of reports, which are pages without scripts.
REPORT_POLICY = (
    "Content-Security-Policy",
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox; frame-ancestors 'none'",
)
#: Headers of responses that browsers do not show as a page.
DATA_POLICY = ("Content-Security-Policy", "default-src 'none'; sandbox; frame-ancestors 'none'")


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    compressed: bytes
    content_type: str
    etag: str


@functools.cache
def load() -> dict[str, _File]:
    """Return all files by their path below ``/console/``. Blocking: the first call reads and compresses the files."""
    files = {}
    for path in sorted(FOLDER.rglob("*")):
        if path.suffix in _TYPES:
            files[path.relative_to(FOLDER).as_posix()] = _file(path.read_bytes(), _TYPES[path.suffix])
    page = files[INDEX].body.replace(b"<html ", b'<html data-sign-in="link" ', 1)
    return {**files, LINK_ONLY: _file(page, _TYPES[".html"])}


def _file(body: bytes, content_type: str) -> _File:
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    return _File(body, gzip.compress(body, 9, mtime=0), content_type, etag)


@functools.cache
def _page_policy() -> str:
    """Return the policy of the page: scripts of this server, and the import map inside the page."""
    script = _INLINE_SCRIPT.search(load()[INDEX].body)
    digest = base64.b64encode(hashlib.sha256(script[1]).digest()).decode() if script else ""
    return _POLICY.format(hash=f"'sha256-{digest}'")


async def respond(request: Request, name: str, index: str = INDEX) -> None:
    """Respond with a file.

    Args:
        request: request for the file.
        name: path of the file below ``/console/``; empty: the page.
        index: name of the page's file.

    Raises:
        ApiError: 404, there is no such file.
    """
    files = await asyncio.to_thread(load)
    file = files.get(name or index)
    if file is None:
        raise ApiError(404, "ResourceNotFoundException", f"The console has no file {name[:100]}.")
    headers = [*SECURITY_HEADERS, ("Content-Security-Policy", _page_policy()), ("ETag", file.etag)]
    headers.append(("Vary", "Accept-Encoding"))
    if file.etag in request.header("if-none-match"):
        request.respond(304, b"", "", headers, revalidate=True)
        return
    body = file.body
    if compression.accepted(request.header("accept-encoding")) == "gzip":
        body = file.compressed
        headers.append(("Content-Encoding", "gzip"))
    request.respond(200, body, file.content_type, headers, revalidate=True)
