"""What a process that was started as a file becomes."""

from __future__ import annotations

import socket
import sys
from typing import Any

from . import frames, loading, nursery, serving
from .cradle import grow
from .measuring import Measured


def main(job: dict[str, Any]) -> None:
    """Be a nursery (``control``), a cradle (``cradle``) or a single worker (``fd``): the socket to speak on."""
    nursery.be_patient()
    serving.quiet_logging()
    if "control" in job:
        nursery.run(socket.socket(fileno=job["control"]))
    elif "cradle" in job:
        grow(job, socket.socket(fileno=job["cradle"]))
    else:
        _alone(job, socket.socket(fileno=job["fd"]))


def _alone(job: dict[str, Any], connection: socket.socket) -> None:
    """Load a model, tell in a LOADED frame how that went, and serve it."""
    loading.enter(job["model_dir"])
    measured = Measured()
    try:
        measured.install()
        service = loading.load(job)
    except BaseException as error:
        trace = loading.own_traceback(error)
        frames.send(connection, frames.encode(frames.LOADED, {"ok": False, "message": trace}))
        sys.exit(1)
    frames.send(connection, frames.encode(frames.LOADED, {"ok": True, "message": ""}))
    serving.serve(service, connection, measured)
