"""The process that was started as a worker or a command: it requests a fork, and passes signals and exit status on.

A thousand of these processes are started: it imports the C modules below `signal` and `socket`, and no `json`, in a
third of the time.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]
import _socket as socket
import marshal
import os
import resource
import sys

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

_FORKED = ("RunWorker", "RunForkServer")  # torchmar's messages; processes of others must not have loaded any package
_PASSED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def run(server: str) -> None:
    """Exit like the forked process; return if this process must run the code itself.

    Args:
        server: path of the socket of the process that forks.
    """
    arguments = sys.orig_argv[1:]
    if arguments[0].endswith("start.py") and not any(f'"kind": "{kind}"' in arguments[1] for kind in _FORKED):
        return
    files = _open_files()
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # The forked process may work before this one knows its pid; signals wait until they can be passed on.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED)
    try:
        connection.connect(server)
        folder = os.getcwd()  # noqa: PTH109 - importing pathlib takes time
        described = process(files, arguments, os.environ, folder, sys.path)
        numbers = b"".join(number.to_bytes(4, sys.byteorder) for number in files)
        connection.sendmsg([marshal.dumps(described)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)])
        reply = receive(connection)
    except OSError:
        reply = {}
    if not reply.get("pid"):
        connection.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    _wait(connection, reply["pid"], before)


def receive(connection: socket.socket) -> dict[str, Any]:
    """Return the next message of the process that forks; empty: it has closed the connection."""
    message = connection.recv(4096)
    return dict(marshal.loads(message)) if message else {}


def _open_files() -> list[int]:
    """Return the descriptors that this process was started with."""
    with os.scandir("/proc/self/fd") as entries:
        numbers = [int(entry.name) for entry in entries]
    return sorted(number for number in numbers if _is_inherited(number))


def _is_inherited(number: int) -> bool:
    # Files that Python opens itself are not inheritable; the folder that was read is closed now.
    try:
        return os.get_inheritable(number)
    except OSError:
        return False


def process(
    files: list[int], arguments: list[str], environment: Mapping[str, str], folder: str, path: list[str]
) -> dict[str, Any]:
    """Return the description of a process for a fork.

    Args:
        files: numbers of its open files, in the order in which they are sent.
        arguments: arguments of Python.
        environment: environment variables of the process.
        folder: working folder of the process.
        path: folders from which it imports modules.
    """
    return {
        "arguments": arguments,
        "environment": dict(environment),
        "folder": folder,
        "path": path,
        "files": files,
        "python": [sys.prefix, sys.version],
        "limits": [resource.getrlimit(number) for number in _limits()],
        "group": os.getpgrp(),
        "cores": sorted(os.sched_getaffinity(0)),
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "umask": _umask(),
        "ignored": [number for number in _PASSED if signal.getsignal(number) is signal.SIG_IGN],
    }


def _limits() -> list[int]:
    return sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _wait(connection: socket.socket, pid: int, mask: Iterable[int]) -> None:
    """Pass signals to the forked process, with the given mask of blocked signals, and exit like it."""
    # Including ignored signals, such as SIGHUP below nohup: the forked process may have its own handler.
    for number in _PASSED:
        signal.signal(number, lambda number, _: _kill(pid, number))
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    # Only the other process has the files now, so that their other ends see it close them.
    for file in _open_files():
        os.close(file)
    code = os.waitstatus_to_exitcode(receive(connection).get("status", 1 << 8))
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def _kill(pid: int, number: int) -> None:
    try:  # noqa: SIM105 - importing contextlib takes time
        os.kill(pid, number)
    except ProcessLookupError:
        pass
