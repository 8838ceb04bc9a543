"""The main function of a process that `start.py` runs."""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import Any

from . import fork_server, frames, loading, serving
from .handler_metrics import MetricsBuffer
from .model_process import run_model_process
from .supervisor import supervise


def main(job: dict[str, Any]) -> None:
    """Run what a job asks for.

    Args:
        job: has the descriptor of a socket: ``control`` for a fork server, ``model_process`` for a model process,
            ``fd`` for a single worker; or ``run`` with a command, which ends, with all processes that it starts,
            when the other end of ``lifeline`` is closed.
    """
    fork_server.ignore_termination()
    for lifeline in ("control", "fd", "lifeline"):
        if lifeline in job:
            supervise(job[lifeline])
    if "run" in job:
        os.close(job["lifeline"])
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and a command would inherit that
        os.execvp(job["run"][0], job["run"])
    serving.quiet_logging()
    if "control" in job:
        fork_server.run(socket.socket(fileno=job["control"]))
    elif "model_process" in job:
        run_model_process(job, socket.socket(fileno=job["model_process"]))
    else:
        _alone(job, socket.socket(fileno=job["fd"]))


def _alone(job: dict[str, Any], connection: socket.socket) -> None:
    """Load a model, send the result in a LOADED frame, and serve it."""
    loading.activate_archive(job["model_dir"])
    measured = MetricsBuffer()
    try:
        measured.install()
        service = loading.load(job)
    except BaseException as error:
        trace = loading.own_traceback(error)
        frames.send(connection, frames.encode(frames.LOADED, {"ok": False, "message": trace}))
        sys.exit(1)
    frames.send(connection, frames.encode(frames.LOADED, {"ok": True, "message": "", "pid": os.getpid()}))
    serving.serve(service, connection, measured)
