"""The management API over gRPC; the contract is ``torchmar/grpc/wire/management.proto``."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping

from torchmar.grpc.wire import management_pb2 as wire
from torchmar.server.api import descriptions, status_messages
from torchmar.server.api_error import ApiError
from torchmar.server.config.settings import Settings
from torchmar.server.grpc.calls import Context, Method, unary
from torchmar.server.grpc.model_call import ModelCall
from torchmar.server.models.registration import Registration, source
from torchmar.server.models.registry import Registry, Version


class Management:
    """The management service.

    Args:
        registry: the models.
        model_call: calls handlers that describe themselves.
        settings: the server's configuration.
    """

    name = "org.pytorch.serve.grpc.management.ManagementAPIsService"

    def __init__(self, registry: Registry, model_call: ModelCall, settings: Settings) -> None:
        self._registry, self._call, self._settings = registry, model_call, settings

    def methods(self) -> Mapping[str, Method]:
        """Return the methods by their names."""
        return {
            "DescribeModel": unary(self.describe, wire.DescribeModelRequest),
            "ListModels": unary(self.list, wire.ListModelsRequest),
            "RegisterModel": unary(self.register, wire.RegisterModelRequest),
            "ScaleWorker": unary(self.scale, wire.ScaleWorkerRequest),
            "SetDefault": unary(self.set_default, wire.SetDefaultRequest),
            "UnregisterModel": unary(self.unregister, wire.UnregisterModelRequest),
        }

    async def describe(self, request: wire.DescribeModelRequest, context: Context) -> wire.ManagementResponse:
        """Describe a version, the default one, or, with ``all``, all versions."""
        name, version = request.model_name, request.model_version or None
        if version == "all":
            self._registry.find(name)
            versions = list(self._registry.models[name].versions.values())
        else:
            versions = [self._registry.find(name, version)]
        on_gpu = any(registered.serving.device_type == "gpu" for registered in versions)
        usage = await asyncio.to_thread(descriptions.gpu_usage) if on_gpu else None
        described = [descriptions.version(registered, usage) for registered in versions]
        if request.customized and version != "all":
            described[0]["customizedMetadata"] = await self._handler_metadata(versions[0], context)
        return _json(described)

    async def list(self, request: wire.ListModelsRequest, context: Context) -> wire.ManagementResponse:
        """List a page of the models."""
        return _json(descriptions.page(self._registry.models.values(), request.limit, request.next_page_token))

    async def register(self, request: wire.RegisterModelRequest, context: Context) -> wire.ManagementResponse:
        """Register an archive; numbers of zero or less are treated as unset. The URL may end in ``#sha256=HEX``."""
        self._check_allowed()
        self._registry.check_changes()
        if not request.url:
            raise ApiError(400, "BadRequestException", "Parameter url is required.")
        url, digest = source(request.url)
        version = await self._registry.register(
            Registration(
                url=url,
                digest=digest,
                model_name=request.model_name,
                handler=request.handler,
                runtime=request.runtime or None,
                batch_size=_number(request.batch_size),
                max_batch_delay=_number(request.max_batch_delay),
                response_timeout=_number(request.response_timeout),
                startup_timeout=_number(request.startup_timeout),
                initial_workers=_number(request.initial_workers),
                synchronous=request.synchronous,
            )
        )
        return _response(status_messages.registered(version, synchronous=request.synchronous))

    async def scale(self, request: wire.ScaleWorkerRequest, context: Context) -> wire.ManagementResponse:
        """Set the number of workers of a version; 0 counts as 1."""
        self._registry.check_changes()
        min_workers = _number(request.min_worker) or 1
        max_workers = _number(request.max_worker) or min_workers
        version = request.model_version or None
        await self._registry.scale(
            request.model_name, version, min_workers, max_workers, synchronous=request.synchronous
        )
        return _response(
            status_messages.scaled(request.model_name, version, min_workers, synchronous=request.synchronous)
        )

    async def set_default(self, request: wire.SetDefaultRequest, context: Context) -> wire.ManagementResponse:
        """Make a version the default one."""
        self._registry.check_changes()
        name, version = request.model_name, request.model_version
        self._registry.set_default(name, version)
        return _response(status_messages.made_default(name, version))

    async def unregister(self, request: wire.UnregisterModelRequest, context: Context) -> wire.ManagementResponse:
        """Remove a version."""
        self._check_allowed()
        self._registry.check_changes()
        if not request.model_name:
            raise ApiError(400, "BadRequestException", "Parameter model_name is required.")
        await self._registry.unregister(request.model_name, request.model_version or None)
        return _response(status_messages.unregistered(request.model_name))

    def _check_allowed(self) -> None:
        if not self._settings.model_api:
            raise ApiError(403, "ModelException", "Model API disabled")

    async def _handler_metadata(self, version: Version, context: Context) -> dict[str, object]:
        body = await self._call.whole(version, (), context, {"describe": "True"})
        with contextlib.suppress(ValueError, RecursionError):
            document = json.loads(body)
            if isinstance(document, dict):
                return document
        return {}


def _number(value: int) -> int | None:
    return value if value > 0 else None


def _json(document: object) -> wire.ManagementResponse:
    return _response(json.dumps(document, indent=2, ensure_ascii=False))


def _response(text: str) -> wire.ManagementResponse:
    return wire.ManagementResponse(msg=text)
