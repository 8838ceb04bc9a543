"""The addresses of a server: shift them to other ports, find the process that listens on one."""

from __future__ import annotations

import contextlib
import errno
import random
import socket
from dataclasses import replace
from urllib.parse import urlsplit, urlunsplit

import psutil

from torchmar.address import Address
from torchmar.engines.server_records import ServerRecord, folder_of, option, other
from torchmar.errors import BindError, EngineError
from torchmar.properties import Properties

_WEB = ("inference_address", "management_address", "metrics_address")
_GRPC = ("grpc_inference", "grpc_management")
_LAST = 65535


def shift_ports(config: Properties, port: int) -> Properties:
    """Return a configuration whose inference API is at ``port``, all other ports moved by the same distance.

    Sockets that are files stay where they are.

    Raises:
        EngineError: a port would be none, or the inference API has none.
    """
    _refuse_unix(config, "port")
    distance = port - next(one.port for one in config.addresses() if one.key == "inference_address")
    moved = {}
    for address in config.addresses():
        if address.unix:
            continue
        there = address.port + distance
        if not 0 < there <= _LAST:
            raise EngineError(
                f"port {port} would move {address.key} from {address.port} to {there}",
                hint=f"ports are 1 to {_LAST}; the others move along with the inference API's",
            )
        moved[address.key] = _web(config.get(address.key), port=there) if address.key in _WEB else str(there)
    return replace(config, values={**config.values, **moved})


def listen(config: Properties, host: str | None, metrics_host: str | None = None) -> Properties:
    """Return a configuration whose inference API, over REST and gRPC, listens at ``host``, and metrics elsewhere.

    The management API stays where it is: it runs code by design.

    Raises:
        EngineError: an API that is to listen at a host is at a Unix socket.
    """
    values: dict[str, str] = {}
    if host:
        _refuse_unix(config, "host")
        values |= {"inference_address": _web(config.get("inference_address"), host=host)}
        values |= {"grpc_inference_address": host}
    if metrics_host:
        _refuse_unix(config, "metrics-host", "metrics_address")
        values |= {"metrics_address": _web(config.get("metrics_address"), host=metrics_host)}
    return replace(config, values={**config.values, **values})


def free_ports(count: int) -> list[int]:
    """Return free ports of loopback, below those that the system gives to clients.

    Raises:
        EngineError: there are not so many.
    """
    found: list[int] = []
    for port in random.sample(range(20_000, 30_000), 200):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.append(port)
        if len(found) == count:
            return found
    raise EngineError("no port is free", hint="look who listens from 20000 to 30000")


def free_addresses() -> dict[str, str]:
    """Return TorchServe's addresses, as ``config.properties`` has them, at free ports of loopback."""
    inference, management, metrics, grpc, grpc_management = free_ports(5)
    return {
        "inference_address": f"http://127.0.0.1:{inference}",
        "management_address": f"http://127.0.0.1:{management}",
        "metrics_address": f"http://127.0.0.1:{metrics}",
        "grpc_inference_port": str(grpc),
        "grpc_management_port": str(grpc_management),
    }


def check_free(address: Address) -> None:
    """See whether a server could listen at an address.

    Raises:
        BindError: a process listens on one; the message names it, if the system shows it.
        EngineError: this machine has no such address, or the port needs root.
    """
    if address.unix:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            if client.connect_ex(address.unix) == 0:
                raise BindError(f"{address.key}: somebody listens at {address.unix} already", hint=_OTHER_SOCKET)
        return
    try:
        family, kind, _, _, place = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise EngineError(
            f"{address.key}: {address.host} is not an address of this machine ({error.strerror})"
        ) from None
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(place)
        except PermissionError:
            raise EngineError(f"{address.key}: port {address.port} needs root") from None
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise EngineError(f"{address.key}: {address.host} is not an address of this machine") from None
            raise _taken(address) from None


def listener_of(port: int) -> psutil.Process | None:
    """Return the process that listens on ``port``; None if there is none or the system does not tell."""
    try:
        connections = psutil.net_connections("tcp")
    except psutil.Error:  # macOS tells root only
        return None
    for connection in connections:
        listens = connection.status == psutil.CONN_LISTEN and getattr(connection.laddr, "port", None) == port
        if listens and connection.pid:
            try:
                return psutil.Process(connection.pid)
            except psutil.Error:
                return None
    return None


def _taken(address: Address) -> BindError:
    what = f"{address.key}: {address.host}:{address.port} is taken by"
    found = listener_of(address.port)
    if found is None:
        return BindError(f"{what} a process that the system does not name", hint=_OTHER_PORTS)
    if (folder := folder_of(found)) and ServerRecord.find(folder):
        return BindError(
            f"{what} the server of {folder} (process {found.pid})",
            hint=f"torchmar stop{option(folder)} ends it; {_OTHER_PORTS}",
        )
    if orphan := other(found):
        return BindError(
            f"{what} {orphan.what} (process {found.pid})", hint=f"kill {found.pid} ends it; {_OTHER_PORTS}"
        )
    return BindError(f"{what} {_name(found)} (process {found.pid})", hint=_OTHER_PORTS)


def _refuse_unix(config: Properties, what: str, key: str = "inference_address") -> None:
    if any(address.unix for address in config.addresses() if address.key == key):
        raise EngineError(
            f"{key}={config.url(key)} has no {what.rpartition('-')[2]}",
            hint=f"leave --{what} out, or name an http:// address",
        )


_OTHER_SOCKET = "stop it, or name another socket"
_OTHER_PORTS = "torchmar serve --run-folder .torchmar-b --port 9080 runs beside it"


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return "somebody"


def _web(address: str, *, host: str | None = None, port: int | None = None) -> str:
    parts = urlsplit(address)
    name = host or parts.hostname or ""
    shown = f"[{name}]" if ":" in name else name
    number = port or parts.port
    return urlunsplit(parts._replace(netloc=f"{shown}:{number}" if number else shown))
