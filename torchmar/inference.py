"""The inference API over REST: predictions and explanations from a running server."""

from __future__ import annotations

from urllib.parse import quote

from torchmar.connection import Connection, Server
from torchmar.exchange import Answer, Request


class InferenceClient:
    """A client of the inference API.

    Its methods raise Unreachable when there is no server, and Refused (Unauthorized, NotFound)
    with the server's or the handler's own words when the status is 400 or more.
    """

    def __init__(self, server: Server | None = None, timeout: float = 120.0) -> None:
        self._connection = Connection(server or Server.started_in(), "inference", timeout)

    def ask(self, name: str, request: Request, version: str | None = None) -> Answer:
        """Return the answer of a model's version, or of its default one, to a request."""
        kind = "explanations" if request.explain else "predictions"
        path = f"/{kind}/{quote(name, safe='')}" + (f"/{quote(version, safe='')}" if version else "")
        headers = {"Content-Type": request.content_type, "Accept": request.accept}
        response = self._connection.ask("POST", path, body=request.body, headers=headers)
        return Answer(
            response.status_code, response.content, {name.lower(): value for name, value in response.headers.items()}
        )

    def ping(self) -> str:
        """Return the server's health as it says it: ``Healthy``, or that workers are missing."""
        return str(self._connection.ask("GET", "/ping", timeout=5).json()["status"])
