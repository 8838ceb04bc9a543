"""Serve TorchServe model archives on Ray Serve; ``serve run config.yaml`` starts it.

``torchmar export ray`` wrote this file. It needs Ray, torch and TorchServe's Python package (code/requirements.txt),
but not torchmar. A replica loads one archive with TorchServe's own loader, and runs its
handler with batches, rows, context and errors as TorchServe does. Paths of requests:

* ``/predictions/NAME``, ``/predictions/NAME/VERSION``, and the same with ``/explanations``;
* ``/invocations`` and ``/``, as SageMaker sends them: to the only model, or to that of the parameter ``model_name``;
* ``/ping``.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import sys
import tempfile
import uuid
import zipfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ray import serve
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response

log = logging.getLogger("ray.serve")

Part = tuple[str, str, bytes]  # part of a request: its name, content type and content
Call = tuple[str, dict[str, str], list[Part]]  # a request: its id, headers and parts
Answer = tuple[int, dict[str, str], bytes]  # status, headers, body
Models = Mapping[str, Mapping[str, Callable[..., Awaitable[Answer]]]]  # calls by name and version; default last


class ModelError(Exception):
    """A request, or a whole batch, fails with a status and TorchServe's name of the error."""

    def __init__(self, status: int, message: str, kind: str = "InternalServerException") -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind

    def answer(self) -> Answer:
        """Return the response, in TorchServe's layout."""
        document = {"code": self.status, "type": self.kind, "message": self.message}
        body = json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"
        return self.status, {"content-type": "application/json"}, body


@serve.deployment
class Model:
    """One archive in one replica; also the application's ingress if it is the only archive."""

    def __init__(
        self, *, name: str, version: str, archive: str, batch_size: int, batch_delay_s: float, envelope: str
    ) -> None:
        self.models: Models = {name: {version: self.answer}}
        folder = tempfile.mkdtemp(prefix=f"{name}-")
        with zipfile.ZipFile(Path(__file__).parent / archive) as content:
            content.extractall(folder)
        # As in TorchServe's worker: the archive's modules precede installed ones, and its folder is the working folder.
        sys.path.insert(0, folder)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
        os.chdir(folder)
        # One thread loads and runs the model, because handlers need not be thread-safe.
        self.thread = ThreadPoolExecutor(1)
        self.service = self.thread.submit(load, name, folder, batch_size, envelope).result()
        for batch in (self.predict, self.explain):
            batch.set_max_batch_size(batch_size)
            batch.set_batch_wait_timeout_s(batch_delay_s)

    async def __call__(self, request: Request) -> Response:
        return await respond(request, self.models)

    async def answer(self, call: Call) -> Answer:
        """Answer a request, in a batch with other requests of its kind."""
        return await (self.explain(call) if call[1].get("explain") == "True" else self.predict(call))  # type: ignore

    @serve.batch
    async def predict(self, calls: list[Call]) -> list[Answer]:
        return await asyncio.get_running_loop().run_in_executor(self.thread, self.run, calls)

    @serve.batch
    async def explain(self, calls: list[Call]) -> list[Answer]:
        return await asyncio.get_running_loop().run_in_executor(self.thread, self.run, calls)

    def run(self, calls: list[Call]) -> list[Answer]:
        """Run a batch; if it fails as a whole, repeat it request by request, so that only the faulty request fails."""
        try:
            return self.handle(calls)
        except ModelError as error:
            if len(calls) == 1:
                return [error.answer()]
        answers = []
        for call in calls:
            try:
                answers += self.handle([call])
            except ModelError as error:
                answers.append(error.answer())
        return answers

    def handle(self, calls: Sequence[Call]) -> list[Answer]:
        """Call the handler as ``ts.service.Service.predict`` does.

        Raises:
            ModelError: the batch failed.
        """
        from ts.context import RequestProcessor

        context = self.service.context
        processors = [
            RequestProcessor({**{name: {"content-type": kind} for name, kind, _ in parts}, **headers})
            for _, headers, parts in calls
        ]
        context.request_processor = processors
        context.request_ids = context.metrics.request_ids = {index: call[0] for index, call in enumerate(calls)}
        rows = [{name: value(kind, content) for name, kind, content in parts} for _, _, parts in calls]
        try:
            output = self.service._entry_point(rows, context)
        except MemoryError:
            raise ModelError(507, "Out of resources") from None
        except Exception as error:
            log.exception("the handler failed")
            if type(error).__name__ == "PredictionException":
                raise ModelError(error.error_code, str(error.message)) from None  # type: ignore[attr-defined]
            if "CUDA" in str(error):
                raise ModelError(507, "Out of resources") from None
            raise ModelError(503, "Prediction failed") from None
        if not isinstance(output, list):
            raise ModelError(503, "Invalid model predict output")
        if len(output) != len(calls):
            raise ModelError(503, "number of batch response mismatched")
        answers = []
        for result, processor in zip(output, processors, strict=True):
            status, headers = processor.get_response_status_code(), processor.get_response_headers()
            try:
                answers.append((status or 200, {name: str(text) for name, text in headers.items()}, encode(result)))
            except TypeError:
                log.exception("the handler's output cannot be sent")
                answers.append(ModelError(503, "Unsupported model output data type.").answer())
        return answers


@serve.deployment
class Ingress:
    """Sends each request to the deployment of its model."""

    def __init__(self, models: dict[str, dict[str, Any]]) -> None:
        self.models: Models = {
            name: {version: handle.answer.remote for version, handle in versions.items()}
            for name, versions in models.items()
        }

    async def __call__(self, request: Request) -> Response:
        return await respond(request, self.models)


