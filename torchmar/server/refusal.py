"""Requests that the server refuses, in the words and codes of TorchServe."""

from __future__ import annotations

import json


class Refusal(Exception):
    """A request that is answered with an error.

    Args:
        status: HTTP status.
        type: TorchServe's name for it: ``ModelNotFoundException``.
        message: what is wrong.
    """

    def __init__(self, status: int, type: str, message: str) -> None:
        super().__init__(message)
        self.status, self.type, self.message = status, type, message

    @property
    def body(self) -> bytes:
        """The body of the answer, laid out as TorchServe does."""
        return error_body(self.status, self.type, self.message)


def error_body(status: int, type: str, message: str) -> bytes:
    """Return ``{"code", "type", "message"}`` as TorchServe writes it."""
    said = {"code": status, "type": type, "message": message}
    return json.dumps(said, indent=2, ensure_ascii=False).encode() + b"\n"
