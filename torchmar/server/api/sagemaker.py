"""The paths that SageMaker requires of containers besides ``/ping`` and ``/invocations``, which TorchServe also has.

``GET /execution-parameters`` is for batch transform jobs:
https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-batch-code.html. With several models SageMaker loads,
lists and unloads them itself at ``/models``, and sends its requests to ``/models/NAME/invoke``:
https://docs.aws.amazon.com/sagemaker/latest/dg/mms-container-apis.html. Only SageMaker may be able to reach that
address.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import Any

from torchmar.server.api import parameters, status_messages
from torchmar.server.api_error import ApiError, not_allowed
from torchmar.server.background_tasks import BackgroundTasks
from torchmar.server.config.settings import Settings
from torchmar.server.http import App, Request
from torchmar.server.models import memory
from torchmar.server.models.memory import Reservations
from torchmar.server.models.registration import Registration
from torchmar.server.models.registry import Registry, Version
from torchmar.server.models.startup import StillLoading
from torchmar.server.request_ids import HEADER, request_ids
from torchmar.server.telemetry import logs
from torchmar.server.telemetry.metrics import Metrics

_JSON = "application/json"
_TARGET = "x-amzn-sagemaker-target-model"
_PAGE = 100  # largest number of models on a page
_MIB = 1 << 20
# SageMaker's limits for a batch transform job: MiB of a request, and of all concurrent requests.
_BATCH_PAYLOAD_MIB, _BATCH_TOTAL_MIB = 6, 100


class SageMaker:
    """The app of the inference API with SageMaker's paths.

    Args:
        inference: answers all other requests.
        registry: the models.
        settings: the server's configuration, with the platform.
        metrics: counts the responses.
    """

    def __init__(self, inference: App, registry: Registry, settings: Settings, metrics: Metrics) -> None:
        self._inference, self._registry, self._settings, self._metrics = inference, registry, settings, metrics
        self._multi_model = settings.platform == "sagemaker-multi-model"
        self._loading: dict[str, asyncio.Event] = {}  # an event for each name that is being loaded, set at the end
        self._memory = Reservations()
        self._tasks = BackgroundTasks()
        self._ids = request_ids()

    def __call__(self, request: Request) -> None:
        """Answer a request, now or later."""
        segments = request.path.rstrip("/").split("/")[1:]
        is_models = self._multi_model and segments[:1] == ["models"] and segments[2:] != ["invoke"]
        if not is_models and segments != ["execution-parameters"]:
            self._inference(request)
            return
        try:
            if is_models:
                self._models(request, segments[1:])
            else:
                _allow(request, "GET")
                self._respond(request, self._execution_parameters())
        except StillLoading as loading:
            loading.retry(request, self, partial(self._respond_error, request))
        except ApiError as error:
            self._respond_error(request, error)

    def _execution_parameters(self) -> dict[str, Any]:
        """Return how a batch transform job should send its records, unless the user has configured it.

        Each record is a separate request, because only the handler knows whether one body can contain several inputs.
        """
        payload = max(1, min(self._settings.max_request_size // _MIB, _BATCH_PAYLOAD_MIB))
        versions = [version for model in self._registry.models.values() for version in model.versions.values()]
        at_once = sum(max(1, version.pool.min_workers) * version.serving.pool.batch_size for version in versions)
        return {
            "MaxConcurrentTransforms": max(1, min(at_once, _BATCH_TOTAL_MIB // payload)),
            "BatchStrategy": "SINGLE_RECORD",
            "MaxPayloadInMB": payload,
        }

    def _models(self, request: Request, names: list[str]) -> None:
        if not names:
            _allow(request, "GET", "POST")
            if request.method == "GET":
                self._respond(request, self._page(request))
            else:
                self._start(request, self._load(request))
        elif len(names) == 1:
            _allow(request, "GET", "DELETE")
            if request.method == "GET":
                self._respond(request, _document(self._registry.find(names[0])))
            else:
                self._start(request, self._unload(request, names[0]))
        else:
            message = "Requested resource is not found, please refer to API document."
            raise ApiError(404, "ResourceNotFoundException", message)

    def _page(self, request: Request) -> dict[str, Any]:
        query = parameters.query(request)
        limit = parameters.number(query, "limit", _PAGE, least=1)
        start = parameters.number(query, "next_page_token", 0, least=0)
        limit = min(limit, _PAGE)
        names = sorted(self._registry.models)
        listed = [_document(self._registry.find(name)) for name in names[start : start + limit]]
        following = {"nextPageToken": str(start + limit)} if start + limit < len(names) else {}
        return {**following, "models": listed}

    async def _load(self, request: Request) -> None:
        name, url = _load_request(request.body)
        await self._wait_for_load(name)  # a 409 before the end would mean that the model can be invoked
        if name in self._registry.models:
            raise ApiError(409, "ConflictStatusException", f"Model {name} is loaded already.")
        ended = self._loading[name] = asyncio.Event()
        try:
            archive = await asyncio.to_thread(_archive, url, self._settings.model_store)
            workers = max(1, self._settings.default_workers_per_model)
            size = await asyncio.to_thread(memory.needed_by, archive, workers)
            registration = Registration(str(archive), model_name=name, by_operator=True, fallback_name=name)
            with self._memory.reserve(size):
                version = await self._registry.register(registration)
        finally:
            del self._loading[name]
            ended.set()
        if target := request.header(_TARGET):
            logs.SERVER.info("model %s is %s", name, target, extra={"model": name, "version": version.version})
        self._respond(request, {"status": status_messages.registered(version, synchronous=True)})

    async def _unload(self, request: Request, name: str) -> None:
        await self._wait_for_load(name)  # otherwise the load would complete after the unloading
        await self._registry.unregister(name)
        self._respond(request, {"status": status_messages.unregistered(name)})

    async def _wait_for_load(self, name: str) -> None:
        while name in self._loading:
            await self._loading[name].wait()

    def _start(self, request: Request, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.start(self._run(request, work))

    async def _run(self, request: Request, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except ApiError as error:
            self._respond_error(request, error)
        except Exception as error:
            logs.SERVER.error("%s %s failed", request.method, request.path, exc_info=error)
            message = "The request failed; the server's log has the reason."
            self._respond_error(request, ApiError(500, "InternalServerException", message))

    def _respond(self, request: Request, document: object) -> None:
        self._metrics.answered(200)
        body = json.dumps(document, indent=2, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        request.respond(200, body, _JSON, ((HEADER, next(self._ids)),))

    def _respond_error(self, request: Request, error: ApiError) -> None:
        self._metrics.answered(error.status)
        request.respond_error(error, ((HEADER, next(self._ids)),))


def _document(version: Version) -> dict[str, str]:
    return {"modelName": version.name, "modelUrl": version.shown_url}


def _load_request(body: bytes) -> tuple[str, str]:
    """Return the name and the URL of a model to load.

    Raises:
        ApiError: 400, the body is not such a request.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "BadRequestException", f"The body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise ApiError(400, "BadRequestException", "The body is not a JSON object.")
    for key in ("model_name", "url"):
        if not isinstance(document.get(key), str) or not document[key]:
            raise ApiError(400, "BadRequestException", f"{key} is missing, or is not a text.")
    return document["model_name"], document["url"]


def _archive(url: str, store: Path) -> Path:
    """Return the archive at a path in the model store: the folder itself, or the only ``.mar`` in it. Blocking.

    Raises:
        ApiError: 404, there is no archive, or the path is outside of the store; 400, there are several archives.
    """
    path = Path(url.removeprefix("file://"))
    try:
        if not path.is_absolute() or not path.resolve().is_relative_to(store) or not path.exists():
            raise ApiError(404, "ModelNotFoundException", f"Model not found at: {url}; models are below {store}")
        archives = sorted(path.glob("*.mar")) if path.is_dir() else []
    except (OSError, ValueError) as error:
        raise ApiError(404, "ModelNotFoundException", f"Model not found at: {url}: {error}") from None
    if len(archives) > 1:
        names = ", ".join(archive.name for archive in archives)
        raise ApiError(400, "InvalidModelException", f"{url} has {len(archives)} archives: {names}")
    return archives[0] if archives else path


def _allow(request: Request, *methods: str) -> None:
    if request.method not in methods:
        raise not_allowed(*methods)
