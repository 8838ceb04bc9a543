"""The two ports of gRPC: inference with Open Inference, and management."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from torchmar.errors import BindError, PropertiesError
from torchmar.server.bind_errors import bind_error
from torchmar.server.grpc.calls import TokenCheck
from torchmar.server.grpc.inference import Inference
from torchmar.server.grpc.management import Management
from torchmar.server.grpc.model_call import ModelCall
from torchmar.server.grpc.open_inference import NAME, TORCHSERVES_NAME, OpenInference
from torchmar.server.models.health import ready
from torchmar.server.telemetry import logs

if TYPE_CHECKING:
    from torchmar.address import Address
    from torchmar.server.config.settings import Settings
    from torchmar.server.grpc.health import Health
    from torchmar.server.models.registry import Registry
    from torchmar.server.telemetry.metrics import Metrics
    from torchmar.server.tokens import Tokens


class GrpcListener:
    """What `torchmar.server.grpc.listen` returns.

    Attributes:
        inference: the port of the inference API.
        management: the port of the management API.
    """

    def __init__(self, registry: Registry, tokens: Tokens, settings: Settings, metrics: Metrics) -> None:
        asking = ModelCall(registry, metrics)
        ours: list[Any] = [Inference(registry, asking)]
        if settings.ts_open_inference_protocol:
            ours += [OpenInference(name, registry, metrics, asking) for name in (NAME, TORCHSERVES_NAME)]
        theirs: list[Any] = [Management(registry, asking, settings)]
        self._settings = settings
        self._watched = [
            _add_probes(ours, partial(ready, registry), partial(ready, registry)),
            # Models can be managed whether or not they are ready.
            _add_probes(theirs, partial(ready, registry), lambda: True),
        ]
        self._inference = _server(tokens, "inference", ours, settings)
        self._management = _server(tokens, "management", theirs, settings)
        self.inference = self.management = 0

    async def open(self) -> None:
        """Begin to listen."""
        credentials = _credentials(self._settings)
        try:
            self.inference = _bind(self._inference, self._settings.grpc_inference, credentials)
            self.management = _bind(self._management, self._settings.grpc_management, credentials)
            await self._inference.start()
            await self._management.start()
        except BaseException:
            await self.close(0)
            raise

    async def close(self, grace: float) -> None:
        """Take no more calls; those that run end by themselves, or after ``grace`` seconds."""
        for health in self._watched:
            if health is not None:
                health.close()
        await asyncio.gather(self._inference.stop(grace), self._management.stop(grace))


def _add_probes(services: list[Any], server: Callable[[], bool], service: Callable[[], bool]) -> Health | None:
    """Add health and reflection to the services of a port; return the former.

    Args:
        services: of the port.
        server: whether the server is ready.
        service: whether each of the services is.
    """
    try:
        from torchmar.server.grpc import health, reflection
    except ImportError:
        logs.SERVER.warning("gRPC has no health and no reflection: pip install 'torchmar[server]' brings them")
        return None
    probe = health.Health({"": server, **{one.name: service for one in services}})
    services.append(probe)
    names = [one.name for one in services]
    services += [reflection.Reflection(name, names) for name in (reflection.ALPHA, reflection.NAME)]
    return probe


def _server(tokens: Tokens, kind: str, services: list[Any], settings: Settings) -> grpc.aio.Server:
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", settings.max_request_size),
        ("grpc.max_send_message_length", -1),
        # Or else a second server would listen beside the first, and each get some of the calls.
        ("grpc.so_reuseport", 0),
        *((f"grpc.{key.removeprefix(f'grpc_{kind}_')}", age) for key, age in settings.grpc_ages.items() if kind in key),
    ]
    server = grpc.aio.server(interceptors=[TokenCheck(tokens, kind, health=settings.health_token)], options=options)
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(service.name, service.methods()) for service in services]
    )
    return server


def _bind(server: grpc.aio.Server, address: Address, credentials: grpc.ServerCredentials | None) -> int:
    """Bind a server to an address; return its port."""
    host = f"[{address.host}]" if ":" in address.host else address.host
    where = f"{host}:{address.port}"
    try:
        _check_bindable(address)
        return server.add_secure_port(where, credentials) if credentials else server.add_insecure_port(where)
    except OSError as error:
        raise bind_error(where, error) from None
    except RuntimeError as error:
        raise BindError(f"cannot listen on {where}: {error}") from None


def _check_bindable(address: Address) -> None:
    """Raise OSError if no socket can be bound to an address: gRPC writes the reason to stderr and returns none."""
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, where = found[0]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(where)


def _credentials(settings: Settings) -> grpc.ServerCredentials | None:
    if not settings.grpc_tls:
        return None
    try:
        assert settings.private_key_file
        assert settings.certificate_file
        pair = settings.private_key_file.read_bytes(), settings.certificate_file.read_bytes()
    except (OSError, AssertionError) as error:
        message = f"private_key_file={settings.private_key_file}, certificate_file={settings.certificate_file}"
        raise PropertiesError(f"{message}: gRPC needs both ({error})", hint="or enable_grpc_ssl=false") from None
    return grpc.ssl_server_credentials([pair])
