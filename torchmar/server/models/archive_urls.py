"""URLs of registrations: which are allowed, and the path of a local archive."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from torchmar.archive.folder_form import archive_folder
from torchmar.server.config.settings import Settings
from torchmar.server.models.archive_errors import not_downloaded, not_found

_URL = re.compile(r"(file|https?)://.*", re.IGNORECASE | re.DOTALL)


def is_url(text: str) -> bool:
    """Return whether a text is a ``file``, ``http`` or ``https`` URL; what is not names a file of the model store."""
    return bool(_URL.fullmatch(text))


def is_remote(url: str) -> bool:
    """Return whether the archive has to be downloaded."""
    return url.lower().startswith(("http://", "https://"))


def is_allowed(url: str, settings: Settings) -> bool:
    """Return whether a URL matches ``allowed_urls``."""
    return any(pattern.fullmatch(url) for pattern in settings.allowed_urls)


def check(url: str, settings: Settings) -> None:
    """Check that a registration may have this URL.

    Raises:
        ApiError: 404; it is empty, has ``..`` in it, or is not allowed.
    """
    if not url:
        raise not_found("empty url")
    if ".." in unquote(url):
        raise not_found(f"Relative path is not allowed in url: {url}")
    if is_url(url) and not (url.isprintable() and is_allowed(url, settings)):
        raise not_found(f"Given URL {url} does not match any allowed URL(s)")


def local_path(url: str, settings: Settings, *, by_operator: bool = False) -> Path:
    """Return the path of an archive that is on this machine.

    Args:
        url: a ``file://`` URL that `check` allows, the name of a file or folder in the model store, or a path.
        settings: the model store and ``allowed_urls``.
        by_operator: whether a path need not be in ``allowed_urls``.

    Raises:
        ApiError: 404, the model store has no such archive, or the path is not allowed; 400, a ``file://`` URL names
            no file of this machine.
    """
    if url.lower().startswith("file://"):
        parts = urlsplit(url)
        path = Path(unquote(parts.path))
        if parts.netloc not in ("", "localhost") or not path.exists():
            raise not_downloaded(url, "no such file")
        return _content(path)
    if url.lower().startswith("s3://"):
        hint = "S3 is not supported: give a presigned https:// URL, or copy the archive to the model store"
        raise not_found(f"Model not found at: {url}; {hint}")
    model_store = settings.model_store
    # TorchServe removes folders before the name; a path that exists below the model store is used as it is.
    for path in (Path(os.path.normpath(model_store / url)), model_store / url.rpartition("/")[2]):
        allowed = model_store in path.parents or is_allowed(path.as_uri(), settings) or by_operator
        with contextlib.suppress(OSError, ValueError):  # not a file name: too long, or with a NUL
            if allowed and path.exists():
                return _content(path)
    named = Path(url)
    hint = f"; outside the model store, allowed_urls must match {named.as_uri()}" if named.is_absolute() else ""
    raise not_found(f"Model not found at: {url}{hint}")


def _content(path: Path) -> Path:
    """Return a file, or the folder with the content of an archive that is a folder."""
    return (archive_folder(path) if path.is_dir() else path).resolve()
