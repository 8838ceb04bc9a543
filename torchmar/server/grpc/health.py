"""Health checks of ``grpc.health.v1``, which Kubernetes and load balancers send without a token.

https://github.com/grpc/grpc/blob/master/doc/health-checking.md
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping

from grpc_health.v1 import health_pb2 as wire

from torchmar.server.grpc.calls import CallError, Code, Context, Method, streamed, unary

NAME = "grpc.health.v1.Health"

_POLL_SECONDS = 0.2  # interval of checks of a watched service


class Health:
    """The health service.

    Args:
        ready: functions by service that return whether it accepts requests; the empty name stands for the whole server.
    """

    name = NAME

    def __init__(self, ready: Mapping[str, Callable[[], bool]]) -> None:
        self._ready = ready
        self._closed = asyncio.Event()

    def methods(self) -> Mapping[str, Method]:
        """Return the methods by their names."""
        methods = {
            "Check": unary(self.check, wire.HealthCheckRequest),
            "Watch": streamed(self.watch, wire.HealthCheckRequest),
        }
        if hasattr(wire, "HealthListRequest"):  # the package has had it since 2025; newer ones need protobuf 6
            methods["List"] = unary(self.list_all, wire.HealthListRequest)
        return methods

    def close(self) -> None:
        """Report that no service accepts requests, and end all watches."""
        self._closed.set()

    async def check(self, request: wire.HealthCheckRequest, context: Context) -> wire.HealthCheckResponse:
        """Return the status of a service.

        Raises:
            CallError: NOT_FOUND, the service does not exist.
        """
        if request.service not in self._ready:
            raise CallError(
                Code.NOT_FOUND, f"unknown service {request.service!r}; the services are {', '.join(self._ready)}"
            )
        return wire.HealthCheckResponse(status=self._status(request.service))

    async def list_all(self, request: wire.HealthListRequest, context: Context) -> wire.HealthListResponse:
        """Return the status of each service, by its name; the whole server has the empty name."""
        statuses = {name: wire.HealthCheckResponse(status=self._status(name)) for name in self._ready}
        return wire.HealthListResponse(statuses=statuses)

    async def watch(
        self, request: wire.HealthCheckRequest, context: Context
    ) -> AsyncIterator[wire.HealthCheckResponse]:
        """Yield the status of a service now and whenever it has changed, until the server ends."""
        last = None
        while True:
            closed = self._closed.is_set()
            status = self._status(request.service)
            if status != last:
                last = status
                yield wire.HealthCheckResponse(status=status)
            if closed:
                return
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._closed.wait(), _POLL_SECONDS)

    def _status(self, service: str) -> wire.HealthCheckResponse.ServingStatus:
        if service not in self._ready:
            return wire.HealthCheckResponse.SERVICE_UNKNOWN
        serving = not self._closed.is_set() and self._ready[service]()
        return wire.HealthCheckResponse.SERVING if serving else wire.HealthCheckResponse.NOT_SERVING
