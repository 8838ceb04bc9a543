"""Notification of systemd about the state of a service (sd_notify)."""

from __future__ import annotations

import os
import socket


def notify(state: str) -> None:
    """Send ``READY=1``, ``STOPPING=1`` or another state of sd_notify(3); do nothing if there is no socket."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    # @ represents the zero byte at the start of Linux' abstract names.
    address = f"\0{path[1:]}" if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        try:
            datagrams.sendto(state.encode(), address)
        except OSError:
            return
