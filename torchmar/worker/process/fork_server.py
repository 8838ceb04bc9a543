"""The fork server: it loads torch and TorchServe once, and forks every model process."""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import sys
from collections.abc import Iterable
from pathlib import Path

from . import serving
from .control_channel import ControlReader, ControlWriter
from .messages import Exited, Forked, ImportModules, Kill, ModelSpec, Ready, RunModelProcess, Spawn, to_wire
from .model_process import run_model_process
from .supervisor import Children

#: Modules that every worker needs, and whose import takes seconds.
IMPORTS = ("numpy", "torch", "ts.model_loader", "ts.service", "ts.context", "ts.torch_handler.base_handler")


def run(control: socket.socket) -> None:
    """Send `Ready`, then handle `Spawn`, `ImportModules` and `Kill` until the server closes the connection."""
    writer = ControlWriter(control)
    writer.send(Ready(os.getpid(), missing=_import(IMPORTS)))
    children = Children(adopting=True)
    reader = ControlReader(control)
    for message, files in reader:
        if message is None:
            for number, status in children.exited():
                writer.send(Exited(number, status))
        elif isinstance(message, Kill):
            children.kill(message.id)
        elif isinstance(message, ImportModules):
            _import(message.names)
        elif isinstance(message, Spawn):
            forked = children.fork(message.id)
            if forked is None:
                reader.close()
                _run_child(message.model, files, control)
                raise AssertionError  # the function does not return
            pid, pidfds = forked
            writer.send(Forked(message.id, pid), pidfds)
            for file in (*files, *pidfds):
                os.close(file)


def _run_child(model: ModelSpec, files: list[int], control: socket.socket) -> None:
    """Run a model process with the files of a `Spawn` message, and exit with it."""
    try:
        control.close()
        control_fd, output, *weights = files
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        serving.quiet_logging()
        own_control = socket.socket(fileno=control_fd)
        weights_file = weights[0] if weights else None
        if _conflicts_with_loaded(model.model_dir):
            # The archive has a module with the name of one that is loaded here already: start without any modules.
            start = Path(__file__).parent.parent / "start.py"
            for inherited in (own_control.fileno(), *weights):
                os.set_inheritable(inherited, True)
            message = RunModelProcess(own_control.fileno(), model, weights_file)
            os.execv(sys.executable, [sys.executable, str(start), json.dumps(to_wire(message))])
        run_model_process(model, own_control, weights_file)
    finally:
        os._exit(1)


def _import(names: Iterable[str]) -> list[str]:
    """Import modules; return the names of those that cannot be imported.

    Garbage collections during the imports find nearly nothing, and would take a seventh of the time. Those of workers
    do not visit the imported objects: they would write to all shared pages.
    """
    gc.disable()
    missing = [name for name in names if not _imported(name)]
    gc.collect()
    gc.freeze()
    gc.enable()
    return missing


def _imported(name: str) -> bool:
    try:
        importlib.import_module(name)
    except Exception:
        return False
    return True


def _conflicts_with_loaded(folder: str) -> bool:
    """Return whether an archive has a top-level module whose name is loaded here from another place."""
    names = {
        entry.name.removesuffix(".py") for entry in os.scandir(folder) if entry.is_dir() or entry.name[-3:] == ".py"
    }
    return bool(names & (sys.modules.keys() - sys.stdlib_module_names))


def ignore_termination() -> None:
    """Ignore Ctrl-C and a service manager's SIGTERM, which all processes receive: the server handles them."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
