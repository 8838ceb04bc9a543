"""The mapping of error responses to exceptions."""

from __future__ import annotations

import html
import json
import re

from torchmar.connection.endpoint import Api, token_variable
from torchmar.errors import ConflictError, NotFoundError, ServerError, UnauthorizedError

TOO_LARGE = "is the request larger than max_request_size in config.properties?"
PAGE = "text/html"  # content type of an error page, which has no name of the error


def server_error(status: int, body: bytes, reason: str, api: Api) -> ServerError:
    """Return the exception for a response with an error status.

    Args:
        status: 300 or more.
        body: TorchServe's ``{"code", "type", "message"}``, or that of a handler or a proxy.
        reason: the reason phrase of the status, if the body has no message.
        api: the API that responded.
    """
    message, kind = _message(body)
    message = message or reason or f"status {status}"
    if kind == PAGE:
        message = f"a proxy or another server responded with an HTML page: {message}"
    return classified(status, kind, message, api)


def classified(status: int, kind: str, message: str, api: Api) -> ServerError:
    """Return the exception for a status, the server's name of the error, and its message."""
    # TorchServe's status for an invalid token is 400, not 401.
    if kind == "InvalidKeyException" or status == 401:
        hint = f"it is in the server's key_file.json: --key-file, --run-folder, or the variable {token_variable(api)}"
        return UnauthorizedError(message, status=status, type=kind, hint=hint)
    if status == 409:
        return ConflictError(message, status=status, type=kind)
    error = NotFoundError if status == 404 else ServerError
    return error(message, status=status, type=kind, hint=_hint(status, kind, message, api))


def which_address(api: Api) -> str:
    """Return the hint for a response that does not come from the API."""
    return f"is this the address of the {api} API?"


def _hint(status: int, kind: str, message: str, api: Api) -> str:
    if status == 413:
        return TOO_LARGE
    if status == 429:
        return "try again later, or send fewer requests at a time"
    if status in (502, 504) or (status == 503 and kind == PAGE):
        return "is the server behind the proxy running?"
    if kind in (PAGE, "ResourceNotFoundException"):
        return which_address(api)
    if message.startswith(("Model not found at", "Relative path")):
        return "the archive must be in the server's model store"
    if message.startswith("Given URL"):
        return "allowed_urls in config.properties has those that are"
    if message in ("Prediction failed", "Worker died."):
        return "the server's log has the handler's traceback: torchmar logs"
    hints = {404: "torchmar models lists what is registered", 405: "set enable_model_api=true in config.properties"}
    return hints.get(status, "")


def _message(body: bytes) -> tuple[str, str]:
    if body.lstrip().startswith(b"<") and b"<html" in body[:1000].lower():
        title = re.search(r"<title>(.*?)</title>", body.decode("utf-8", "replace"), re.IGNORECASE | re.DOTALL)
        return html.unescape(" ".join(title[1].split()))[:200] if title else "", PAGE
    try:
        document = json.loads(body)
        # Keys of TorchServe's errors, of its health responses, and of the Open Inference Protocol's errors.
        message = next(document[key] for key in ("message", "status", "error") if key in document)
        return str(message), str(document.get("type", ""))
    except (ValueError, TypeError, AttributeError, StopIteration):
        return body.decode("utf-8", "replace").strip()[:500], ""
