"""The two gRPC ports: one for inference and Open Inference, one for management."""

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
from torchmar.server.grpc.call_spans import SpanInterceptor
from torchmar.server.grpc.calls import TokenCheck
from torchmar.server.grpc.inference import Inference
from torchmar.server.grpc.management import Management
from torchmar.server.grpc.model_call import ModelCall
from torchmar.server.grpc.open_inference import NAME, TORCHSERVES_NAME, OpenInference
from torchmar.server.grpc.tensorflow_serving import ModelService, PredictionService
from torchmar.server.models.health import ready
from torchmar.server.telemetry import logs

if TYPE_CHECKING:
    from torchmar.address import Address
    from torchmar.server.config.settings import Settings
    from torchmar.server.grpc.health import Health
    from torchmar.server.models.registry import Registry
    from torchmar.server.telemetry.metrics import Metrics
    from torchmar.server.telemetry.tracing import Tracer
    from torchmar.server.tokens import Tokens


class GrpcListener:
    """The servers of both ports; `torchmar.server.grpc.listen` makes it.

    Attributes:
        inference: the port of the inference API.
        management: the port of the management API.
    """

    def __init__(
        self, registry: Registry, tokens: Tokens, settings: Settings, metrics: Metrics, tracer: Tracer | None = None
    ) -> None:
        model_call = ModelCall(registry, metrics)
        inference: list[Any] = [Inference(registry, model_call)]
        if settings.ts_open_inference_protocol:
            encoded = settings.service_envelope == "kservev2"
            inference += [
                OpenInference(name, registry, metrics, model_call, encoded=encoded) for name in (NAME, TORCHSERVES_NAME)
            ]
        inference += [
            PredictionService(registry, model_call, settings.max_request_size),
            ModelService(registry),
        ]
        management: list[Any] = [Management(registry, model_call, settings)]
        self._settings = settings
        self._probes = [
            _add_probes(inference, partial(ready, registry), partial(ready, registry)),
            # Management does not depend on whether models are ready.
            _add_probes(management, partial(ready, registry), lambda: True),
        ]
        self._inference = _server(tokens, "inference", inference, settings, tracer)
        self._management = _server(tokens, "management", management, settings)
        self.inference = self.management = 0
        self._certificate: Any = None

    async def open(self) -> None:
        """Begin to listen."""
        credentials = self._credentials()
        try:
            self.inference = _bind(self._inference, self._settings.grpc_inference, credentials)
            self.management = _bind(self._management, self._settings.grpc_management, credentials)
            await self._inference.start()
            await self._management.start()
        except BaseException:
            await self.close(0)
            raise

    def reload_certificate(self) -> None:
        """Read key and certificate again, for new connections.

        Raises:
            PropertiesError: the files cannot be read.
        """
        if self._settings.grpc_tls:
            self._certificate = _certificate(self._settings)

    def _credentials(self) -> grpc.ServerCredentials | None:
        if not self._settings.grpc_tls:
            return None
        self.reload_certificate()
        return grpc.dynamic_ssl_server_credentials(self._certificate, lambda: self._certificate)

    async def close(self, grace: float) -> None:
        """Accept no more calls; running calls may take up to ``grace`` seconds."""
        for health in self._probes:
            if health is not None:
                health.close()
        await asyncio.gather(self._inference.stop(grace), self._management.stop(grace))


def _add_probes(services: list[Any], server: Callable[[], bool], service: Callable[[], bool]) -> Health | None:
    """Add health and reflection to the services of a port; return the health service.

    Args:
        services: services of the port, to which these are added.
        server: whether the server is ready.
        service: whether each of the services is ready.
    """
    try:
        from torchmar.server.grpc import health, reflection
    except ImportError:
        logs.SERVER.warning("gRPC has no health checks and no reflection: they need pip install 'torchmar[server]'")
        return None
    probe = health.Health({"": server, **{grpc_service.name: service for grpc_service in services}})
    services.append(probe)
    names = [grpc_service.name for grpc_service in services]
    services += [reflection.Reflection(name, names) for name in (reflection.ALPHA, reflection.NAME)]
    return probe


def _server(
    tokens: Tokens, kind: str, services: list[Any], settings: Settings, tracer: Tracer | None = None
) -> grpc.aio.Server:
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", settings.max_request_size),
        ("grpc.max_send_message_length", -1),
        # Otherwise a second server could listen on the same port, and would get some of the calls.
        ("grpc.so_reuseport", 0),
        *((f"grpc.{key.removeprefix(f'grpc_{kind}_')}", age) for key, age in settings.grpc_ages.items() if kind in key),
    ]
    # Each interceptor adds time to every call, which is much for small ones.
    interceptors: list[grpc.aio.ServerInterceptor] = [SpanInterceptor(tracer)] if tracer else []
    if tokens.enabled:
        interceptors.append(TokenCheck(tokens, kind, health=settings.health_token))
    server = grpc.aio.server(interceptors=interceptors, options=options)
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(service.name, service.methods()) for service in services]
    )
    return server


def _bind(server: grpc.aio.Server, address: Address, credentials: grpc.ServerCredentials | None) -> int:
    """Bind a server to an address; return its port."""
    host = f"[{address.host}]" if ":" in address.host else address.host
    place = f"{host}:{address.port}"
    try:
        _check_bindable(address)
        return server.add_secure_port(place, credentials) if credentials else server.add_insecure_port(place)
    except OSError as error:
        raise bind_error(place, error) from None
    except RuntimeError as error:
        raise BindError(f"cannot listen on {place}: {error}") from None


def _check_bindable(address: Address) -> None:
    """Raise OSError if no socket can be bound to an address; gRPC itself writes the reason only to stderr."""
    (family, _, _, _, where), *_ = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(where)


def _certificate(settings: Settings) -> Any:
    try:
        assert settings.private_key_file
        assert settings.certificate_file
        pair = settings.private_key_file.read_bytes(), settings.certificate_file.read_bytes()
    except (OSError, AssertionError) as error:
        message = f"private_key_file={settings.private_key_file}, certificate_file={settings.certificate_file}"
        raise PropertiesError(
            f"{message}: gRPC needs both ({error})", hint="set both, or enable_grpc_ssl=false"
        ) from None
    return grpc.ssl_server_certificate_configuration([pair])
