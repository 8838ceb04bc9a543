"""The parent of all workers: torch and TorchServe are loaded once, and every worker is a fork of it."""

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
    """Fork a cradle for each ``{"grow": id, "job": {...}}`` with a socket, a log and a file for `shared_weights`.

    To the server: ``{"ready", "pid"}`` once; ``{"grown": id, "pid"}`` with a pidfd; ``{"ended": id, "status"}``.
    ``{"import": [...]}`` has more modules ready for those that come after; ``{"kill": id}`` ends a cradle.
    """
    told = ControlWriter(control)
    missing = [name for name in _IMPORTS if not _imported(name)]
    _freeze()
    told.send({"ready": True, "missing": missing, "pid": os.getpid()})
    children = Children(adopting=True)
    lines = ControlReader(control, children=True)
    for message, files in lines:
        if message is None:
            for number, status in children.ended():
                told.send({"ended": number, "status": status})
        elif "kill" in message:
            children.kill(message["kill"])
        elif "import" in message:
            for name in message["import"]:
                _imported(name)
            _freeze()
        elif "grow" in message:
            forked = children.fork(message["grow"])
            if forked is None:
                lines.close()
                _become(message["job"], files, control)
                raise AssertionError  # it does not return
            pid, handles = forked
            told.send({"grown": message["grow"], "pid": pid}, handles)
            for file in (*files, *handles):
                os.close(file)


def _become(job: dict[str, Any], files: list[int], control: socket.socket) -> None:
    """Be the cradle of a job; this process ends with it."""
    try:
        control.close()
        conversation, output, *weights = files
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        serving.quiet_logging()
        mine = socket.socket(fileno=conversation)
        if weights:
            job["weights"] = weights[0]
        if _conflicts_with_loaded(job["model_dir"]):
            # The archive has a module of its own by a name that is loaded here already: start from nothing.
            start = Path(__file__).parent.parent / "start.py"
            for inherited in (mine.fileno(), *weights):
                os.set_inheritable(inherited, True)
            os.execv(sys.executable, [sys.executable, str(start), json.dumps({**job, "cradle": mine.fileno()})])
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
