"""A file at an HTTP URL, with allowed redirects, read by range requests (RFC 9110)."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from torchmar.server.config.settings import Settings
from torchmar.server.models.archive_errors import not_downloaded, not_found
from torchmar.server.models.archive_urls import is_allowed, without_secrets
from torchmar.server.models.remote_file import TEMPORARY, ChangedError, Transfer, TransferError

if TYPE_CHECKING:
    import requests

_CHUNK = 1 << 18
_CONNECT_SECONDS, _READ_SECONDS = 10.0, 20.0  # time limits for opening a connection, and for a pause between bytes
_MAX_REDIRECTS = 5
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")
# A date only identifies a file that cannot have changed twice in the same second (RFC 9110, 8.8.2.2).
_OLD_ENOUGH = timedelta(seconds=60)


class HttpFile:
    """A file behind an ``http`` or ``https`` URL.

    Args:
        url: URL that matches ``allowed_urls``; redirects must match them, too.
        settings: settings of the server, which contain ``allowed_urls``.
    """

    def __init__(self, url: str, settings: Settings) -> None:
        self._url, self._settings = url, settings
        self._shown = without_secrets(url)

    @contextlib.contextmanager
    def open(self, offset: int, identity: str) -> Iterator[Transfer]:
        """Send the request, and follow allowed redirects. See `RemoteFile.open`."""
        import requests
        import urllib3

        headers = {"Accept-Encoding": "identity"}
        if offset:
            # Request the last byte again: for a complete file, a server would reject the range after it.
            headers |= {"Range": f"bytes={offset - 1}-", "If-Range": identity}
        try:
            with requests.Session() as session, self._get(session, headers) as response:
                yield self._transfer(response, offset - 1 if offset else 0, identity)
        except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
            name = type(error).__name__  # the text of the error may contain the whole URL
            if isinstance(error, ValueError):
                raise not_downloaded(self._shown, f"a URL or a header is malformed: {name}") from None
            if isinstance(error, requests.exceptions.SSLError):
                raise not_downloaded(self._shown, name) from None
            raise TransferError(name) from None

    def _get(self, session: requests.Session, headers: dict[str, str]) -> requests.Response:
        location = self._url
        for _ in range(_MAX_REDIRECTS + 1):
            parts = urlsplit(location)
            # A pattern may mistake the text before an "@" for the host; such a URL is not fetched at all.
            if parts.scheme not in ("http", "https") or "@" in parts.netloc or "\\" in location:
                raise not_downloaded(self._shown, f"{without_secrets(location)} is not fetched from")
            response = session.get(
                location,
                stream=True,
                allow_redirects=False,
                timeout=(_CONNECT_SECONDS, _READ_SECONDS),
                headers=headers,
                auth=lambda request: request,  # otherwise requests would send the credentials of .netrc
            )
            if not response.is_redirect:
                return response
            response.close()
            location = urljoin(location, response.headers["location"])
            if not is_allowed(location, self._settings):
                target = without_secrets(location)
                raise not_found(f"Given URL {self._shown} leads to {target}, which does not match any allowed URL(s)")
        raise not_downloaded(self._shown, f"more than {_MAX_REDIRECTS} redirections")

    def _transfer(self, response: requests.Response, offset: int, identity: str) -> Transfer:
        status = response.status_code
        chunks = _chunks(response)
        if status == 206 and offset:
            content_range = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
            same = _identity(response) in (identity, "")  # the response must contain the ETag again (RFC 9110, 15.3.7)
            if not content_range or int(content_range[1]) != offset or not same:
                raise ChangedError("the server sent another range than the requested one")
            return Transfer(offset, int(content_range[2]), identity, chunks)
        if status == 416:
            raise ChangedError("HTTP 416")
        if status in TEMPORARY:
            raise TransferError(f"HTTP {status}")
        if status != 200:
            raise not_downloaded(self._shown, f"HTTP {status}")
        content_length = response.headers.get("content-length", "")
        size = int(content_length) if content_length.isdecimal() else None
        return Transfer(0, size, _identity(response), chunks)


def _chunks(response: requests.Response) -> Iterator[bytes]:
    """Yield the bytes of a body as they arrive, so that slow transfers are noticed."""
    # Not decoded, so that a compressed archive stays compressed.
    while chunk := response.raw.read1(_CHUNK, decode_content=False):
        yield chunk


def _identity(response: requests.Response) -> str:
    """Return the validator for ``If-Range``: a strong ETag, or a date that is old enough; empty if there is neither."""
    etag = response.headers.get("etag", "")
    if etag:
        return etag if etag.startswith('"') else ""  # a weak ETag (W/"...") can be equal for files with different bytes
    with contextlib.suppress(TypeError, ValueError):
        modified = response.headers.get("last-modified", "")
        now = response.headers.get("date", "")
        if modified and now and parsedate_to_datetime(now) - parsedate_to_datetime(modified) >= _OLD_ENOUGH:
            return modified
    return ""
