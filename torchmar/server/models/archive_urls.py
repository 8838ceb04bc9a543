"""URLs of registrations: permission, the path of a local archive, and the form for logs."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from torchmar.archive.folder_form import archive_folder
from torchmar.server.config.settings import Settings
from torchmar.server.models.archive_errors import not_downloaded, not_found

_URL = re.compile(r"(file|https?|s3|gs|az)://.*", re.IGNORECASE | re.DOTALL)
_ANY_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)  # a redirect may have any scheme
_OBJECT = re.compile(r"(s3|gs|az)://([^/]*)/?(.*?)(?:\?(.*))?", re.IGNORECASE | re.DOTALL)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# The query parameter of each object store for a version of an object.
_VERSION_PARAMETERS = {"s3": "versionId", "gs": "generation", "az": "versionId"}


class StorageObject(NamedTuple):
    """An object of S3, Google Cloud Storage or Azure Blob Storage.

    Attributes:
        store: ``s3``, ``gs`` or ``az``.
        bucket: its bucket or container.
        key: its name there.
        version: version of the object; empty: the newest.
    """

    store: str
    bucket: str
    key: str
    version: str


def is_url(text: str) -> bool:
    """Return whether a text is a URL of an archive; any other text is the name of a file in the model store."""
    return bool(_URL.fullmatch(text))


def is_remote(url: str) -> bool:
    """Return whether the archive has to be downloaded."""
    return is_url(url) and not url.lower().startswith("file://")


def is_object(url: str) -> bool:
    """Return whether the archive is an object of an object store."""
    return bool(_OBJECT.fullmatch(url))


def parse_object(url: str) -> StorageObject:
    """Return the object of an ``s3``, ``gs`` or ``az`` URL. The key is used unchanged, without decoding of ``%``.

    Raises:
        ApiError: 400; the URL names no object.
    """
    match = _OBJECT.fullmatch(url)
    assert match
    store, bucket, key, query = match[1].lower(), match[2], match[3], match[4]
    if not _BUCKET.fullmatch(bucket) or not key or key.startswith("/") or key.endswith("/"):
        raise not_downloaded(without_secrets(url), f"write it as {store}://BUCKET/NAME")
    version = ""
    if query is not None:
        name, _, version = query.partition("=")
        if name != _VERSION_PARAMETERS[store] or not version or "&" in version:
            expected = f"?{_VERSION_PARAMETERS[store]}=ID"
            raise not_downloaded(without_secrets(url), f"after its name there may only be {expected}")
    return StorageObject(store, bucket, key, version)


def without_secrets(url: str) -> str:
    """Return a URL for logs and messages: without its query, which may be a signature, and without a user."""
    if not _ANY_URL.match(url) or url.lower().startswith("file://"):
        return url
    beginning, question_mark, query = url.partition("?")
    scheme, _, rest = beginning.partition("://")
    authority, slash, path = rest.partition("/")
    if "@" in authority:
        authority = f"...@{authority.rpartition('@')[2]}"
    if is_object(url) and re.fullmatch(r"(versionId|generation)=[^=&]+", query):
        return url
    return f"{scheme}://{authority}{slash}{path}{'?...' if question_mark else ''}"


def is_allowed(url: str, settings: Settings) -> bool:
    """Return whether a URL matches ``allowed_urls``."""
    return any(pattern.fullmatch(url) for pattern in settings.allowed_urls)


def check(url: str, settings: Settings) -> None:
    """Check that a registration may use a URL.

    Raises:
        ApiError: 404; the URL is empty, contains ``..``, or is not allowed.
    """
    if not url:
        raise not_found("empty url")
    if ".." in unquote(url):
        raise not_found(f"Relative path is not allowed in url: {without_secrets(url)}")
    if is_url(url) and not (url.isprintable() and is_allowed(url, settings)):
        if is_object(url):  # TorchServe treats it as the name of a file
            raise not_found(f"Model not found at: {without_secrets(url)}; no pattern of allowed_urls matches it")
        raise not_found(f"Given URL {without_secrets(url)} does not match any allowed URL(s)")


def local_path(url: str, settings: Settings, *, by_operator: bool = False) -> Path:
    """Return the path of an archive on this machine.

    Args:
        url: a ``file://`` URL that `check` allows, the name of a file or folder in the model store, or a path.
        settings: the model store and ``allowed_urls``.
        by_operator: whether a path need not be in ``allowed_urls``.

    Raises:
        ApiError: 404, the model store has no such archive, or the path is not allowed; 400, a ``file://`` URL names
            no file on this machine.
    """
    if url.lower().startswith("file://"):
        parts = urlsplit(url)
        path = Path(unquote(parts.path))
        if parts.netloc not in ("", "localhost") or not path.exists():
            raise not_downloaded(url, "no such file")
        return _content(path)
    model_store = settings.model_store
    # TorchServe ignores folders before the name; here, an existing path below the model store is used unchanged.
    for path in (Path(os.path.normpath(model_store / url)), model_store / url.rpartition("/")[2]):
        allowed = model_store in path.parents or is_allowed(path.as_uri(), settings) or by_operator
        with contextlib.suppress(OSError, ValueError):  # not a valid file name: too long, or with a NUL
            if allowed and path.exists():
                return _content(path)
    location = Path(url)
    hint = f"; outside the model store, allowed_urls must match {location.as_uri()}" if location.is_absolute() else ""
    raise not_found(f"Model not found at: {url}{hint}")


def _content(path: Path) -> Path:
    """Return a file, or the folder with the content of an archive that is a folder."""
    return (archive_folder(path) if path.is_dir() else path).resolve()
