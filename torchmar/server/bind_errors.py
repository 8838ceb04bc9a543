"""Error messages for addresses that the server cannot listen on."""

from __future__ import annotations

import errno
import os
import socket

from torchmar.errors import BindError


def bind_error(address: str, error: OSError) -> BindError:
    """Return the error for an address that cannot be bound.

    Args:
        address: ``127.0.0.1:7070`` or ``unix:/run/inference.sock``.
        error: error of the operating system; for a Unix socket, its file name is the path.
    """
    hint = ""
    if error.filename is not None:
        reason = error.strerror or str(error)
    elif isinstance(error, socket.gaierror):
        reason = "cannot resolve the host name"
    elif error.errno == errno.EADDRINUSE:
        reason = "address already in use"
        hint = "torchmar doctor names the process that listens there; stop it, or configure another port"
    else:
        # The text of the error is not used, because asyncio's repeats the address.
        reason = os.strerror(error.errno) if error.errno else str(error)
    return BindError(f"cannot listen on {address}: {reason[:1].lower()}{reason[1:]}", hint=hint)
