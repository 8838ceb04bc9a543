"""``python -m torchmar.server -f CONFIG``: run the server in this folder until SIGTERM or Ctrl-C.

With SIGHUP, it reads tokens and certificates again. Ctrl-C, or a second SIGTERM, skips
``torchmar_shutdown_delay``.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from torchmar.errors import TorchmarError
from torchmar.server import app, run_folder
from torchmar.server.config import reader
from torchmar.server.config.settings import Settings
from torchmar.server.telemetry import logs


def main(create: Callable[[Settings, Path], app.ServerApp] = app.ServerApp, module: str = "torchmar.server") -> None:
    """Run the server that the command line configures.

    Args:
        create: returns the server for its configuration and its run folder, which is the current folder.
        module: name of the module, for messages.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=__doc__.partition("\n")[0])
    parser.add_argument("-f", metavar="CONFIG", type=Path, required=True, help="a config.properties")
    parser.add_argument("--foreground", action="store_true", help="also write log messages to stderr")
    arguments = parser.parse_args()
    try:
        configured, warnings = reader.read(arguments.f)
        with run_folder.locked(Path.cwd()):
            close_logs = logs.open_in(Path("logs"), configured.log_format, stderr=arguments.foreground)
            try:
                for warning in warnings:
                    logs.SERVER.warning("%s", warning)
                _run(create(configured, Path.cwd()))
            finally:
                close_logs()
    except TorchmarError as error:
        sys.exit(f"error: {error}" + (f"\nhint: {error.hint}" if error.hint else ""))


def _run(server: app.ServerApp) -> None:
    try:
        import uvloop
    except ImportError:  # not every Python has uvloop
        asyncio.run(_serve(server))
    else:
        uvloop.run(_serve(server))


async def _serve(server: app.ServerApp) -> None:
    stop, at_once = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def end(number: signal.Signals) -> None:
        logs.SERVER.info("received %s: the server ends when its requests are answered", number.name)
        if number == signal.SIGINT or stop.is_set():
            at_once.set()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, number)
    if not (sys.stdin and sys.stdin.isatty()):  # on a terminal, SIGHUP means that the terminal was closed
        loop.add_signal_handler(signal.SIGHUP, server.reload)
    opening = asyncio.ensure_future(server.open())
    stopping, failing = asyncio.ensure_future(stop.wait()), asyncio.ensure_future(server.failed())
    await asyncio.wait((opening, stopping, failing), return_when=asyncio.FIRST_COMPLETED)
    if opening.done():
        opening.result()
        logs.SERVER.info("ready")
        await asyncio.wait((stopping, failing), return_when=asyncio.FIRST_COMPLETED)
    if failing.done():
        error = failing.result()
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        logs.SERVER.error("the server ends: %s", error)
        await server.close(0)
        raise error
    failing.cancel()
    if opening.done():
        await server.withdraw(at_once)
    else:
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
    await server.close()


if __name__ == "__main__":
    main()
