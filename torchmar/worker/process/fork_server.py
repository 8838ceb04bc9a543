"""The fork server: loads torch and TorchServe once, and forks every model process."""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from . import serving
from .control_channel import ControlReader, ControlWriter
from .model_process import run_model_process
from .supervisor import Children

# What every worker needs, and takes seconds to import.
_IMPORTS = ("numpy", "torch", "ts.model_loader", "ts.service", "ts.context", "ts.torch_handler.base_handler")


def run(control: socket.socket) -> None:
    """Fork a model process for each ``spawn`` message, which carries a socket, a log and a file for `shared_weights`.

    Messages from the server: ``{"spawn": id, "job": {...}}``; ``{"import": [...]}`` imports modules that later model
    processes need; ``{"kill": id}``. Messages to it: ``{"ready", "pid"}`` once; ``{"spawned": id, "pid"}`` with a
    pidfd; ``{"ended": id, "status"}``.
    """
    writer = ControlWriter(control)
    missing = [name for name in _IMPORTS if not _imported(name)]
    _freeze()
    writer.send({"ready": True, "missing": missing, "pid": os.getpid()})
    children = Children(adopting=True)
    reader = ControlReader(control, children=True)
    for message, files in reader:
        if message is None:
            for number, status in children.ended():
                writer.send({"ended": number, "status": status})
        elif "kill" in message:
            children.kill(message["kill"])
        elif "import" in message:
            for name in message["import"]:
                _imported(name)
            _freeze()
        elif "spawn" in message:
            forked = children.fork(message["spawn"])
            if forked is None:
                reader.close()
                _become(message["job"], files, control)
                raise AssertionError  # it does not return
            pid, handles = forked
            writer.send({"spawned": message["spawn"], "pid": pid}, handles)
            for file in (*files, *handles):
                os.close(file)


def _become(job: dict[str, Any], files: list[int], control: socket.socket) -> None:
    """Run the model process of a job, and exit with it."""
    try:
        control.close()
        control_fd, output, *weights = files
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        serving.quiet_logging()
        mine = socket.socket(fileno=control_fd)
        if weights:
            job["weights"] = weights[0]
        if _conflicts_with_loaded(job["model_dir"]):
            # The archive has a module of its own by a name that is loaded here already: start from nothing.
            start = Path(__file__).parent.parent / "start.py"
            for inherited in (mine.fileno(), *weights):
                os.set_inheritable(inherited, True)
            os.execv(sys.executable, [sys.executable, str(start), json.dumps({**job, "model_process": mine.fileno()})])
        run_model_process(job, mine)
    finally:
        os._exit(1)


def _freeze() -> None:
    """Keep what is imported from garbage collections of workers, which would write to every page that they share."""
    gc.collect()
    gc.freeze()


def _imported(name: str) -> bool:
    try:
        importlib.import_module(name)
    except Exception:
        return False
    return True


def _conflicts_with_loaded(folder: str) -> bool:
    """Tell whether an archive has a top-level module that is loaded here from elsewhere."""
    names = {
        entry.name.removesuffix(".py") for entry in os.scandir(folder) if entry.is_dir() or entry.name[-3:] == ".py"
    }
    return bool(names & (sys.modules.keys() - sys.stdlib_module_names))


def ignore_termination() -> None:
    """Leave Ctrl-C and a service manager's SIGTERM, which reach all processes, to the server."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
