"""Supervisors: the process above each one that runs a handler; it ends whatever that one leaves behind.

A handler may start processes, and these others, daemons included. The supervisor is their nearest ancestor that
adopts orphans (Linux: PR_SET_CHILD_SUBREAPER), so that all of them are its children at the latest when the handler's
process has ended; then it kills them. It does nothing else, holds no file of the handler's, and ends the handler's
process as soon as the other end of its lifeline is closed, which is what happens if whoever holds that dies.

Where nothing adopts orphans (macOS), those go that have stayed in the process group.
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

_SUBREAPER, _PARENT_DEATH = 36, 1  # PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG


def supervise(lifeline: int, announce: Callable[[int], None] | None = None) -> None:
    """Fork; return in the child, and supervise it from this process, which exits with the child's status.

    Args:
        lifeline: a pipe or socket; the child is killed when the other end is closed.
        announce: called with the child's pid, in this process.
    """
    with contextlib.suppress(OSError):  # it leads a session, and so a group, already
        os.setpgid(0, 0)
    adopt_orphans()
    here = os.getpid()
    child = os.fork()
    if not child:
        _die_with(here)
        return
    status = 1 << 8
    try:
        if announce:
            announce(child)
        status = _watch(child, lifeline)
        os.close(lifeline)
        _end_descendants()
    except BaseException:
        traceback.print_exc()
    finally:
        _exit_with(status)


class Children:
    """The supervised processes that this process has forked, each under a number that the caller gives.

    Args:
        adopting: whether this process runs nothing of a handler's, so that children that it has not forked have lost
            their supervisor; they are killed.
    """

    def __init__(self, *, adopting: bool) -> None:
        self._supervisors: dict[int, tuple[int, socket.socket]] = {}
        self._adopting = adopting
        if adopting:
            adopt_orphans()

    def fork(self, number: int) -> tuple[int, list[int]] | None:
        """Fork a supervised process; return None in it, and here its pid and, where there are such, a pidfd.

        The pid is 0 if the system has no process left.
        """
        ours, theirs = socket.socketpair()
        try:
            supervisor = os.fork()
        except OSError as error:
            sys.stderr.write(f"no process can be forked: {error.strerror}\n")
            ours.close()
            theirs.close()
            return 0, []
        if not supervisor:
            ours.close()
            self.forget()
            try:
                supervise(theirs.fileno(), lambda pid: _announce(theirs, pid))
            except BaseException:  # it could not fork
                traceback.print_exc()
                os._exit(1)
            theirs.close()
            return None
        theirs.close()
        self._supervisors[supervisor] = number, ours
        return _announced(ours)

    def kill(self, number: int) -> None:
        """End the process of a number; nothing happens if it has ended."""
        for other, lifeline in self._supervisors.values():
            if other == number:
                lifeline.close()

    def ended(self) -> Iterator[tuple[int, int]]:
        """Yield the numbers of those that have ended, and their exit status: negative is a signal."""
        for pid, (number, lifeline) in list(self._supervisors.items()):
            # By their numbers: a handler waits for what it has started itself.
            with contextlib.suppress(ChildProcessError):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    lifeline.close()
                    del self._supervisors[pid]
                    yield number, os.waitstatus_to_exitcode(status)
        if self._adopting:
            for stray in children():
                if stray not in self._supervisors:
                    _kill(stray)
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(stray, os.WNOHANG)

    def forget(self) -> None:
        """Close what a fork of this process has inherited: it has no children."""
        for _, lifeline in self._supervisors.values():
            lifeline.close()
        self._supervisors.clear()


def adopt_orphans() -> None:
    """Have descendants whose parents end become children of this process, where the system can."""
    _prctl(_SUBREAPER, 1)


def _die_with(parent: int) -> None:
    """Have the system kill this process when its parent ends, where it can; elsewhere closed sockets end it."""
    _prctl(_PARENT_DEATH, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(option, value)


def _announce(connection: socket.socket, pid: int) -> None:
    """Send the pid of a child, with a pidfd: it has not been reaped, so that the number is certainly its."""
    descriptor = None
    with contextlib.suppress(AttributeError, OSError):  # older systems and macOS have none, some sandboxes forbid it
        descriptor = os.pidfd_open(pid)
    ControlWriter(connection).send({"pid": pid}, [] if descriptor is None else [descriptor])


def _announced(connection: socket.socket) -> tuple[int, list[int]]:
    parser = MessageParser()
    while True:
        try:
            data, ancillary, _, _ = connection.recvmsg(4096, socket.CMSG_SPACE(4))
        except OSError:
            data = b""
        if not data:
            return 0, []
        for message, files in parser.feed(data, ancillary):
            return message["pid"], files


def _watch(child: int, lifeline: int) -> int:
    """Wait until the child has ended, reap orphans meanwhile, kill it if the lifeline is cut; return its status."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    # Before the first look for children that have ended, so that none is missed.
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    _close_all_but({0, 1, 2, read, write, lifeline})
    events = select.poll()
    events.register(read, select.POLLIN)
    events.register(lifeline, 0)  # a hangup is always reported, and what is sent is not for us
    while True:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == child:
                    return ended[1]
        for descriptor, _ in events.poll():
            if descriptor == lifeline:
                events.unregister(lifeline)
                _kill(child)
            else:
                with contextlib.suppress(BlockingIOError):
                    os.read(read, 4096)


def _end_descendants() -> None:
    """Kill everything below this process; children of what dies become children of this one."""
    group = os.getpgrp()
    with contextlib.suppress(OSError):
        # As long as this process has the number, no other group gets it.
        if group == os.getpid() and not _proc_is_here():
            os.setpgid(0, os.getpgid(os.getppid()))
            os.killpg(group, signal.SIGKILL)
    # A child that may not be killed, as one of another user's, is not waited for.
    while [pid for pid in children() if _kill(pid)]:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)


def children() -> list[int]:
    """Return the children of this process, zombies included; none if the system has no list."""
    if not _proc_is_here():
        return []
    here = os.getpid()
    try:
        with open(f"/proc/self/task/{here}/children", encoding="ascii") as stream:
            return [int(pid) for pid in stream.read().split()]
    except OSError:  # a kernel without CONFIG_PROC_CHILDREN
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and _parent(name) == here]  # noqa: PTH208


def _proc_is_here() -> bool:
    """Tell whether /proc shows the numbers that this process sees; that of another pid namespace names strangers."""
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
    """Kill a child of this process that it has not reaped; return whether that is allowed."""
    try:
        os.kill(child, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _close_all_but(kept: set[int]) -> None:
    for place in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            for name in os.listdir(place):  # noqa: PTH208
                if name.isdigit() and int(name) not in kept:
                    with contextlib.suppress(OSError):
                        os.close(int(name))
            return


def _exit_with(status: int) -> None:
    """End this process as another has ended."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError, ValueError):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 1)
