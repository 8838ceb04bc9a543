"""TorchServe's services over gRPC, by the same registry and queues as REST; ``pip install 'torchmar[grpc]'``.

`listener.py` are the ports, `calls.py` what every call has in common, `asking.py` a request on its way to a
model; `inference.py`, `management.py` and `open_inference.py` are the services.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from torchmar.server.telemetry import logs

if TYPE_CHECKING:
    from torchmar.server.config.settings import Settings
    from torchmar.server.grpc.listener import GrpcListener
    from torchmar.server.models.registry import Registry
    from torchmar.server.telemetry.metrics import Metrics
    from torchmar.server.tokens import Tokens


async def listen(registry: Registry, tokens: Tokens, settings: Settings, metrics: Metrics) -> GrpcListener | None:
    """Listen where the configuration says; None, and a line in the log, where Python has no gRPC.

    Raises:
        BindError: an address cannot be bound.
        PropertiesError: the certificate or its key cannot be read.
    """
    try:
        importlib.import_module("google.protobuf")
        importlib.import_module("grpc")
    except ImportError:
        logs.SERVER.warning("gRPC is off: pip install 'torchmar[grpc]' brings what it needs")
        return None
    from torchmar.server.grpc.listener import GrpcListener

    listener = GrpcListener(registry, tokens, settings, metrics)
    await listener.open()
    return listener
