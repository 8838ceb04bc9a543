"""torchmar.engines.addresses shifts the ports of a server together, and finds the process that listens on one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from torchmar.address import Address
from torchmar.engines import addresses
from torchmar.engines.addresses import free_ports
from torchmar.errors import BindError, EngineError
from torchmar.properties import Properties

#: Listens in a thread until the standard input ends; the first thread ends before.
ENDING = """
import ctypes, os, socket, sys, threading
listener = socket.create_server(("127.0.0.1", {port}))
threading.Thread(target=lambda: (os.read(0, 1), os._exit(0))).start()
ctypes.CDLL(None).pthread_exit(None)
"""

GIVEN = Properties(
    None,
    {
        "inference_address": "https://127.0.0.1:8443",
        "management_address": "http://[::1]:8081",
        "grpc_inference_port": "7070",
    },
)


def ports(config: Properties) -> list[int]:
    return [address.port for address in config.addresses()]


def test_all_ports_move_by_the_distance_of_the_first() -> None:
    moved = addresses.shift_ports(GIVEN, 9443)
    assert ports(moved) == [9443, 9081, 9082, 8070, 8071]
    assert moved.get("inference_address") == "https://127.0.0.1:9443"
    assert moved.get("management_address") == "http://[::1]:9081"
    assert ports(addresses.shift_ports(GIVEN, 8443)) == ports(GIVEN)


@pytest.mark.parametrize("port", [65535, 1000])
def test_a_port_beyond_65535_is_rejected(port: int) -> None:
    with pytest.raises(EngineError, match=r"would shift \w+ from \d+ to"):
        addresses.shift_ports(Properties(None, {}), port)


def test_only_the_inference_api_listens_elsewhere() -> None:
    opened = addresses.listen(GIVEN, "0.0.0.0")
    assert [address.host for address in opened.addresses()] == ["0.0.0.0", "::1", "127.0.0.1", "0.0.0.0", "127.0.0.1"]
    assert [address.loopback for address in opened.addresses()] == [False, True, True, False, True]
    assert opened.get("inference_address") == "https://0.0.0.0:8443"


def test_metrics_listen_elsewhere_only_if_they_are_to() -> None:
    opened = addresses.listen(GIVEN, None, "0.0.0.0")
    assert [address.key for address in opened.addresses() if not address.loopback] == ["metrics_address"]
    both = addresses.listen(GIVEN, "::", "::")
    assert both.get("metrics_address").startswith("http://[::]:")
    unix = Properties(None, {"metrics_address": "unix:/run/metrics.sock"})
    with pytest.raises(EngineError, match="has no host") as caught:
        addresses.listen(unix, None, "0.0.0.0")
    assert "--metrics-host" in caught.value.hint


UNIX = Properties(None, {"inference_address": "unix:/run/inference.sock"})


def test_shifting_a_unix_socket_is_an_error() -> None:
    with pytest.raises(EngineError, match=r"inference_address=unix:/run/inference\.sock has no port") as caught:
        addresses.shift_ports(UNIX, 9080)
    assert "--port" in caught.value.hint
    with pytest.raises(EngineError, match="has no host"):
        addresses.listen(UNIX, "0.0.0.0")
    beside = addresses.shift_ports(Properties(None, {"management_address": "unix:/run/management.sock"}), 9080)
    assert [address.port or address.unix for address in beside.addresses()][:2] == [9080, "/run/management.sock"]


def test_a_unix_socket_is_in_use_while_a_process_listens(tmp_path: Path) -> None:
    address = Address(unix=str(tmp_path / "s"), key="inference_address")
    addresses.check_free(address)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address.unix)
        listener.listen()
        with pytest.raises(BindError, match="address already in use"):
            addresses.check_free(address)
    addresses.check_free(address)  # the file is still there, without a listener


def test_the_process_that_listens_on_a_port_is_named(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    code = f"import socket; s = socket.create_server(('127.0.0.1', {port})); print('listening', flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        process.stdout.readline()
        with pytest.raises(BindError) as caught:
            addresses.check_free(Address("127.0.0.1", port, key="inference_address"))
        assert f"process {process.pid}" in caught.value.message
        assert "python" in caught.value.message
        assert "--port" in caught.value.hint
        holder = addresses.listener_of(port)
        assert holder
        assert holder.pid == process.pid
    finally:
        process.communicate("")
    addresses.check_free(Address("127.0.0.1", port, key="inference_address"))
    assert addresses.listener_of(port) is None


@pytest.mark.skipif(sys.platform != "linux", reason="other systems end all threads of a process together")
def test_a_port_of_a_process_that_is_ending_is_waited_for() -> None:
    """A killed process is a zombie already, and holds its sockets until its last thread has ended, as here."""
    (port,) = free_ports(1)
    process = subprocess.Popen([sys.executable, "-c", ENDING.format(port=port)], stdin=subprocess.PIPE)
    try:
        assert process.stdin
        while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        address = Address("127.0.0.1", port, key="inference_address")
        with pytest.raises(BindError, match="a process that the system does not name"):
            addresses.check_free(address, wait=0)
        end = threading.Timer(0.2, process.stdin.close)
        end.start()
        addresses.check_free(address, wait=60)
        end.join()
    finally:
        process.kill()
        process.wait()


def test_an_address_of_another_machine_is_reported() -> None:
    with pytest.raises(EngineError, match="not an address of this machine"):
        addresses.check_free(Address("192.0.2.1", 8082, key="metrics_address"))
    with pytest.raises(EngineError, match="not an address of this machine"):
        addresses.check_free(Address("no-such-host.invalid", 8082, key="metrics_address"))


def test_a_port_of_this_process_is_reported_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        holder = addresses.listener_of(listener.getsockname()[1])
    assert holder
    assert holder.pid == os.getpid()
