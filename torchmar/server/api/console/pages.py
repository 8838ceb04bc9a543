"""The console's page and its sessions: files, signing in and out, and headers that restrict browsers to this server."""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from torchmar.server.api.console import files, openapi
from torchmar.server.api.console.access import Access, check_origin
from torchmar.server.api_error import ApiError, not_allowed
from torchmar.server.background_tasks import BackgroundTasks
from torchmar.server.http import Request, compression
from torchmar.server.request_ids import HEADER, request_ids
from torchmar.server.sessions import Sessions
from torchmar.server.tokens import Tokens

_JSON = "application/json"
_LARGE = 1 << 16  # bytes above which a response is compressed in a thread

Manage = Callable[[Request, list[str]], None]


class Pages(ABC):
    """The page of a console. The method `_api` answers all requests to its API except those for sessions.

    Args:
        tokens: tokens of clients, with which browsers sign in.
        on_answer: called with the status of each response.
        idle_s: seconds without a request that end a session.
        port: port of the console.
        secure: whether the console uses TLS.
        index: name of the page's file.
    """

    def __init__(
        self,
        tokens: Tokens,
        on_answer: Callable[[int], None],
        *,
        idle_s: float,
        port: int,
        secure: bool = False,
        index: str = files.INDEX,
    ) -> None:
        self._tokens, self._on_answer, self._index = tokens, on_answer, index
        self._sessions = Sessions(tokens, idle_s)
        self._access = Access(tokens, self._sessions, f"torchmar_console_{port}", secure=secure)
        self._ids = request_ids()
        self._tasks = BackgroundTasks()

    async def close(self) -> None:
        """Close the pages' streams, and end their tasks."""
        await self._tasks.close()

    def new_code(self, authorization: str) -> str:
        """Return a code that signs a browser in; see `torchmar.server.sessions.Sessions.new_code`."""
        return self._sessions.new_code(authorization)

    def __call__(self, request: Request, segments: list[str], manage: Manage) -> None:
        """Answer a request.

        Args:
            request: a request.
            segments: segments of its path after ``/console``.
            manage: answers a checked request, by the segments of its path in the management API.

        Raises:
            ApiError: the request is wrong.
        """
        match segments:
            case ["api", "v1"]:
                allow(request, "GET", "HEAD")
                self._respond(request, openapi.description(self._tokens.enabled))
            case ["api", "v1", "sign-in" | "sign-out" | "code" as action]:
                self._sign(request, action)
            case ["api", "v1", *rest]:
                self._api(request, rest, manage)
            case _:
                allow(request, "GET", "HEAD")
                self._start(request, files.respond(request, "/".join(segments), self._index))

    @abstractmethod
    def _api(self, request: Request, segments: list[str], manage: Manage) -> None:
        """Answer a request to the API, by the segments of its path after ``/console/api/v1``."""

    # Sessions.

    def _sign(self, request: Request, action: str) -> None:
        """Open or end a session, or return a code that opens one."""
        allow(request, "POST")
        if not self._tokens.enabled:
            raise ApiError(409, "ConflictStatusException", "This server needs no token, and has no sessions.")
        if action == "code":
            # Only with a token: a session must not be able to create further sessions.
            code = self.new_code(request.header("authorization"))
            self._respond(request, {"code": code})
            return
        check_origin(request)
        self._sessions.close(self._access.session(request))
        if action == "sign-out":
            self._respond(request, {"status": "Signed out"}, headers=[self._access.cookie("")])
            return
        credentials = document(request)
        if isinstance(credentials.get("code"), str):
            session = self._sessions.open_with_code(credentials["code"])
        elif isinstance(credentials.get("token"), str):
            session = self._sessions.open_with_token(credentials["token"])
        else:
            raise ApiError(400, "BadRequestException", 'The body must be {"code": ...} or {"token": ...}.')
        right = self._sessions.right(session)
        self._respond(request, {"right": right}, headers=[self._access.cookie(session)])

    # Responses.

    async def _in_thread(self, request: Request, work: Callable[..., object], *arguments: object) -> None:
        """Respond with the result of a blocking function."""
        self._respond(request, await asyncio.to_thread(work, *arguments))

    def _start(self, request: Request, work: Coroutine[Any, Any, None]) -> None:
        async def run() -> None:
            try:
                await work
            except ApiError as error:
                self._on_answer(error.status)
                request.respond_error(error, ((HEADER, next(self._ids)), *files.SECURITY_HEADERS))
            except Exception as error:
                request.fail(error)

        self._tasks.start(run())

    def _respond(self, request: Request, document: object, *, headers: Sequence[tuple[str, str]] = ()) -> None:
        body = json.dumps(document).encode()
        self._send(request, 200, body, _JSON, headers)

    def _send(
        self, request: Request, status: int, body: bytes, content_type: str, headers: Sequence[tuple[str, str]]
    ) -> None:
        self._on_answer(status)
        all_headers = [*headers, *files.SECURITY_HEADERS, files.DATA_POLICY]
        if not any(name == HEADER for name, _ in headers):
            all_headers.append((HEADER, next(self._ids)))
        encoding = compression.accepted(request.header("accept-encoding")) if content_type == _JSON else ""
        if encoding and len(body) > 1024:
            self._tasks.start(self._send_encoded(request, status, body, encoding, all_headers))
        else:
            request.respond(status, body, content_type, all_headers)

    async def _send_encoded(
        self, request: Request, status: int, body: bytes, encoding: str, headers: list[tuple[str, str]]
    ) -> None:
        if len(body) < _LARGE:
            encoded = compression.encode(body, encoding)
        else:
            encoded = await asyncio.to_thread(compression.encode, body, encoding)
        request.respond(status, encoded, _JSON, [*headers, ("Content-Encoding", encoding), ("Vary", "Accept-Encoding")])


def document(request: Request) -> dict[str, Any]:
    """Return the object in the body of a request; empty if there is no body."""
    try:
        value = json.loads(request.body)
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {}


def allow(request: Request, *methods: str) -> None:
    """Raise ApiError (405) for a request with another method."""
    if request.method not in methods:
        raise not_allowed(*methods)
