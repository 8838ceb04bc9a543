"""Addresses of this machine: requests to them do not leave it."""

from __future__ import annotations

import socket
from ipaddress import ip_address


def is_local(host: str) -> bool:
    """Return whether packets to ``host`` stay on this machine: it is loopback, or one of its own addresses.

    Names other than ``localhost`` do not count, because their addresses can change after the check.
    """
    if host == "localhost":
        return True
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return False
    if address.is_loopback or address.is_unspecified:
        return True
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # this sends nothing, but chooses the source address
            return bool(probe.getsockname()[0] == host)
    except OSError:
        return False
