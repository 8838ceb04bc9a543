"""The management API: register, describe, scale and remove models on a running server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any
from urllib.parse import quote

from torchmar.connection import Api, Connection, Endpoint
from torchmar.errors import TorchmarError
from torchmar.management.models import JobQueue, ModelVersion, RegisteredModel, WorkerState

__all__ = ["JobQueue", "ManagementClient", "ModelVersion", "RegisteredModel", "WorkerState"]

_PAGE = 100  # what TorchServe sends at the most, whatever it is asked for


class ManagementClient:
    """A client of the management API.

    >>> with ManagementClient("https://models.example.com/ts/management") as client:
    ...     for model in client.models():
    ...         print(model.name, client.describe(model.name)[0].ready)

    Every method raises ConnectError when there is no server, and ServerError (Unauthorized,
    NotFound, Conflict) with the server's own words when it says no. What is repeated after a
    failure, and that nothing is registered twice, says `torchmar.connection.Connection`.

    Args:
        server: where it is, or only the address of its management API; default: the server that runs
            with ``.torchmar``, or TorchServe's own addresses.
        timeout: seconds to wait for an answer.
        retries: how often a call is repeated.
    """

    def __init__(self, server: Endpoint | str | None = None, timeout: float = 60.0, retries: int = 2) -> None:
        self._connection = Connection(Endpoint.coerce(server, "management"), "management", timeout, retries)
        self._timeout = timeout

    def __enter__(self) -> ManagementClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; the client can be used again."""
        self._connection.close()

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
        ignored_checks: Sequence[str] = (),
    ) -> str:
        """Register an archive: a file name in the server's model store, or a URL that it allows.

        What the archive's own ``model-config.yaml`` says about workers and batching goes before
        what is said here. With ``synchronous`` the answer comes when the workers are up, or with
        ServerError when one of them failed; the model is not registered then.

        Args:
            url: which archive.
            model_name: in place of the name that the archive has.
            handler: in place of the handler that the archive names.
            runtime: in place of the runtime that the archive names: ``python`` or ``python3``.
            initial_workers: default: the server's ``default_workers_per_model``, which is none.
            batch_size: default: 1.
            max_batch_delay: milliseconds; default: 100.
            response_timeout: seconds; default: the server's ``default_response_timeout``, 120.
            startup_timeout: seconds; default: the server's ``default_startup_timeout``, 120.
            s3_sse_kms: whether an archive in S3 is encrypted with a key of AWS KMS.
            synchronous: wait for the workers.
            timeout: seconds to wait for the answer.
            ignored_checks: codes of checks, or beginnings of codes, for which the built-in server is not to refuse the
                archive; ``MAR`` is all of them. TorchServe checks nothing.

        Returns:
            The server's message.

        Raises:
            TorchmarError: ``model_name`` has a slash: TorchServe would take it, and know no way to the model.
        """
        check_name(model_name)
        query = {
            "url": url,
            "model_name": model_name,
            "handler": handler,
            "runtime": runtime,
            "initial_workers": initial_workers,
            "batch_size": batch_size,
            "max_batch_delay": max_batch_delay,
            "response_timeout": response_timeout,
            "startup_timeout": startup_timeout,
            "s3_sse_kms": "true" if s3_sse_kms else None,
            "synchronous": str(synchronous).lower(),
            "torchmar_ignore_checks": ",".join(ignored_checks) or None,
        }
        return self._status("POST", "/models", query, timeout)

    def describe(self, name: str, version: str | None = None, *, customized: bool = False) -> list[ModelVersion]:
        """Return a version, the default one, or with ``all`` every version of a model.

        With ``customized`` a worker is asked, too, for what its handler says of the model; for
        ``all`` TorchServe does not ask.
        """
        query = {"customized": "true"} if customized else None
        return self._connection.read(_versions, "GET", _path(name, version), query=query)

    def models(self) -> Iterator[RegisteredModel]:
        """Yield all registered models, sorted by name."""
        token: str | None = None
        while True:
            query = {"limit": _PAGE, "next_page_token": token}
            found, token = self._connection.read(_page, "GET", "/models", query=query)
            yield from found
            if token is None:
                return

    def names(self) -> Iterator[str]:
        """Yield the names of all registered models, sorted."""
        return (model.name for model in self.models())

    def ready(self, name: str) -> bool:
        """Tell whether a model has workers (KServe's readiness; that they answer, it does not say)."""
        path = f"/v1/models/{quote(name, safe='')}"
        return self._connection.read(lambda document: bool(document["ready"]), "GET", path)

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
        """Set the number of workers of a version, or of the default one; the maximum follows the minimum.

        These are all the parameters that TorchServe 0.12.0 reads; its documentation has two more.
        """
        query = {
            "min_worker": min_worker,
            "max_worker": max(min_worker, max_worker or 0),
            "synchronous": str(synchronous).lower(),
        }
        return self._status("PUT", _path(name, version), query, timeout)

    def set_default(self, name: str, version: str) -> str:
        """Make ``version`` the one that answers requests without a version."""
        return self._status("PUT", f"{_path(name, version)}/set-default")

    def unregister(self, name: str, version: str | None = None) -> str:
        """Remove a version, or a model's only one."""
        return self._status("DELETE", _path(name, version))

    def renew_token(self, api: Api) -> None:
        """Have the server write a new token of an API into its key file; the one before it ends at once.

        Clients with the key file do so by themselves before a token expires.

        Raises:
            TorchmarError: the client has no key file, and with it no key that allows this.
        """
        self._connection.tokens.renew(api)

    def api_description(self, name: str | None = None, version: str | None = None) -> dict[str, Any]:
        """Return the OpenAPI document of the management and inference API, or of one model's management."""
        path = _path(name, version) if name else "/"
        return self._connection.read(dict, "OPTIONS", path)

    def _status(self, method: str, path: str, query: Mapping[str, Any] | None = None, timeout: float = 0) -> str:
        seconds = timeout or self._timeout
        return self._connection.read(
            lambda document: str(document["status"]), method, path, query=query, timeout=seconds
        )


def check_name(name: str | None) -> None:
    """Raise TorchmarError for a name that no path of the server's leads to."""
    if name and "/" in name:
        raise TorchmarError(f"a model cannot be called {name!r}: TorchServe would find none with a slash in its name")


def _versions(document: Any) -> list[ModelVersion]:
    return [ModelVersion.of(one) for one in document]


def _page(document: Any) -> tuple[list[RegisteredModel], str | None]:
    models = [RegisteredModel(model["modelName"], model["modelUrl"]) for model in document["models"]]
    return models, document.get("nextPageToken")


def _path(name: str, version: str | None = None) -> str:
    return f"/models/{quote(name, safe='')}" + (f"/{quote(version, safe='')}" if version else "")
