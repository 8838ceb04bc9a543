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
from torchmar.server.models.registry import Registration, Registry, Version


class Management:
    """The service.

    Args:
        registry: the models.
        asking: what asks handlers to describe themselves.
        settings: the server's configuration.
    """

    name = "org.pytorch.serve.grpc.management.ManagementAPIsService"

    def __init__(self, registry: Registry, asking: ModelCall, settings: Settings) -> None:
        self._registry, self._asking, self._settings = registry, asking, settings

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

    async def describe(self, asked: wire.DescribeModelRequest, context: Context) -> wire.ManagementResponse:
        """Describe a version, the default one or, with ``all``, every one."""
        name, version = asked.model_name, asked.model_version or None
        if version == "all":
            self._registry.find(name)
            found = list(self._registry.models[name].versions.values())
        else:
            found = [self._registry.find(name, version)]
        on_gpu = any(one.serving.device_type == "gpu" for one in found)
        usage = await asyncio.to_thread(descriptions.gpu_usage) if on_gpu else None
        described = [descriptions.version(one, usage) for one in found]
        if asked.customized and version != "all":
            described[0]["customizedMetadata"] = await self._said_by_handler(found[0], context)
        return _json(described)

    async def list(self, asked: wire.ListModelsRequest, context: Context) -> wire.ManagementResponse:
        """List a page of the models."""
        return _json(descriptions.page(self._registry.models.values(), asked.limit, asked.next_page_token))

    async def register(self, asked: wire.RegisterModelRequest, context: Context) -> wire.ManagementResponse:
        """Register an archive; a number that is not above zero is one that was not given."""
        self._allow()
        if not asked.url:
            raise ApiError(400, "BadRequestException", "Parameter url is required.")
        found = await self._registry.register(
            Registration(
                asked.url,
                model_name=asked.model_name,
                handler=asked.handler,
                runtime=asked.runtime or None,
                batch_size=_given(asked.batch_size),
                max_batch_delay=_given(asked.max_batch_delay),
                response_timeout=_given(asked.response_timeout),
                startup_timeout=_given(asked.startup_timeout),
                initial_workers=_given(asked.initial_workers),
                synchronous=asked.synchronous,
            )
        )
        return _say(status_messages.registered(found, synchronous=asked.synchronous))

    async def scale(self, asked: wire.ScaleWorkerRequest, context: Context) -> wire.ManagementResponse:
        """Set how many workers a version has; 0 is 1."""
        low = _given(asked.min_worker) or 1
        high = _given(asked.max_worker) or low
        version = asked.model_version or None
        await self._registry.scale(asked.model_name, version, low, high, synchronous=asked.synchronous)
        return _say(status_messages.scaled(asked.model_name, version, low, synchronous=asked.synchronous))

    async def set_default(self, asked: wire.SetDefaultRequest, context: Context) -> wire.ManagementResponse:
        """Make a version the one that is asked when none is named."""
        name, version = asked.model_name, asked.model_version
        self._registry.set_default(name, version)
        return _say(status_messages.made_default(name, version))

    async def unregister(self, asked: wire.UnregisterModelRequest, context: Context) -> wire.ManagementResponse:
        """Remove a version."""
        self._allow()
        if not asked.model_name:
            raise ApiError(400, "BadRequestException", "Parameter model_name is required.")
        await self._registry.unregister(asked.model_name, asked.model_version or None)
        return _say(status_messages.unregistered(asked.model_name))

    def _allow(self) -> None:
        if not self._settings.model_api:
            raise ApiError(403, "ModelException", "Model API disabled")

    async def _said_by_handler(self, found: Version, context: Context) -> dict[str, object]:
        body = await self._asking.whole(found, (), context, {"describe": "True"})
        with contextlib.suppress(ValueError, RecursionError):
            document = json.loads(body)
            if isinstance(document, dict):
                return document
        return {}


def _given(number: int) -> int | None:
    return number if number > 0 else None


def _json(document: object) -> wire.ManagementResponse:
    return _say(json.dumps(document, indent=2, ensure_ascii=False))


def _say(text: str) -> wire.ManagementResponse:
    return wire.ManagementResponse(msg=text)
