"""Unix sockets: binding to paths on which no process listens, and removal at the end."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path


def bind(path: str) -> socket.socket:
    """Return a socket bound to ``path``; it replaces a socket that a dead server has left.

    Raises:
        OSError: a process listens on it, or the path is not a socket.
    """
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(
                errno.EADDRINUSE, "the path is a file that is not a socket; remove it or choose another path", path
            )
        if _has_listener(path):
            raise OSError(
                errno.EADDRINUSE, "address already in use by another server; stop it or choose another path", path
            )
        Path(path).unlink()
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bound.setblocking(False)
        bound.bind(path)
    except OSError as error:
        bound.close()
        raise OSError(
            error.errno or errno.EINVAL, f"cannot create the socket: {error.strerror or error}", path
        ) from None
    return bound


def remove(path: str, inode: int) -> None:
    """Remove the socket at ``path``, unless another server has replaced it."""
    with contextlib.suppress(FileNotFoundError):
        if os.lstat(path).st_ino == inode:
            Path(path).unlink()


def _has_listener(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        # With a full backlog, the error is EAGAIN; only ECONNREFUSED means that no process listens.
        return client.connect_ex(path) not in (errno.ECONNREFUSED, errno.ENOENT)
