"""The supervisor: the parent of each process that runs a handler; it kills all processes that the handler leaves
behind.

A handler may start processes, and these may start others, including daemons. The supervisor is their nearest ancestor
that adopts orphans (Linux: PR_SET_CHILD_SUBREAPER), so that all of them are its children at the latest when the
handler's process has exited; then it kills them. It has no other task, holds no file of the handler, and kills the
handler's process as soon as the other end of its lifeline is closed, even if by the death of its holder.

On systems that do not adopt orphans (macOS), only processes in the same process group are killed.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator

from .control_channel import ControlWriter, MessageParser
from .messages import Supervised

_SUBREAPER, _PARENT_DEATH = 36, 1  # PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG


def supervise(lifeline: int, on_fork: Callable[[int], None] | None = None) -> None:
    """Fork; return in the child, and supervise it in this process, which exits with the child's status.

    Args:
        lifeline: pipe or socket; when its other end is closed, the child is killed.
        on_fork: called in this process with the child's pid.
    """
    with contextlib.suppress(OSError):  # it is the leader of a session, and so of a group, already
        os.setpgid(0, 0)
    adopt_orphans()
    own_pid = os.getpid()
    child = os.fork()
    if not child:
        _die_with(own_pid)
        return
    status = 1 << 8
    try:
        if on_fork:
            on_fork(child)
        status = _watch(child, lifeline)
        os.close(lifeline)
        _end_descendants()
    except BaseException:
        traceback.print_exc()
    finally:
        _exit_with(status)


class Children:
    """The supervised children of this process, by ids of the caller.

    Args:
        adopting: whether this process runs no handler, so that children from other parents have lost their supervisor;
            they are killed.
    """

    def __init__(self, *, adopting: bool) -> None:
        self._supervisors: dict[int, tuple[int, socket.socket]] = {}
        self._adopting = adopting
        if adopting:
            adopt_orphans()

    def fork(self, number: int) -> tuple[int, list[int]] | None:
        """Fork a supervised process; return None in it, and in this process its pid and, if there are pidfds, its
        pidfd.

        The pid is 0 if the fork failed.
        """
        parent_end, child_end = socket.socketpair()
        try:
            supervisor = os.fork()
        except OSError as error:
            sys.stderr.write(f"no process can be forked: {error.strerror}\n")
            parent_end.close()
            child_end.close()
            return 0, []
        if not supervisor:
            parent_end.close()
            self._close_lifelines()
            try:
                supervise(child_end.fileno(), lambda pid: _send_pid(child_end, pid))
            except BaseException:  # the fork failed
                traceback.print_exc()
                os._exit(1)
            child_end.close()
            return None
        child_end.close()
        self._supervisors[supervisor] = number, parent_end
        return _receive_pid(parent_end)

    def kill(self, number: int) -> None:
        """Kill the process with this id; do nothing if it has exited."""
        for pid, lifeline in self._supervisors.values():
            if pid == number:
                lifeline.close()

    def exited(self) -> Iterator[tuple[int, int]]:
        """Yield id and status of the processes that have exited; a negative status is the number of a signal."""
        for pid, (number, lifeline) in list(self._supervisors.items()):
            # Wait only for these pids, because a handler waits for its own processes.
            with contextlib.suppress(ChildProcessError):
                reaped, status = os.waitpid(pid, os.WNOHANG)
                if reaped:
                    lifeline.close()
                    del self._supervisors[pid]
                    yield number, os.waitstatus_to_exitcode(status)
        if self._adopting:
            for stray in children():
                if stray not in self._supervisors:
                    _kill(stray)
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(stray, os.WNOHANG)

    def _close_lifelines(self) -> None:
        """Close inherited lifelines in a fork of this process, because the children are not its own."""
        for _, lifeline in self._supervisors.values():
            lifeline.close()
        self._supervisors.clear()


def adopt_orphans() -> None:
    """Let descendants become children of this process when their parents exit, if the system supports it."""
    _prctl(_SUBREAPER, 1)


def _die_with(parent: int) -> None:
    """Let the system kill this process when its parent exits, if it supports this; otherwise closed sockets end it."""
    _prctl(_PARENT_DEATH, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(option, value)


def _send_pid(connection: socket.socket, pid: int) -> None:
    """Send the pid of a child with a pidfd, which certainly belongs to the child, because it has not been reaped."""
    files = []
    with contextlib.suppress(AttributeError, OSError):  # not on older systems, on macOS and in some sandboxes
        files.append(os.pidfd_open(pid))
    ControlWriter(connection).send(Supervised(pid), files)


def _receive_pid(connection: socket.socket) -> tuple[int, list[int]]:
    parser = MessageParser()
    while True:
        try:
            data, ancillary, _, _ = connection.recvmsg(4096, socket.CMSG_SPACE(4))
        except OSError:
            data = b""
        if not data:
            return 0, []
        for message, files in parser.feed(data, ancillary):
            return message.pid, files


def _watch(child: int, lifeline: int) -> int:
    """Wait until the child has exited, reap orphans, kill the child if the lifeline is closed; return its status."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    # Blocked before the first wait for children, so that no signal is missed.
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    _close_all_but({0, 1, 2, read, write, lifeline})
    events = select.poll()
    events.register(read, select.POLLIN)
    events.register(lifeline, 0)  # a hangup is always reported, and the data is for the child
    while True:
        with contextlib.suppress(ChildProcessError):
            while (reaped := os.waitpid(-1, os.WNOHANG))[0]:
                if reaped[0] == child:
                    return reaped[1]
        for descriptor, _ in events.poll():
            if descriptor == lifeline:
                events.unregister(lifeline)
                _kill(child)
            else:
                with contextlib.suppress(BlockingIOError):
                    os.read(read, 4096)


