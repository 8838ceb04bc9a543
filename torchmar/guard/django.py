"""Django middleware: list ``torchmar.guard.django.GuardMiddleware`` first in the setting ``MIDDLEWARE``.

The setting ``TORCHMAR_GUARD`` has the arguments of `torchmar.guard.Guard`, by name:

    TORCHMAR_GUARD = {"server": "http://127.0.0.1:8080", "time_limit_s": 0.2, "on_failure": "allow"}
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse

from torchmar.guard.guard import Guard, Verdict


class GuardMiddleware:
    """Middleware of Django, for synchronous and asynchronous servers: blocked requests get 403 or 503.

    Bodies larger than Django's ``DATA_UPLOAD_MAX_MEMORY_SIZE`` are not read, so that views can stream them; for these
    requests only target and headers are classified. To include the start of the bodies, wrap the application in
    `torchmar.guard.WsgiGuard` or `torchmar.guard.AsgiGuard` instead.

    Raises:
        ImproperlyConfigured: ``TORCHMAR_GUARD`` has an unknown or wrong argument.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        try:
            self.guard = Guard(**getattr(settings, "TORCHMAR_GUARD", {}))
        except (TypeError, ValueError) as error:
            raise ImproperlyConfigured(f"TORCHMAR_GUARD: {error}") from error
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        """Answer a request, or block it; a coroutine under an asynchronous server."""
        if self.is_async:
            return self._call_async(request)
        verdict = self.guard.check(*self._parts(request))
        return _blocked(verdict) if verdict.blocked else self.get_response(request)

    async def _call_async(self, request: HttpRequest) -> Any:
        verdict = await self.guard.check_async(*self._parts(request))
        return _blocked(verdict) if verdict.blocked else await self.get_response(request)

    def _parts(self, request: HttpRequest) -> tuple[str, str, dict[str, str], bytes]:
        """Return method, target, headers and the start of the body."""
        length = request.headers.get("Content-Length", "")
        limit = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
        body = b""
        if length.isdecimal() and (limit is None or int(length) <= limit):
            body = request.body[: self.guard.max_body]
        return request.method or "GET", request.get_full_path(), dict(request.headers), body


def _blocked(verdict: Verdict) -> HttpResponse:
    phrase = HTTPStatus(verdict.status).phrase
    return HttpResponse(f"{phrase}\n", status=verdict.status, content_type="text/plain")
