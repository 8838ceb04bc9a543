"""torchmar.server.bind_errors words the reasons why an address cannot be listened on."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest

from torchmar.server.bind_errors import bind_error


async def _listen(host: str, port: int) -> None:
    await asyncio.get_running_loop().create_server(asyncio.Protocol, host, port)


def test_a_port_in_use_is_named_once_with_a_hint() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError) as caught:
        asyncio.run(_listen("127.0.0.1", taken.getsockname()[1]))
    error = bind_error("127.0.0.1:7070", caught.value)
    assert error.message == "cannot listen on 127.0.0.1:7070: address already in use"
    assert "torchmar doctor" in error.hint


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.EACCES, "error while attempting to bind on address: permission denied"), "permission denied"),
        (OSError(errno.EADDRNOTAVAIL, "any text"), "cannot assign requested address"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "cannot resolve the host name"),
        (OSError(errno.EADDRINUSE, "the path is a file", "/run/a.sock"), "the path is a file"),
    ],
)
def test_the_reason_is_the_systems(error: OSError, reason: str) -> None:
    assert bind_error("host:80", error).message == f"cannot listen on host:80: {reason}"
