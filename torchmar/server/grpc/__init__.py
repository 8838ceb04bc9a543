"""TorchServe's services over gRPC, with the same registry and queues as REST; ``pip install 'torchmar[grpc]'``.

`listener.py` opens the ports, `calls.py` handles tokens and errors of all calls, `model_call.py` a call to a model, and
`call_spans.py` the span of a call in a trace;
`inference.py`, `management.py`, `open_inference.py`, `health.py` and `reflection.py` are the services.
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
    from torchmar.server.telemetry.tracing import Tracer
    from torchmar.server.tokens import Tokens


async def listen(
    registry: Registry, tokens: Tokens, settings: Settings, metrics: Metrics, tracer: Tracer | None = None
) -> GrpcListener | None:
    """Listen on the configured addresses; return None, after a log entry, if gRPC is not installed.

    Raises:
        BindError: an address cannot be bound.
        PropertiesError: the certificate or its key cannot be read.
    """
    try:
        importlib.import_module("google.protobuf")
        importlib.import_module("grpc")
    except ImportError:
        logs.SERVER.warning("gRPC is off: it needs pip install 'torchmar[grpc]'")
        return None
    from torchmar.server.grpc.listener import GrpcListener

    listener = GrpcListener(registry, tokens, settings, metrics, tracer)
    await listener.open()
    return listener
