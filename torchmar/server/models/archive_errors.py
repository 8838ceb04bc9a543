"""Responses to registrations whose archive is not available, with TorchServe's statuses, types and texts."""

from __future__ import annotations

from torchmar.server.api_error import ApiError


def not_found(message: str) -> ApiError:
    """Return a 404: the archive does not exist, or its URL is not allowed."""
    return ApiError(404, "ModelNotFoundException", message)


def not_downloaded(url: str, reason: str) -> ApiError:
    """Return a 400: the archive at an allowed URL cannot be fetched."""
    return ApiError(400, "DownloadArchiveException", f"Failed to download archive from: {url} ({reason})")


def not_saved(url: str, reason: str | None) -> ApiError:
    """Return a 500: the archive cannot be read or written on this machine."""
    return ApiError(500, "InternalServerException", f"Failed to save model: {url} ({reason})")


def digest_differs(url: str, *, expected: str, actual: str) -> ApiError:
    """Return a 400: the file of an archive is not the expected one; it was not opened.

    Args:
        url: URL of the archive.
        expected: SHA-256 that the registration expects, in hexadecimal.
        actual: SHA-256 of the file.
    """
    return ApiError(
        400,
        "InvalidModelException",
        f"The SHA-256 of the file {url} is {actual}, and the registration expects {expected}. The archive is not used. "
        "sha256sum prints the digest of a file; that of an archive's content, which torchmar inspect prints first, is "
        "another one.",
    )
