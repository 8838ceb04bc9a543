"""Health as ``grpc.health.v1`` has it, which Kubernetes and load balancers ask for without a token.

https://github.com/grpc/grpc/blob/master/doc/health-checking.md
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping

from grpc_health.v1 import health_pb2 as wire

from torchmar.server.grpc.calls import Code, Context, Failed, Method, streamed, unary

NAME = "grpc.health.v1.Health"

_LOOK = 0.2  # seconds between looks at what is watched


class Health:
    """The service.

    Args:
        ready: by service, whether it takes requests; the one without a name is the server.
    """

    name = NAME

    def __init__(self, ready: Mapping[str, Callable[[], bool]]) -> None:
        self._ready = ready
        self._closed = asyncio.Event()

    def methods(self) -> Mapping[str, Method]:
        """Return the methods by their names."""
        return {
            "Check": unary(self.check, wire.HealthCheckRequest),
            "Watch": streamed(self.watch, wire.HealthCheckRequest),
        }

    def close(self) -> None:
        """Report that nothing takes requests any more, and end what watches."""
        self._closed.set()

    async def check(self, request: wire.HealthCheckRequest, context: Context) -> wire.HealthCheckResponse:
        """Return the status of a service.

        Raises:
            Failed: NOT_FOUND, there is no such service.
        """
        if request.service not in self._ready:
            raise Failed(Code.NOT_FOUND, f"there is no service {request.service!r}; there are {', '.join(self._ready)}")
        return wire.HealthCheckResponse(status=self._status(request.service))

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
                await asyncio.wait_for(self._closed.wait(), _LOOK)

    def _status(self, service: str) -> wire.HealthCheckResponse.ServingStatus:
        if service not in self._ready:
            return wire.HealthCheckResponse.SERVICE_UNKNOWN
        serving = not self._closed.is_set() and self._ready[service]()
        return wire.HealthCheckResponse.SERVING if serving else wire.HealthCheckResponse.NOT_SERVING
