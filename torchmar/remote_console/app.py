"""The listener of a console on this machine: its page, sessions and API, for browsers of this machine."""

from __future__ import annotations

import asyncio
import secrets
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from torchmar.remote_console.console import RemoteConsole
from torchmar.remote_console.documents import LARGEST_UPLOAD
from torchmar.remote_console.forwarding import ForwardingConsole
from torchmar.remote_console.models import RemoteModels
from torchmar.remote_console.reader import Target
from torchmar.server import http
from torchmar.server.api.console import files
from torchmar.server.api.console.pages import Pages
from torchmar.server.api_error import ApiError
from torchmar.server.bind_errors import bind_error
from torchmar.server.http import Request
from torchmar.server.tokens import Tokens

HOST = "127.0.0.1"
_IDLE_S = 3600.0
_GRACE_S = 1.0


def serve(target: Target, ports: Sequence[int], on_link: Callable[[str], None], *, has_console: bool) -> None:
    """Serve the console of a server until SIGTERM or Ctrl-C.

    Args:
        target: the server.
        ports: ports to try in turn; 0: a free one.
        on_link: called with the address of the console, which has a code for one sign-in; called again with a new code
            for every line that is typed in a terminal.
        has_console: whether the server has a console of its own, whose API is then used.

    Raises:
        BindError: all ports are in use.
        TorchmarError: the server does not answer, or rejects the calls.
    """
    try:
        import uvloop
    except ImportError:  # not every Python has uvloop
        asyncio.run(_serve(target, ports, on_link, has_console))
    else:
        uvloop.run(_serve(target, ports, on_link, has_console))


async def _serve(target: Target, ports: Sequence[int], on_link: Callable[[str], None], has_console: bool) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    models = None if has_console else await asyncio.to_thread(RemoteModels.open, target)
    app = _App()
    listener = await _listen(app, ports)
    # Only the tokens of the console's sessions are accepted here; the server's own token is only sent to the server.
    token = secrets.token_urlsafe(24)
    tokens = Tokens(None, fixed={"management": (token,)})
    options: dict[str, Any] = {"idle_s": _IDLE_S, "port": listener.port, "index": files.LINK_ONLY}
    console: Pages
    if models is None:
        console = ForwardingConsole(target.endpoint, tokens, **options)
    else:
        console = remote = RemoteConsole(models, tokens, **options)
        remote.start()
    app.console = console

    def link() -> None:
        on_link(f"http://{HOST}:{listener.port}/console?code={console.new_code(f'Bearer {token}')}")

    link()
    if sys.stdin and sys.stdin.isatty():
        loop.add_reader(sys.stdin, _on_line, loop, link)
    await stop.wait()
    await console.close()  # first, because its streams would keep the listener open
    await listener.close(_GRACE_S)


async def _listen(app: http.App, ports: Sequence[int]) -> http.Listener:
    for port in ports:
        try:
            return await http.listen(app, HOST, port, http.Limits(body=LARGEST_UPLOAD))
        except OSError as error:
            failure = bind_error(f"{HOST}:{port}", error)
    raise failure


class _App:
    """The app of the listener; the console learns its port when the listener is open."""

    def __init__(self) -> None:
        self.console: Pages | None = None

    def __call__(self, request: Request) -> None:
        assert self.console
        segments = request.path.rstrip("/").split("/")[1:]
        if not segments:
            request.respond(302, headers=[("Location", "/console"), *files.SECURITY_HEADERS])
        elif segments[0] == "console":
            self.console(request, segments[1:], _reject)
        else:
            _reject(request, segments)


def _reject(request: Request, segments: list[str]) -> None:
    raise ApiError(404, "ResourceNotFoundException", "There is only the console here, at /console.")


def _on_line(loop: asyncio.AbstractEventLoop, link: Callable[[], None]) -> None:
    if sys.stdin.readline():
        link()
    else:  # the end of the input
        loop.remove_reader(sys.stdin)
