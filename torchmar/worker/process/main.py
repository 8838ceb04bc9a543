"""The main function of the processes that `start.py` runs."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Mapping
from typing import Any

from . import fork_server, frames, loading, optional_imports, serving
from .handler_metrics import MetricsBuffer
from .messages import (
    LoadFailed,
    Message,
    ModelSpec,
    RunCommand,
    RunForkServer,
    RunModelProcess,
    RunWorker,
    WorkerReady,
    from_wire,
    to_wire,
)
from .model_process import run_model_process
from .supervisor import supervise


def main(document: Mapping[str, Any]) -> None:
    """Run the process for one of the ``Run`` messages.

    Args:
        document: the message, see `messages.to_wire`.
    """
    message = from_wire(document)
    optional_imports.leave_out()
    fork_server.ignore_termination()
    if isinstance(message, RunCommand):
        supervise(message.lifeline)
        os.close(message.lifeline)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores SIGPIPE, and a command would inherit that
        os.execvp(message.command[0], message.command)
    if isinstance(message, RunForkServer):
        supervise(message.control)
        serving.quiet_logging()
        fork_server.run(socket.socket(fileno=message.control))
    elif isinstance(message, RunModelProcess):
        serving.quiet_logging()
        run_model_process(message.model, socket.socket(fileno=message.control), message.weights)
    elif isinstance(message, RunWorker):
        supervise(message.connection)
        serving.quiet_logging()
        _run_worker(message.model, socket.socket(fileno=message.connection))


def _run_worker(model: ModelSpec, connection: socket.socket) -> None:
    """Load a model, send the result in a LOADED frame, and serve it."""

    def send_result(message: Message) -> None:
        frames.send(connection, frames.encode(frames.LOADED, to_wire(message)))

    loading.activate_archive(model.model_dir)
    metrics = MetricsBuffer()
    try:
        metrics.install()
        service = loading.load(model)
    except BaseException as error:
        send_result(LoadFailed(loading.own_traceback(error)))
        sys.exit(1)
    send_result(WorkerReady(os.getpid()))
    serving.serve(service, connection, metrics)
