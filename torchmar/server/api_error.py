"""Error responses of the server, in TorchServe's codes and texts."""

from __future__ import annotations

import json
from collections.abc import Mapping

from torchmar.server.kserve_errors import is_kserve

# An encoder that indents is written in Python, and takes twenty times as long: an overloaded server rejects many.
_quoted = json.JSONEncoder(ensure_ascii=False).encode


class ApiError(Exception):
    """An error response to a request.

    Args:
        status: HTTP status.
        type: TorchServe's name of the error: ``ModelNotFoundException``.
        message: description of the error.
        headers: headers of the response, such as ``Allow`` or ``Retry-After``.
    """

    def __init__(self, status: int, type: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.type, self.message = status, type, message
        self.headers: Mapping[str, str] = headers or {}

    @property
    def body(self) -> bytes:
        """The body of the response, in TorchServe's layout."""
        return error_body(self.status, self.type, self.message)

    def body_for(self, target: bytes) -> bytes:
        """Return the body of the response to a request for ``target``: below ``/v1`` and ``/v2`` it has ``error``, too.

        Args:
            target: target of the request, as in the request line.
        """
        return error_body(self.status, self.type, self.message, error=is_kserve(target))


def error_body(status: int, type: str, message: str, *, error: bool = False) -> bytes:
    """Return ``{"code", "type", "message"}`` as TorchServe writes it, with the message as ``error``, too, if wanted."""
    text = _quoted(message)
    error_line = f',\n  "error": {text}' if error else ""
    return f'{{\n  "code": {status:d},\n  "type": {_quoted(type)},\n  "message": {text}{error_line}\n}}\n'.encode()


def not_allowed(*methods: str) -> ApiError:
    """Return the error (405) for a method that a path does not support; ``methods`` are those that it supports."""
    message = "Requested method is not allowed, please refer to API document."
    return ApiError(405, "MethodNotAllowedException", message, {"Allow": ", ".join(methods)})
