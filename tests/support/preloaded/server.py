"""Load torch and TorchServe, and fork the processes that clients ask for; run as a file.

Arguments: the descriptor of the listening socket. It ends when its standard input is closed.
"""

from __future__ import annotations

import array
import builtins
import contextlib
import fcntl
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

# What TorchServe's worker and ours import before they load a handler, and what many handlers import: the last is what
# torch imports to load an exported program. No more than that: TorchServe's base_handler imports onnxruntime, which
# starts threads that a fork would wait for at its end.
_IMPORTS = ("numpy", "torch", "ts.model_service_worker", "PIL.Image", "captum.attr", "torch._export.serde.serialize")
# Variables that libraries and Python read when they are loaded.
_READ_WHEN_LOADED = ("GOMP_", "KMP_", "LANG", "LC_", "LD_", "MALLOC_", "MKL_", "OMP_", "PYTHON", "PYTORCH", "TORCH_")
_MAX_MESSAGE = 1 << 20
_MAX_FILES = 253  # of one message, on Linux


def serve(listener: socket.socket) -> dict[str, Any] | None:
    """Fork processes until standard input is closed.

    Returns:
        In a forked process, the request; None in this process, at its end.
    """
    read, write = os.pipe()
    for descriptor in (read, write):
        os.set_blocking(descriptor, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    events = select.poll()
    for descriptor in (0, read, listener.fileno()):
        events.register(descriptor, select.POLLIN)
    connections: dict[int, tuple[socket.socket, int]] = {}  # by descriptor, with the pid of the forked process
    while True:
        for descriptor, _ in events.poll():
            if descriptor == 0:
                for _, pid in connections.values():
                    os.kill(pid, signal.SIGKILL)
                return None
            if descriptor == read:
                with contextlib.suppress(BlockingIOError):
                    os.read(read, 4096)
            elif descriptor == listener.fileno():
                connection, _ = listener.accept()
                request, files = _receive(connection)
                if not request or (reason := objection(request)):
                    _send(connection, {"objection": reason if request else "no request"})
                    connection.close()
                elif not (pid := os.fork()):
                    signal.set_wakeup_fd(-1)
                    for other in (listener, connection, *(connection for connection, _ in connections.values())):
                        other.detach()  # its number is closed below, and then is that of another file
                    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
                        signal.signal(number, signal.SIG_DFL)
                    signal.signal(signal.SIGINT, signal.default_int_handler)
                    request["received"] = files
                    return request
                else:
                    with contextlib.suppress(OSError):
                        os.setpgid(pid, request["group"])
                    _send(connection, {"pid": pid})
                    connections[connection.fileno()] = connection, pid
                    events.register(connection, select.POLLIN)
                for file in files:
                    os.close(file)
            elif descriptor in connections:  # the client has ended
                events.unregister(descriptor)
                connection, pid = connections[descriptor]
                os.kill(pid, signal.SIGKILL)  # it has not been waited for
                os.waitpid(pid, 0)
                connection.close()
                del connections[descriptor]
        _send_statuses(events, connections)


def objection(request: dict[str, Any]) -> str:
    """Return why a process must be started and not be forked; empty: it may be forked."""
    if request["python"] != [sys.prefix, sys.version]:
        return "it is of another Python"
    limits = [list(resource.getrlimit(number)) for number in _limits()]
    if request["limits"] != limits or request["nice"] != os.getpriority(os.PRIO_PROCESS, 0):
        return "it has other limits"
    theirs, ours = _loading_variables(request["environment"]), _loading_variables(os.environ)
    if theirs != ours:
        return f"these variables differ: {set(theirs.items()) ^ set(ours.items())}"
    folders = request["environment"].get("PYTHONPATH", "").split(os.pathsep)
    if request["arguments"][0].endswith("start.py"):
        message = json.loads(request["arguments"][1])
        folders.append(message.get("model", {}).get("model_dir", ""))
    known = sys.modules.keys() - {"sitecustomize", "__main__"}
    for folder in set(folders) - {"", *sys.path}:
        with contextlib.suppress(OSError):
            for entry in os.scandir(folder):
                if entry.name.partition(".")[0] in known and entry.name != "sitecustomize.py":
                    return f"{entry.path} may be imported in place of what is loaded"
    return ""


def _loading_variables(environment: Any) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(_READ_WHEN_LOADED) and name != "PYTHONPATH"
    }


def _limits() -> list[int]:
    return sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    files = array.array("i")
    try:
        data, ancillary, _, _ = connection.recvmsg(_MAX_MESSAGE, socket.CMSG_SPACE(_MAX_FILES * files.itemsize))
    except OSError:  # the client was killed
        return {}, []
    for _, _, content in ancillary:
        files.frombytes(content[: len(content) - len(content) % files.itemsize])
    try:
        return json.loads(data), list(files)
    except ValueError:
        return {}, list(files)


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the client may have been killed, which the next event of its connection shows
        connection.send(json.dumps(message).encode())


def _send_statuses(events: select.poll, connections: dict[int, tuple[socket.socket, int]]) -> None:
    for descriptor, (connection, pid) in list(connections.items()):
        reaped, status = os.waitpid(pid, os.WNOHANG)
        if reaped:
            events.unregister(descriptor)
            _send(connection, {"status": status})
            connection.close()
            del connections[descriptor]


def become(request: dict[str, Any]) -> None:
    """Give this process what the request's process was started with."""
    with contextlib.suppress(OSError):
        os.setpgid(0, request["group"])  # not if it is of another session
    _move_files(request["received"], request["files"])
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    os.umask(request["umask"])
    os.sched_setaffinity(0, request["cores"])
    sys.orig_argv = [sys.executable, *request["arguments"]]
    sys.argv = list(request["arguments"])
    sys.path[:] = [str(Path(sys.argv[0]).parent), *request["path"]]
    importlib.invalidate_caches()
    # Python's own generator has another seed in each fork.
    sys.modules["numpy"].random.seed()
    sys.modules["torch"].default_generator.seed()


def _move_files(received: list[int], numbers: list[int]) -> None:
    """Give files the numbers that they have in the client, and close all others."""
    least = max([*received, *numbers, 2]) + 1
    copies = [fcntl.fcntl(file, fcntl.F_DUPFD, least) for file in received]  # out of the way of the numbers
    for copy, number in zip(copies, numbers, strict=True):
        os.dup2(copy, number)
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        if int(name) not in numbers:
            with contextlib.suppress(OSError):  # the folder itself
                os.close(int(name))


def load() -> None:
    """Import what workers import, and keep it from garbage collections of forks."""
    # TorchServe's base_handler would import it for torch.compile, which takes two seconds where OpenVINO is installed.
    sys.modules["openvino.torch"] = None  # type: ignore[assignment]
    for name in _IMPORTS:
        with contextlib.suppress(ModuleNotFoundError):  # other versions of torch may have other modules
            importlib.import_module(name)
        if len(os.listdir("/proc/self/task")) > 1:  # noqa: PTH208
            raise RuntimeError(f"{name} has started a thread, which forks would not have")
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    sys.path.pop(0)  # no module is imported from the folder of this file
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with the process that has started it
    load()
    request = serve(socket.socket(fileno=int(sys.argv[1])))
    if request:
        become(request)
        script = request["arguments"][0]
        module = sys.modules["__main__"] = ModuleType("__main__")
        module.__dict__.update(__file__=script, __builtins__=builtins)
        exec(compile(Path(script).read_bytes(), script, "exec"), module.__dict__)
