"""The addresses of a server: shifting ports, finding free ports, and the process that listens on a port."""

from __future__ import annotations

import contextlib
import errno
import random
import socket
import time
from dataclasses import replace
from urllib.parse import urlsplit, urlunsplit

import psutil

from torchmar.address import Address
from torchmar.engines.server_records import ServerRecord, folder_of, option, unmanaged
from torchmar.errors import BindError, EngineError
from torchmar.properties import Properties

#: The ports that `free_ports` chooses from, below the system's range for clients.
PORTS = range(20_000, 30_000)

_WEB = ("inference_address", "management_address", "metrics_address")
_GRPC = ("grpc_inference", "grpc_management")
_LAST = 65535


def shift_ports(config: Properties, port: int) -> Properties:
    """Return a configuration whose inference API is at ``port``, with all other ports shifted by the same distance.

    Unix sockets do not change.

    Raises:
        EngineError: a port would be out of range, or the inference API has none.
    """
    _check_no_socket(config, "port")
    distance = port - next(address.port for address in config.addresses() if address.key == "inference_address")
    shifted = {}
    for address in config.addresses():
        if address.unix:
            continue
        number = address.port + distance
        if not 0 < number <= _LAST:
            raise EngineError(
                f"port {port} would shift {address.key} from {address.port} to {number}",
                hint=f"ports are 1 to {_LAST}; all ports are shifted together with the inference API's",
            )
        shifted[address.key] = _web(config.get(address.key), port=number) if address.key in _WEB else str(number)
    return replace(config, values={**config.values, **shifted})


def listen(config: Properties, host: str | None, metrics_host: str | None = None) -> Properties:
    """Return a configuration with other hosts for the inference API (REST and gRPC) and for the metrics API.

    The host of the management API does not change, because registering a model runs code.

    Raises:
        EngineError: one of these APIs uses a Unix socket, which has no host.
    """
    values: dict[str, str] = {}
    if host:
        _check_no_socket(config, "host")
        values |= {"inference_address": _web(config.get("inference_address"), host=host)}
        values |= {"grpc_inference_address": host}
    if metrics_host:
        _check_no_socket(config, "metrics-host", "metrics_address")
        values |= {"metrics_address": _web(config.get("metrics_address"), host=metrics_host)}
    return replace(config, values={**config.values, **values})


def free_ports(count: int) -> list[int]:
    """Return free ports of loopback in `PORTS`; another process may take one before the caller does.

    Raises:
        EngineError: there are not enough free ports.
    """
    ports: list[int] = []
    for port in random.sample(PORTS, 200):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports.append(port)
        if len(ports) == count:
            return ports
    raise EngineError("no port is free", hint=f"ports {PORTS.start} to {PORTS.stop} are all in use")


def free_addresses() -> dict[str, str]:
    """Return TorchServe's addresses, as keys of ``config.properties``, at free ports of loopback."""
    inference, management, metrics, grpc, grpc_management = free_ports(5)
    return {
        "inference_address": f"http://127.0.0.1:{inference}",
        "management_address": f"http://127.0.0.1:{management}",
        "metrics_address": f"http://127.0.0.1:{metrics}",
        "grpc_inference_port": str(grpc),
        "grpc_management_port": str(grpc_management),
    }


def check_free(address: Address, wait: float = 3.0) -> None:
    """Check that a server could listen at an address.

    Args:
        address: the address.
        wait: seconds to wait for a port whose process is unknown. A killed process keeps its ports until its last
            thread has ended: an immediate restart would find them in use.

    Raises:
        BindError: the address is in use; the message names the process, if the system reports it.
        EngineError: this machine has no such address, or the port needs root.
    """
    if address.unix:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            if client.connect_ex(address.unix) == 0:
                raise BindError(
                    f"{address.key}: cannot listen on {address.unix}: address already in use", hint=_OTHER_SOCKET
                )
        return
    try:
        family, kind, _, _, sockaddr = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise EngineError(
            f"{address.key}: {address.host} is not an address of this machine ({error.strerror})"
        ) from None
    deadline = time.monotonic() + wait
    while True:
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(sockaddr)
                return
            except PermissionError:
                raise EngineError(f"{address.key}: port {address.port} needs root") from None
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise EngineError(f"{address.key}: {address.host} is not an address of this machine") from None
        holder = listener_of(address.port)
        if holder or time.monotonic() > deadline:
            raise _in_use(address, holder)
        time.sleep(0.05)


def listener_of(port: int) -> psutil.Process | None:
    """Return the process that listens on ``port``; None if there is none or the system does not show it."""
    try:
        connections = psutil.net_connections("tcp")
    except psutil.Error:  # macOS only shows it to root
        return None
    for connection in connections:
        listens = connection.status == psutil.CONN_LISTEN and getattr(connection.laddr, "port", None) == port
        if listens and connection.pid:
            try:
                return psutil.Process(connection.pid)
            except psutil.Error:
                return None
    return None


def _in_use(address: Address, process: psutil.Process | None) -> BindError:
    message = f"{address.key}: {address.host}:{address.port} is taken by"
    if process is None:
        return BindError(f"{message} a process that the system does not name", hint=_OTHER_PORTS)
    if (folder := folder_of(process)) and ServerRecord.find(folder):
        return BindError(
            f"{message} the server of {folder} (process {process.pid})",
            hint=f"torchmar stop{option(folder)} ends it; {_OTHER_PORTS}",
        )
    if server := unmanaged(process):
        return BindError(
            f"{message} {server.what} (process {process.pid})", hint=f"kill {process.pid} ends it; {_OTHER_PORTS}"
        )
    return BindError(f"{message} {_name(process)} (process {process.pid})", hint=_OTHER_PORTS)


def _check_no_socket(config: Properties, option: str, key: str = "inference_address") -> None:
    if any(address.unix for address in config.addresses() if address.key == key):
        raise EngineError(
            f"{key}={config.url(key)} has no {option.rpartition('-')[2]}",
            hint=f"leave --{option} out, or name an http:// address",
        )


_OTHER_SOCKET = "stop it, or name another socket"
_OTHER_PORTS = "torchmar serve --run-folder .torchmar-b --port 9080 starts a server on other ports"


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return "another process"


def _web(address: str, *, host: str | None = None, port: int | None = None) -> str:
    parts = urlsplit(address)
    name = host or parts.hostname or ""
    url_host = f"[{name}]" if ":" in name else name
    number = port or parts.port
    return urlunsplit(parts._replace(netloc=f"{url_host}:{number}" if number else url_host))
