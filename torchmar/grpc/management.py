"""The management API over gRPC."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from google.protobuf.message import Message

from torchmar.connection import Endpoint
from torchmar.errors import ServerError, TorchmarError
from torchmar.grpc.channel import Client
from torchmar.grpc.wire import management_pb2 as wire
from torchmar.management import ModelVersion, RegisteredModel, check_name

_PAGE = 100


class GrpcManagement(Client):
    """A client of the management API over gRPC; a context manager. It may be used by several threads.

    Tokens are renewed over REST, because gRPC has no call for it.

    Args:
        server: the endpoint, or only the address: ``grpc://host:7071``, or ``grpcs://`` for TLS; default: the server
            that runs in ``.torchmar``, or TorchServe's default address.
        timeout: seconds to wait for a response (gRPC's deadline).

    Raises:
        ConnectError: by every method: no server answers.
        ServerError: by every method: the server rejects the call.

    Examples:
        >>> from torchmar.grpc import GrpcManagement
        >>> with GrpcManagement() as client:
        ...     list(client.names())
        ['lengths']
    """

    _api = "management"
    _service = "org.pytorch.serve.grpc.management.ManagementAPIsService"

    def __init__(self, server: Endpoint | str | None = None, timeout: float = 60.0) -> None:
        super().__init__(server, timeout)

    def register(
        self,
        url: str,
        *,
        model_name: str | None = None,
        handler: str | None = None,
        runtime: str | None = None,
        initial_workers: int | None = None,
        batch_size: int | None = None,
        max_batch_delay: int | None = None,
        response_timeout: int | None = None,
        startup_timeout: int | None = None,
        s3_sse_kms: bool = False,
        synchronous: bool = True,
        timeout: float = 300.0,
    ) -> str:
        """Register an archive, as `torchmar.management.ManagementClient.register` does.

        A number of 0 means TorchServe's default. If the version is already registered, TorchServe's error has no
        message.
        """
        check_name(model_name)
        request = wire.RegisterModelRequest(
            url=url,
            model_name=model_name,
            handler=handler,
            runtime=runtime,
            initial_workers=initial_workers,
            batch_size=batch_size,
            max_batch_delay=max_batch_delay,
            response_timeout=response_timeout,
            startup_timeout=startup_timeout,
            s3_sse_kms=s3_sse_kms,
            synchronous=synchronous,
        )
        return self._status("RegisterModel", request, timeout, no_message_hint="is the version registered already?")

    def describe(self, name: str, version: str | None = None, *, customized: bool = False) -> list[ModelVersion]:
        """Return a version, by default the default one; with ``all``, every version of a model."""
        request = wire.DescribeModelRequest(model_name=name, model_version=version, customized=customized)
        return [ModelVersion.of(version) for version in self._json("DescribeModel", request)]

    def models(self) -> Iterator[RegisteredModel]:
        """Yield all registered models, sorted by name."""
        token: int | None = None
        while True:
            page = self._json("ListModels", wire.ListModelsRequest(limit=_PAGE, next_page_token=token))
            yield from (RegisteredModel(model["modelName"], model["modelUrl"]) for model in page["models"])
            if page.get("nextPageToken") is None:
                return
            token = int(page["nextPageToken"])

    def names(self) -> Iterator[str]:
        """Yield the names of all registered models, sorted."""
        return (model.name for model in self.models())

    def scale(
        self,
        name: str,
        version: str | None = None,
        *,
        min_worker: int,
        max_worker: int | None = None,
        synchronous: bool = True,
        timeout: float = 300.0,
    ) -> str:
        """Set the number of workers of a version, by default the default one; the maximum is set to the minimum.

        Raises:
            TorchmarError: ``min_worker`` is 0, which TorchServe treats as 1 over gRPC.
        """
        if min_worker == 0:
            raise TorchmarError("TorchServe scales to 0 workers over REST only", hint="use ManagementClient")
        request = wire.ScaleWorkerRequest(
            model_name=name,
            model_version=version,
            min_worker=min_worker,
            max_worker=max(min_worker, max_worker or 0),
            synchronous=synchronous,
        )
        return self._status("ScaleWorker", request, timeout)

    def set_default(self, name: str, version: str) -> str:
        """Make ``version`` the default, which gets requests without a version."""
        return self._status("SetDefault", wire.SetDefaultRequest(model_name=name, model_version=version))

    def unregister(self, name: str, version: str | None = None) -> str:
        """Remove a version, or the only one. For a default version among several, TorchServe's error has no message."""
        request = wire.UnregisterModelRequest(model_name=name, model_version=version)
        return self._status(
            "UnregisterModel", request, no_message_hint="is it the default version, and are there others?"
        )

    def _status(self, method: str, request: Message, timeout: float | None = None, no_message_hint: str = "") -> str:
        try:
            return self._channel.call(method, request, wire.ManagementResponse, timeout).msg
        except ServerError as error:
            error.hint = error.hint or (no_message_hint if error.status == 500 and not error.type else "")
            raise

    def _json(self, method: str, request: Message) -> Any:
        return json.loads(self._status(method, request))
