"""Addresses at which the APIs of a server listen: a host and a port, or a Unix socket."""

from __future__ import annotations

import os
import re
from dataclasses import KW_ONLY, dataclass, field
from ipaddress import ip_address

_UNIX_MAX_BYTES = 107  # bytes of a socket's path, on Linux
_WEB = re.compile(r"(https?)://(\[[0-9a-f:.]+\]|[^:/\[\]\s]+)(?::([0-9]{1,5}))?/?", re.IGNORECASE)
_UNIX = re.compile(r"unix:(/.+)", re.IGNORECASE)


@dataclass(frozen=True)
class Address:
    """An address at which an API listens.

    Attributes:
        host: the host; empty for a Unix socket.
        port: the port; 0 for a Unix socket.
        tls: whether connections are encrypted.
        unix: the path of a Unix socket; empty for a host and a port.
        key: the configuration key that the address is read from; two addresses may be equal although their keys differ.
    """

    host: str = ""
    port: int = 0
    _: KW_ONLY
    tls: bool = False
    unix: str = ""
    key: str = field(default="", compare=False)

    def __str__(self) -> str:
        if self.unix:
            return f"unix:{self.unix}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.tls else ''}://{host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect to the address."""
        if self.unix:
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def parse(text: str, http_port: int, https_port: int, *, key: str = "") -> Address:
    """Return the address that a text describes.

    Args:
        text: ``http://HOST:PORT``, ``https://HOST:PORT`` or ``unix:/PATH``.
        http_port: port if the text has none, for http.
        https_port: port if the text has none, for https.
        key: configuration key whose value is the text.

    Raises:
        ValueError: the text is no address, its port is out of range, or its path is too long.
    """
    if (match := _UNIX.fullmatch(text)) and len(os.fsencode(match[1])) <= _UNIX_MAX_BYTES:
        return Address(unix=match[1], key=key)
    if match := _WEB.fullmatch(text):
        tls = match[1].lower() == "https"
        port = int(match[3]) if match[3] else https_port if tls else http_port
        if 0 < port < 65536:
            return Address(match[2].strip("[]"), port, tls=tls, key=key)
    raise ValueError("not an address: http://HOST:PORT, https://HOST:PORT or unix:/PATH")
