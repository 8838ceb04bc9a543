"""What a server says when it says no, as an exception."""

from __future__ import annotations

import json

from torchmar.connection.server import Api, token_variable
from torchmar.errors import Conflict, NotFound, Refused, Unauthorized

TOO_LARGE = "is the request larger than max_request_size in config.properties?"


def refusal(status: int, body: bytes, reason: str, api: Api) -> Refused:
    """Return the exception that an answer with an error status stands for.

    Args:
        status: 300 or more.
        body: TorchServe's ``{"code", "type", "message"}``, or whatever a handler or a proxy says.
        reason: the words beside the status, for where the body has none.
        api: which API answered.
    """
    message, kind = _said(body)
    return classified(status, kind, message or reason or f"status {status}", api)


def classified(status: int, kind: str, message: str, api: Api) -> Refused:
    """Return the exception for a status, the server's name for the error, and its message."""
    # TorchServe answers a bad token with 400, not with 401.
    if kind == "InvalidKeyException" or status == 401:
        hint = f"its key_file.json has it: --key-file, --run-folder, or the environment's {token_variable(api)}"
        return Unauthorized(message, status=status, type=kind, hint=hint)
    if status == 404:
        missing_archive = message.startswith("Model not found at")
        hint = "the server looks in its model store" if missing_archive else "torchmar models lists what is registered"
        return NotFound(message, status=status, type=kind, hint=hint)
    if status == 409:
        return Conflict(message, status=status, type=kind)
    hints = {405: "set enable_model_api=true in config.properties", 413: TOO_LARGE}
    return Refused(message, status=status, type=kind, hint=hints.get(status, ""))


def _said(body: bytes) -> tuple[str, str]:
    try:
        said = json.loads(body)
        # TorchServe's errors, its health, and those of the Open Inference Protocol.
        message = next(said[key] for key in ("message", "status", "error") if key in said)
        return str(message), str(said.get("type", ""))
    except (ValueError, TypeError, AttributeError, StopIteration):
        return body.decode("utf-8", "replace").strip()[:500], ""
