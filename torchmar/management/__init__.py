"""The management API: register, describe, scale and remove models on a running server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any
from urllib.parse import quote

from torchmar.connection import Api, Connection, Endpoint
from torchmar.errors import ConflictError, TorchmarError
from torchmar.management.models import Download, JobQueue, ModelVersion, RegisteredModel, WorkerState

__all__ = ["Download", "JobQueue", "ManagementClient", "ModelVersion", "RegisteredModel", "WorkerState"]

_PAGE = 100  # TorchServe's limit


class ManagementClient:
    """A client of the management API, over REST; a context manager. Not for use by several threads at once.

    A call is repeated only if it was not sent or only reads, so that nothing is registered twice.

    Args:
        server: endpoint, or only the address of its management API; default: the server that runs in
            ``.torchmar``, or TorchServe's default addresses.
        timeout: seconds to wait for a response.
        retries: the number of repetitions of a call.

    Raises:
        ConnectError: by every method: no server answers.
        ServerError: by every method: the server rejects the call; its subclasses are UnauthorizedError, NotFoundError
            and ConflictError. The message is the server's.

    Examples:
        >>> import torchmar
        >>> with torchmar.ManagementClient() as client:
        ...     [(model.name, client.describe(model.name)[0].ready) for model in client.models()]
        [('lengths', 1)]
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
        digest: str | None = None,
    ) -> str:
        """Register an archive: a file name in the server's model store, or a URL that it allows.

        The workers and batching in the archive's own ``model-config.yaml`` override these arguments.

        Args:
            url: file name or URL of the archive.
            model_name: name, in place of the archive's.
            handler: handler, in place of the archive's.
            runtime: runtime, in place of the archive's: ``python`` or ``python3``.
            initial_workers: number of workers at first; default: the server's ``default_workers_per_model``, which is
                0.
            batch_size: largest number of requests in a batch; default: 1.
            max_batch_delay: milliseconds; default: 100.
            response_timeout: seconds; default: the server's ``default_response_timeout``, 120.
            startup_timeout: seconds; default: the server's ``default_startup_timeout``, 120.
            s3_sse_kms: whether an archive in S3 is encrypted with a key of AWS KMS.
            synchronous: whether to wait until the workers answer.
            timeout: seconds to wait for the response.
            ignored_checks: codes of checks, or prefixes of codes, that the built-in server ignores; ``MAR`` means all.
            digest: SHA-256 that the archive's file must have, as ``sha256:`` and 64 hexadecimal digits.

        Returns:
            The server's message.

        Raises:
            ServerError: with ``synchronous``: a worker did not load; the model is then not registered.
            TorchmarError: ``model_name`` contains a slash, which TorchServe would accept, although no path would lead
                to the model; or there is a digest, but this server does not compare it.
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
            "digest": digest,
        }
        if digest:
            self._check_compares_digests()
        return self._status("POST", "/models", query, timeout)

    def describe(self, name: str, version: str | None = None, *, customized: bool = False) -> list[ModelVersion]:
        """Describe versions of a model.

        Args:
            name: name of the model.
            version: a version, or ``all``; default: the default version.
            customized: whether to add the handler's own description, which a worker returns. TorchServe does not
                add it for ``all``.

        Returns:
            A list with one element for each version.
        """
        query = {"customized": "true"} if customized else None
        return self._connection.read(_versions, "GET", _path(name, version), query=query)

    def models(self) -> Iterator[RegisteredModel]:
        """Yield all registered models, sorted by name."""
        token: str | None = None
        while True:
            query = {"limit": _PAGE, "next_page_token": token}
            models, token = self._connection.read(_page, "GET", "/models", query=query)
            yield from models
            if token is None:
                return

    def names(self) -> Iterator[str]:
        """Yield the names of all registered models, sorted."""
        return (model.name for model in self.models())

    def ready(self, name: str) -> bool:
        """Return whether a model is ready, over KServe's v1 protocol; TorchServe reports whether it has workers.

        Args:
            name: name of the model.

        Returns:
            True if its default version can answer requests.
        """
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
        """Set the number of workers of a version.

        Args:
            name: name of the model.
            version: version of the model; default: the default version.
            min_worker: the number of workers.
            max_worker: largest number of workers; default: ``min_worker``.
            synchronous: whether to wait until the workers answer.
            timeout: seconds to wait for the response.

        Returns:
            The server's message.
        """
        query = {
            "min_worker": min_worker,
            "max_worker": max(min_worker, max_worker or 0),
            "synchronous": str(synchronous).lower(),
        }
        return self._status("PUT", _path(name, version), query, timeout)

    def set_default(self, name: str, version: str) -> str:
        """Make ``version`` the default, which gets requests without a version.

        Args:
            name: name of the model.
            version: registered version; torchmar's server answers with ConflictError if its workers are not ready.

        Returns:
            The server's message.
        """
        return self._status("PUT", f"{_path(name, version)}/set-default")

    def labels(self, name: str) -> dict[str, str]:
        """Return the version of each label of a model; only torchmar's server supports labels.

        Args:
            name: name of the model.

        Returns:
            Versions by label; empty if there are no labels.
        """
        return self._connection.read(lambda document: dict(document["labels"]), "GET", f"{_path(name)}/labels")

    def set_label(self, name: str, label: str, version: str) -> str:
        """Set a label to a version; TensorFlow Serving's clients can use it in place of the version.

        Args:
            name: name of the model.
            label: new label, or one of another version, which it is removed from.
            version: registered version.

        Returns:
            The server's message.
        """
        return self._status("PUT", f"{_path(name)}/labels/{quote(label, safe='')}", {"version": version})

    def remove_label(self, name: str, label: str) -> str:
        """Remove a label of a model.

        Args:
            name: name of the model.
            label: label of the model.

        Returns:
            The server's message.
        """
        return self._status("DELETE", f"{_path(name)}/labels/{quote(label, safe='')}")

    def routes(self) -> dict[str, tuple[str, str | None]]:
        """Return model and version (None: the default one) of each route; only torchmar's server supports routes."""
        return self._connection.read(_routes, "GET", "/routes")

    def set_route(self, path: str, model: str, version: str | None = None) -> str:
        """Set the model of a path such as ``/inference``; without ``version``, requests get the default version."""
        return self._status("PUT", f"/routes{quote(path)}", {"model": model, "version": version})

    def remove_route(self, path: str) -> str:
        """Remove a route."""
        return self._status("DELETE", f"/routes{quote(path)}")

    def downloads(self) -> list[Download]:
        """Return the running downloads of archives on the built-in server."""
        return self._connection.read(_downloads, "GET", "/downloads")

    def unregister(self, name: str, version: str | None = None) -> str:
        """Remove a version, or the only one.

        Args:
            name: name of the model.
            version: version of the model; None: the default version, which can only be removed as the last one.

        Returns:
            The server's message.
        """
        return self._status("DELETE", _path(name, version))

    def renew_token(self, api: Api) -> None:
        """Let the server write a new token into its key file; the previous one becomes invalid.

        Clients with a key file do this themselves before a token expires.

        Args:
            api: ``inference`` or ``management``.

        Raises:
            TorchmarError: the client has no key file, which contains the key for this call.
        """
        self._connection.tokens.renew(api)

    def console_code(self) -> str:
        """Return a code that signs a browser in to the console, ``/console?code=CODE``, once and within ten minutes.

        Only torchmar's server has a console. The code is empty if the server needs no tokens.

        Raises:
            NotFoundError: the server has no console.
        """
        try:
            return self._connection.read(lambda document: str(document["code"]), "POST", "/console/api/v1/code")
        except ConflictError:
            return ""

    def load(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Return the load of each version in the last ten minutes, by model and version.

        Only torchmar's server reports it: ``request_count``, ``failed_count``, ``requests`` (per second), ``p50_ms``,
        ``p99_ms`` and others. Versions without requests are left out.
        """
        return self._connection.read(_loads, "GET", "/console/api/v1/load")

    def events(self) -> list[dict[str, Any]]:
        """Return the latest events of torchmar's server: models registered and scaled, workers started and died."""
        return self._connection.read(lambda document: list(document["events"]), "GET", "/console/api/v1/events")

    def api_description(self, name: str | None = None, version: str | None = None) -> dict[str, Any]:
        """Return the OpenAPI document of the management and inference API, or of one model's management.

        Args:
            name: name of the model; None: the document of both APIs.
            version: version of the model; None: the default version.

        Returns:
            The document, as parsed JSON.
        """
        path = _path(name, version) if name else "/"
        return self._connection.read(dict, "OPTIONS", path)

    def _check_compares_digests(self) -> None:
        """Raise TorchmarError if the server ignores the digest of a registration."""
        # If all APIs share an address, the built-in server describes the inference API there, and TorchServe both APIs.
        call = self.api_description().get("paths", {}).get("/models", {}).get("post")
        if call and not any(parameter.get("name") == "digest" for parameter in call.get("parameters", [])):
            raise TorchmarError(
                "this server does not compare the digests of archives",
                hint="compare it before the registration: sha256sum FILE; the built-in server compares it itself",
            )

    def _status(self, method: str, path: str, query: Mapping[str, Any] | None = None, timeout: float = 0) -> str:
        seconds = timeout or self._timeout
        return self._connection.read(
            lambda document: str(document["status"]), method, path, query=query, timeout=seconds
        )


def check_name(name: str | None) -> None:
    """Raise TorchmarError for a name that cannot be a part of a path."""
    if name and "/" in name:
        raise TorchmarError(
            f"{name!r} cannot be the name of a model: no path of TorchServe leads to a name with a slash"
        )


def _versions(document: Any) -> list[ModelVersion]:
    return [ModelVersion.of(version) for version in document]


def _loads(document: Any) -> dict[tuple[str, str], dict[str, Any]]:
    return {(load["model"], load["version"]): load for load in document["versions"]}


def _routes(document: Any) -> dict[str, tuple[str, str | None]]:
    return {path: (route["model"], route.get("version")) for path, route in document["routes"].items()}


def _downloads(document: Any) -> list[Download]:
    return [Download(download["url"], download["received"], download.get("size")) for download in document["downloads"]]


def _page(document: Any) -> tuple[list[RegisteredModel], str | None]:
    models = [RegisteredModel(model["modelName"], model["modelUrl"]) for model in document["models"]]
    return models, document.get("nextPageToken")


def _path(name: str, version: str | None = None) -> str:
    return f"/models/{quote(name, safe='')}" + (f"/{quote(version, safe='')}" if version else "")