def app(args: dict[str, Any]) -> Any:
    """Return the application of config.yaml; ``args`` is its section ``args``."""
    models: dict[str, dict[str, Any]] = {}
    for model in args["models"]:
        bound = Model.options(name=f"{model['name']}-{model['version']}").bind(**model)  # type: ignore[attr-defined]
        models.setdefault(model["name"], {})[model["version"]] = bound
    if len(args["models"]) == 1:
        return bound
    return Ingress.bind(models)  # type: ignore[attr-defined]


def load(name: str, folder: str, batch_size: int, envelope: str) -> Any:
    """Return TorchServe's service of an extracted archive."""
    import torch
    import ts
    from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
    from ts.model_loader import ModelLoaderFactory

    metrics = MetricsCacheYamlImpl(str(Path(ts.__file__).parent / "configs" / "metrics.yaml"))
    metrics.initialize_cache()
    metrics.model_name = name
    manifest = json.loads((Path(folder) / "MAR-INF" / "MANIFEST.json").read_text(encoding="utf-8"))
    gpu = 0 if torch.cuda.is_available() else None  # Ray shows a replica only its own GPUs
    loader = ModelLoaderFactory.get_model_loader()
    handler = manifest["model"]["handler"]
    return loader.load(name, folder, handler, gpu, batch_size, envelope or None, True, metrics)


async def respond(request: Request, models: Models) -> Response:
    """Return the response to a request for a path of TorchServe or SageMaker."""
    request_id = request.headers.get("x-request-id") or str(uuid.uuid4())
    try:
        status, headers, body = await route(request, request_id, models)
    except ModelError as error:
        status, headers, body = error.answer()
    return Response(body, status, headers)  # Ray's proxy adds x-request-id


async def route(request: Request, request_id: str, models: Models) -> Answer:
    """Return the answer of the model in a request's path.

    Raises:
        ModelError: the model does not exist, or the form cannot be read.
    """
    segments = request.url.path.strip("/").split("/")
    headers = dict(request.headers)
    if segments == ["ping"]:
        return 200, {"content-type": "application/json"}, json.dumps({"status": "Healthy"}, indent=2).encode() + b"\n"
    if segments[0] in ("predictions", "explanations") and len(segments) > 1:
        name, version = segments[1], segments[2] if len(segments) > 2 else None
        headers |= {"url_path": "/".join(segments[3:]), "explain": str(segments[0] == "explanations")}
        parts = await read_parts(request)
    elif segments in ([""], ["invocations"]):
        if request.method == "GET" and segments == [""]:
            return 200, {"content-type": "application/json"}, json.dumps({"status": "alive"}, indent=2).encode() + b"\n"
        parts = [(key, "", text.encode()) for key, text in request.query_params.multi_items()]
        parts += await read_parts(request)
        names = [content.decode("utf-8", "replace") for key, _, content in parts if key == "model_name" and content]
        if not names and len(models) > 1:
            raise ModelError(400, "Parameter model_name is required.", "BadRequestException")
        name, version = names[0] if names else next(iter(models)), None
    else:
        message = "Requested resource is not found, please refer to API document."
        raise ModelError(404, message, "ResourceNotFoundException")
    if name not in models:
        raise ModelError(404, f"Model not found: {name}", "ModelNotFoundException")
    versions = models[name]
    if version is not None and version not in versions:
        message = f"Model version: {version} does not exist for model: {name}"
        raise ModelError(404, message, "ModelVersionNotFoundException")
    return await versions[list(versions)[-1] if version is None else version]((request_id, headers, parts))


async def read_parts(request: Request) -> list[Part]:
    """Return the fields of a form, or the whole body as the part ``body``.

    Raises:
        ModelError: 400, the form is malformed, or two of its fields have the same name.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind.lower() not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        return [("body", kind, await request.body())]
    parts: list[Part] = []
    try:
        for name, field in (await request.form()).multi_items():
            if isinstance(field, UploadFile):
                of_file = (field.content_type or "application/octet-stream").partition(";")[0].strip()
                parts.append((name, of_file, await field.read()))
            else:
                parts.append((name, "", field.encode()))
    except Exception as error:
        raise ModelError(400, f"The form cannot be read: {error}.", "BadRequestException") from None
    names = [part[0] for part in parts]
    for name in names:
        if names.count(name) > 1:
            message = f"The form has {names.count(name)} parts called {name!r}, of which a handler would see one."
            raise ModelError(400, message, "BadRequestException")
    return parts


def value(kind: str, content: bytes) -> Any:
    """Return a part in the form for the handler: JSON is parsed, text decoded, and all else stays bytes."""
    try:
        if kind == "application/json":
            return json.loads(content)
        if kind.startswith("text"):
            return content.decode()
    except (ValueError, RecursionError):
        log.warning("a part with the type %s cannot be decoded; the handler gets its bytes", kind)
    return bytearray(content)


def encode(result: Any) -> bytes:
    """Return a handler's result as bytes, in TorchServe's layout.

    Raises:
        TypeError: its type is not supported.
    """
    import torch

    if isinstance(result, bytes | bytearray):
        return bytes(result)
    if isinstance(result, str):
        return result.encode()
    if isinstance(result, torch.Tensor):
        buffer = io.BytesIO()
        torch.save(result, buffer)
        return buffer.getvalue()
    return json.dumps(result, indent=2).encode()