def _end_descendants() -> None:
    """Kill all descendants; children of a killed process become children of this one."""
    with contextlib.suppress(OSError):
        if not _proc_is_own():
            _kill_group()
    # Do not wait for a child that cannot be killed, such as one of another user.
    while [pid for pid in children() if _kill(pid)]:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)


def _kill_group() -> None:
    """Kill the other processes in this process's group, if this process leads it.

    To survive, it first moves to the group of a child. It cannot use its parent's group, whose number is 0 if the
    group's leader is outside of this pid namespace.

    Raises:
        OSError: the process cannot leave its group, for example because it leads a session.
    """
    group = os.getpgrp()
    if group != os.getpid():
        return
    waiting = os.fork()
    if not waiting:
        _die_with(group)
        while True:
            signal.pause()
    try:
        os.setpgid(waiting, waiting)
        os.setpgid(0, waiting)
        # While this process has the number, no other group can get it.
        os.killpg(group, signal.SIGKILL)
    finally:
        os.kill(waiting, signal.SIGKILL)
        os.waitpid(waiting, 0)


def children() -> list[int]:
    """Return the pids of this process's children, including zombies; empty if the system has no list."""
    if not _proc_is_own():
        return []
    own_pid = os.getpid()
    try:
        with open(f"/proc/self/task/{own_pid}/children", encoding="ascii") as stream:
            return [int(pid) for pid in stream.read().split()]
    except OSError:  # for example, a kernel without CONFIG_PROC_CHILDREN
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and _parent(name) == own_pid]  # noqa: PTH208


def _proc_is_own() -> bool:
    """Return whether /proc belongs to the pid namespace of this process, so that its numbers are valid here."""
    try:
        return os.readlink("/proc/self") == str(os.getpid())  # noqa: PTH115
    except OSError:
        return False


def _parent(pid: str) -> int:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:
            return int(stream.read().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _kill(child: int) -> bool:
    """Kill a child that was not reaped yet; return whether this was permitted."""
    try:
        os.kill(child, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _close_all_but(kept_descriptors: set[int]) -> None:
    for folder in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):  # noqa: PTH208
                if name.isdigit() and int(name) not in kept_descriptors:
                    with contextlib.suppress(OSError):
                        os.close(int(name))
            return


def _exit_with(status: int) -> None:
    """Exit with the wait status of another process: with its exit code, or by its signal."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError, ValueError):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 1)
