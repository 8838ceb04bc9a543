"""The addresses of a started server, as printed by the commands that start one."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchmar.engines import EngineName
    from torchmar.properties import Properties

_INDENT = 12  # columns of a name


def lines(config: Properties, engine: EngineName) -> Iterator[str]:
    """Yield a line for each API with its addresses over HTTP and gRPC.

    Args:
        config: the server's configuration.
        engine: kind of server; torchmar's server has gRPC only if grpcio is installed.
    """
    scheme = "grpcs" if config.flag("enable_grpc_ssl") else "grpc"
    grpc = {address.key: f"{scheme}://{address.host}:{address.port}" for address in config.addresses()}
    speaks_grpc = engine == "torchserve" or importlib.util.find_spec("grpc") is not None
    for api in ("inference", "management"):
        urls = [config.url(f"{api}_address"), *([grpc[f"grpc_{api}_port"]] if speaks_grpc else [])]
        yield f"  {api:{_INDENT}}{'  '.join(urls)}"
    if config.serves_metrics:
        url = config.url("metrics_address")
        yield f"  {'metrics':{_INDENT}}{url}{'' if url.startswith('unix:') else '/metrics'}"
