"""Connections that never block: TCP, Unix sockets and TLS, and what is larger than a socket's buffer."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import pytest

from tests.support.certificates import certify
from torchmar.connection import Endpoint
from torchmar.errors import TorchmarError
from torchmar.load.event_loop import EventLoop, clock
from torchmar.load.measuring import _allow_descriptors
from torchmar.load.stream import Peer, Stream
from torchmar.load.target import Target, peer

LARGE = bytes(range(256)) * 20_000  # 5 MB


def _echo(listener: socket.socket, tls: ssl.SSLContext | None = None) -> None:
    """Accept one connection and send back what arrives, until the client closes it."""
    plain, _ = listener.accept()
    try:
        connection = tls.wrap_socket(plain, server_side=True) if tls else plain
        with connection:
            while data := connection.recv(1 << 16):
                connection.sendall(data)
    except OSError:
        pass


def _exchange(target: Peer, data: bytes) -> tuple[bytes, list[str]]:
    """Send data, and return what came back, and why the connection ended if it did."""
    received: list[bytes] = []
    reasons: list[str] = []
    with EventLoop() as loop:
        stream = Stream(loop, target, received.append, reasons.append)
        stream.write(data[:100])  # before there is a connection
        stream.write(data[100:])
        deadline = clock() + 30
        while sum(map(len, received)) < len(data) and not reasons and clock() < deadline:
            loop.poll(clock() + 0.05)
        stream.close()
    return b"".join(received), reasons


def test_large_data_pass_over_tcp() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_echo, args=(listener,)).start()
        assert _exchange(Peer.resolve("127.0.0.1", listener.getsockname()[1]), LARGE) == (LARGE, [])


def test_large_data_pass_over_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        threading.Thread(target=_echo, args=(listener,)).start()
        target = Target(endpoint=Endpoint(inference=f"unix:{path}", tokens={}), model="m")
        assert target.local
        assert _exchange(peer(target), LARGE) == (LARGE, [])


def test_large_data_pass_over_tls(tmp_path: Path) -> None:
    key, certificate = certify(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_echo, args=(listener, tls)).start()
        endpoint = Endpoint(inference=f"https://127.0.0.1:{listener.getsockname()[1]}", tokens={}, verify=certificate)
        assert _exchange(peer(Target(endpoint=endpoint, model="m")), LARGE) == (LARGE, [])


def test_a_certificate_that_is_not_trusted_ends_the_connection(tmp_path: Path) -> None:
    key, certificate = certify(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_echo, args=(listener, tls)).start()
        endpoint = Endpoint(inference=f"https://127.0.0.1:{listener.getsockname()[1]}", tokens={})
        received, reasons = _exchange(peer(Target(endpoint=endpoint, model="m")), b"secret")
    assert (received, reasons) == (b"", ["TLS: CERTIFICATE_VERIFY_FAILED"])


def test_an_address_without_a_port_or_a_host_is_an_error() -> None:
    for address in ("http://", "ftp://127.0.0.1:1"):
        with pytest.raises(TorchmarError, match="is not an address"):
            peer(Target(endpoint=Endpoint(inference=address, tokens={}), model="m"))


def test_a_host_name_without_address_is_an_error() -> None:
    with pytest.raises(TorchmarError, match=r"cannot resolve the host name nowhere\.invalid"):
        Peer.resolve("nowhere.invalid", 80)


def test_more_connections_than_files_may_be_open_are_an_error() -> None:
    with pytest.raises(TorchmarError, match="open files") as error:
        _allow_descriptors(10**9)
    assert "ulimit -n" in error.value.hint
