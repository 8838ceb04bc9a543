"""The console of a server that has one: requests of its page are forwarded to its API, with a token that stays here."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import requests

from torchmar.connection import Connection, Endpoint
from torchmar.errors import TorchmarError
from torchmar.remote_console.calls import SECONDS, api_error
from torchmar.server.api.console import files
from torchmar.server.api.console.pages import Manage, Pages
from torchmar.server.api.console.stream import MOST
from torchmar.server.api.console.trial import passed_headers
from torchmar.server.api_error import ApiError
from torchmar.server.http import Request
from torchmar.server.tokens import Tokens

_ROOT = "/console/api/v1"
#: The headers of a response that the page reads.
_RETURNED = ("server-timing", "x-request-id", "cache-control")


class ForwardingConsole(Pages):
    """The page, served here, with the API of the other server.

    Args:
        endpoint: the server.
        tokens: tokens with which browsers sign in.
        options: options of `torchmar.server.api.console.pages.Pages`.
    """

    def __init__(self, endpoint: Endpoint, tokens: Tokens, **options: Any) -> None:
        super().__init__(tokens, lambda status: None, **options)
        self._endpoint = endpoint
        self._streams = ThreadPoolExecutor(MOST)  # one for each stream; the threads of the loop are for short calls

    async def close(self) -> None:
        """End the running calls."""
        await super().close()
        self._streams.shutdown(wait=False)

    def _api(self, request: Request, segments: list[str], manage: Manage) -> None:
        self._access.check(request)
        path = _ROOT + "".join(f"/{quote(segment, safe='')}" for segment in segments)
        self._tasks.start(self._stream(request, path) if segments == ["stream"] else self._pass(request, path))

    async def _pass(self, request: Request, path: str) -> None:
        def send() -> requests.Response:
            connection = Connection(self._endpoint, "management", SECONDS)
            try:
                return self._call(connection, request, path)
            finally:
                connection.close()

        try:
            response = await asyncio.to_thread(send)
        except TorchmarError as error:
            request.respond_error(api_error(error), files.SECURITY_HEADERS)
        except Exception as error:
            request.fail(error)
        else:
            request.respond(response.status_code, response.content, _type(response), _headers(response))

    async def _stream(self, request: Request, path: str) -> None:
        """Forward a stream of events until the browser disconnects, the session ends or the server stops."""
        connection = Connection(self._endpoint, "management", SECONDS)
        loop = asyncio.get_running_loop()

        def read() -> None:
            response = self._call(connection, request, path, stream=True)
            loop.call_soon_threadsafe(request.start, 200, _type(response), _headers(response))
            for part in response.iter_content(1 << 16):  # each part of a stream, as it arrives
                if request.disconnected:
                    return
                asyncio.run_coroutine_threadsafe(pass_on(part), loop).result()

        async def pass_on(part: bytes) -> None:
            self._access.check(request)
            request.send(part)
            await request.drain()

        try:
            await loop.run_in_executor(self._streams, read)
        except ApiError:  # raised when the session has ended
            request.send(b"event: signed-out\ndata: {}\n\n")
        except TorchmarError as error:
            request.respond_error(api_error(error), files.SECURITY_HEADERS)
            return
        except requests.RequestException:
            pass  # the server has ended; the page connects again
        except Exception as error:
            request.fail(error)
            return
        finally:
            connection.close()
        request.end()

    def _call(self, connection: Connection, request: Request, path: str, *, stream: bool = False) -> requests.Response:
        reads = request.method in ("GET", "HEAD")
        headers = {**passed_headers(request), "X-Torchmar-Console": "1"}
        return connection.request(
            request.method,
            path,
            query=dict(request.query),
            body=None if reads else request.body,
            headers=headers,
            retries=0,
            stream=stream,
        )


def _type(response: requests.Response) -> str:
    return str(response.headers.get("content-type", "application/json"))


def _headers(response: requests.Response) -> list[tuple[str, str]]:
    returned = [(name, value) for name, value in response.headers.items() if name.lower() in _RETURNED]
    # Reports are pages without scripts. This policy replaces the server's, because its pages get the origin of this
    # page.
    page = _type(response).startswith("text/html")
    return [*returned, *files.SECURITY_HEADERS, files.REPORT_POLICY if page else files.DATA_POLICY]
