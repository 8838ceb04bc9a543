"""The server's log files, laid out as TorchServe's are, so that what reads those reads these."""

from __future__ import annotations

import logging
from logging.handlers import RotatingFileHandler
from pathlib import Path

SERVER = logging.getLogger("torchmar.server")
WORKERS = logging.getLogger("torchmar.workers")

_SIZE = 20 << 20  # bytes, of each file
_KEPT = 3


def open_in(folder: Path) -> None:
    """Write what the server warns of to ``server.log``, and what workers print to ``workers.log``, in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for logger, name, layout, level in (
        (SERVER, "server.log", "[%(levelname)-5s] main %(name)s - %(message)s", logging.INFO),
        (WORKERS, "workers.log", "%(thread)s - %(message)s", logging.INFO),
    ):
        handler = RotatingFileHandler(folder / name, maxBytes=_SIZE, backupCount=_KEPT, encoding="utf-8", delay=False)
        handler.setFormatter(_Layout(layout))
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False


def worker_says(worker: str, name: str, version: str, line: str) -> None:
    """Log a line of a worker: ``W-9000-NAME_VERSION-stdout``."""
    WORKERS.info(line, extra={"worker": f"W-{worker}-{name}_{version}-stdout"})


class _Layout(logging.Formatter):
    """TorchServe's log4j2 pattern; ``%(thread)s`` is the worker, as its threads are called there."""

    def __init__(self, layout: str) -> None:
        super().__init__("%(asctime)s " + layout.replace("%(thread)s", "%(worker)s"), "%Y-%m-%dT%H:%M:%S")
        self.default_msec_format = "%s,%03d"

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Return the time with milliseconds."""
        return f"{super().formatTime(record, datefmt)},{int(record.msecs):03d}"
