"""Download an archive over HTTP: within the allowed URLs, also after redirects, and within a size."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from torchmar.server.config.settings import Settings
from torchmar.server.models.archive_errors import not_downloaded, not_found, not_saved
from torchmar.server.models.archive_urls import is_allowed

if TYPE_CHECKING:
    import requests

_CHUNK = 1 << 20
_CONNECT_SECONDS, _READ_SECONDS = 10.0, 60.0  # until a connection is open; without a byte
_MAX_REDIRECTS = 5


def download(url: str, folder: Path, settings: Settings, stopping: threading.Event) -> Path:
    """Download an archive; blocking.

    Args:
        url: an allowed ``http`` or ``https`` URL.
        folder: an empty folder for the file.
        settings: ``allowed_urls``, which redirects must match too, and the limit of the size.
        stopping: set when the server stops, which ends the download.

    Returns:
        The file, with the suffix of its form.

    Raises:
        ApiError: 400, the URL cannot be fetched; 404, a redirect is not allowed; 500, the file cannot be written.
    """
    import requests
    import urllib3

    location = url
    with requests.Session() as session:
        for _ in range(_MAX_REDIRECTS + 1):
            parts = urlsplit(location)
            # A pattern may take the text before an "@" for the host; a URL that is not plain is not fetched at all.
            if parts.scheme not in ("http", "https") or "@" in parts.netloc or "\\" in location:
                raise not_downloaded(url, f"{location} is not fetched from")
            try:
                with session.get(
                    location,
                    stream=True,
                    allow_redirects=False,
                    timeout=(_CONNECT_SECONDS, _READ_SECONDS),
                    headers={"Accept-Encoding": "identity"},
                    auth=lambda request: request,  # without it requests sends the credentials of .netrc
                ) as response:
                    if not response.is_redirect:
                        _save(url, response, folder / "archive", settings.max_download_size, stopping)
                        return _with_suffix(folder / "archive")
                    location = urljoin(location, response.headers["location"])
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                raise not_downloaded(url, type(error).__name__) from None
            if not is_allowed(location, settings):
                raise not_found(f"Given URL {url} leads to {location}, which does not match any allowed URL(s)")
    raise not_downloaded(url, f"more than {_MAX_REDIRECTS} redirections")


def _save(url: str, response: requests.Response, target: Path, max_size: int, stopping: threading.Event) -> None:
    if response.status_code != 200:
        raise not_downloaded(url, f"HTTP {response.status_code}")
    content_length = response.headers.get("content-length", "")
    too_large = f"it has more than torchmar_max_download_size={max_size} bytes"
    if content_length.isdecimal() and int(content_length) > max_size:
        raise not_downloaded(url, too_large)
    size = 0
    try:
        with target.open("xb") as stream:
            # Not decoded: a compressed archive stays compressed.
            for chunk in response.raw.stream(_CHUNK, decode_content=False):
                size += len(chunk)
                if size > max_size:
                    raise not_downloaded(url, too_large)
                if stopping.is_set():
                    raise not_downloaded(url, "the server is stopping")
                stream.write(chunk)
    except OSError as error:
        raise not_saved(url, error.strerror) from None
    if content_length.isdecimal() and size != int(content_length):
        raise not_downloaded(url, f"it ended after {size} of {content_length} bytes")


def _with_suffix(file: Path) -> Path:
    """Rename a downloaded file to the suffix of its form, which its URL need not have."""
    with file.open("rb") as stream:
        suffix = ".tar.gz" if stream.read(2) == b"\x1f\x8b" else ".mar"
    return file.rename(file.with_name(f"{file.name}{suffix}"))
