"""``python -m torchmar.server -f CONFIG``: run the server in this folder until SIGTERM or Ctrl-C.

SIGHUP makes it read tokens and certificates again. Ctrl-C, and a second SIGTERM, do not wait for
``torchmar_shutdown_delay``.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path

from torchmar.errors import TorchmarError
from torchmar.server import app, run_folder
from torchmar.server.config import reader
from torchmar.server.config.settings import Settings
from torchmar.server.telemetry import logs


def main() -> None:
    """Run the server that the command line describes."""
    parser = argparse.ArgumentParser(prog="python -m torchmar.server", description=__doc__.partition("\n")[0])
    parser.add_argument("-f", metavar="CONFIG", type=Path, required=True, help="a config.properties")
    parser.add_argument("--foreground", action="store_true", help="write log messages to stderr, too")
    chosen = parser.parse_args()
    try:
        configured, warnings = reader.read(chosen.f)
        with run_folder.locked(Path.cwd()):
            close_logs = logs.open_in(Path("logs"), configured.log_format, stderr=chosen.foreground)
            try:
                for warning in warnings:
                    logs.SERVER.warning("%s", warning)
                _run(configured)
            finally:
                close_logs()
    except TorchmarError as error:
        sys.exit(f"error: {error}" + (f"\nhint: {error.hint}" if error.hint else ""))


def _run(configured: Settings) -> None:
    try:
        import uvloop
    except ImportError:  # there is none for every Python
        asyncio.run(_serve(configured))
    else:
        uvloop.run(_serve(configured))


async def _serve(configured: Settings) -> None:
    stop, at_once = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def end(number: signal.Signals) -> None:
        logs.SERVER.info("received %s: the server ends when its requests are answered", number.name)
        if number == signal.SIGINT or stop.is_set():
            at_once.set()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, number)
    server = app.ServerApp(configured, Path.cwd())
    if not (sys.stdin and sys.stdin.isatty()):  # of a terminal, it means that the terminal has gone
        loop.add_signal_handler(signal.SIGHUP, server.reload)
    opening = asyncio.ensure_future(server.open())
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait((opening, stopping), return_when=asyncio.FIRST_COMPLETED)
    if opening.done():
        opening.result()
        logs.SERVER.info("ready")
        await stopping
        await server.withdraw(at_once)
    else:
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
    await server.close()


if __name__ == "__main__":
    main()
