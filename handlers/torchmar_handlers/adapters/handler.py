"""A handler that answers each request independently, from its body and content type as the client sent them."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ts.utils.util import PredictionException

from torchmar_handlers.base import BaseHandler
from torchmar_handlers.common import envelopes
from torchmar_handlers.common.reply import Reply
from torchmar_handlers.request import FORM, JSON, BadRequest, Request

logger = logging.getLogger(__name__)

_WARM_CALLS = 3  # TorchScript compiles in the first calls of a shape


class Adapter(BaseHandler):
    """A handler for a package of another tool, whose own code or protocol reads the bodies of requests.

    A request is not divided into instances, and requests of a batch share no forward pass, because only the package
    knows the content of a body. There are no explanations.

    Subclasses override ``load_package`` and ``answer``.
    """

    takes_binary_tensors = False

    def initialize(self, context: Any) -> None:
        """Load the model, and answer the archive's samples."""
        super().initialize(context)
        self.warm_up(context)

    def load_model(self, folder: Path, serialized_file: str | None, model_file: str | None, threads: int) -> None:
        """Load the package, whose own files describe its weights."""
        self.dtype = None
        if self.device.type == "cuda":
            # Code that uses the device "cuda" then runs on this worker's GPU.
            torch.cuda.set_device(self.device)
        self.load_package(folder)

    def load_package(self, folder: Path) -> None:
        """Set ``model`` from the package in ``folder``."""
        raise NotImplementedError

    def load_labels(self, folder: Path) -> Any:
        """Return None: a file of this name belongs to the package."""
        return None

    def answer(self, request: Request) -> Reply:
        """Return the reply to one request; ``BadRequest`` rejects it."""
        raise NotImplementedError

    def status_and_message(self, error: Exception) -> tuple[int, str]:
        """Return the status and the message that a client gets for an error of the package."""
        if isinstance(error, MemoryError) or "CUDA" in str(error):
            return 507, "Out of resources"
        return 503, "Prediction failed"

    def warm_up(self, context: Any) -> None:
        """Answer the archive's samples, so that the first clients do not wait for steps that are slow at first."""
        warms_up = self.options.flag("warm_up", True)
        self.options.reject_unknown()
        for request in self.sample_requests() if warms_up else ():
            for _ in range(_WARM_CALLS):
                self._reply(request)

    def handle(self, data: Sequence[Any], context: Any) -> list[Any]:
        """Answer each request of a batch; a request that fails does not change the answers of the others."""
        started = time.perf_counter()
        self.context = context
        if envelopes.has_instances():
            return self._answer_instances(data, context)
        requests = [Request.of(index, row, context) for index, row in enumerate(data)]
        replies = [self._reply(request) for request in requests]
        if max([reply.status for reply in replies], default=200) >= 400:
            replies = self._readable_by_torchserve(requests, replies)
        bodies = [reply.send(context, index) for index, reply in enumerate(replies)]
        self._measure(context, replies, total=time.perf_counter() - started, decoding=0.0)
        return bodies

    def body_of_instances(self, instances: Sequence[Any]) -> Any:
        """Return the JSON of the single request that replaces the instances of an envelope."""
        return {"instances": instances}

    def _answer_instances(self, instances: Sequence[Any], context: Any) -> list[Any]:
        """Return an answer for each instance that one of TorchServe's envelopes has taken from a body.

        Raises:
            PredictionException: the request is rejected, or its answer has another number of values.
        """
        headers = {**envelopes.headers(context), "accept": JSON}
        reply = self._reply(Request(0, {"body": self.body_of_instances(list(instances))}, headers))
        if reply.status >= 400:
            raise PredictionException(reply.message, reply.status)
        values = json.loads(reply.body) if isinstance(reply.body, str | bytes | bytearray) else reply.body
        if isinstance(values, Mapping) and len(values) == 1:
            (values,) = values.values()
        if not isinstance(values, list) or len(values) != len(instances):
            raise PredictionException("the answer has not one value for each of the instances", 500)
        return values

    def _reply(self, request: Request) -> Reply:
        try:
            if request.wants_description:
                return Reply.of(self.describe_handle())
            if request.wants_explanation:
                raise PredictionException(f"{type(self).__name__} has no explanations", 501)
            return self.answer(request)
        except PredictionException as error:
            status, message = error.error_code, error.message
        except Exception as error:
            logger.exception("%s failed", type(self).__name__)
            status, message = self.status_and_message(error)
        return Reply.error(status, message, **self.error_keys(status, message))


def decoded_by_server(request: Request) -> bool:
    """Return whether a request's body is JSON that the server has decoded: an array or an object."""
    return request.sends(JSON) and isinstance(request.row.get("body"), list | dict)


def body_of(request: Request) -> bytes | bytearray:
    """Return a request's body as bytes.

    A server decodes JSON and texts, unless ``decode_input_request=false`` is in its configuration. Texts are encoded
    with their original encoding; JSON is written again, with the same values.

    Raises:
        BadRequest: there is no body, or it is a form (415).
    """
    if "body" not in request.row and (request.sends(FORM) or request.media_type.startswith("multipart/")):
        raise BadRequest(
            f"a form ({request.media_type}) is not taken: send the body with its own Content-Type, such as {JSON}", 415
        )
    # In addition to a body, other fields are parameters of the URL.
    payload = request.row.get("body", request.payload)
    if isinstance(payload, bytes | bytearray):
        return payload
    if isinstance(payload, str) and not request.sends(JSON):
        return payload.encode()
    if payload is None and not request.sends(JSON):
        raise BadRequest("the request has no body")
    return json.dumps(payload).encode()


def text_of(body: bytes | bytearray) -> str:
    """Return a body as text.

    Raises:
        BadRequest: the body is not UTF-8.
    """
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not UTF-8: byte {error.start} is {body[error.start]:#04x}") from None
