"""TorchServe's request envelopes around a handler: they pass batches of instances in place of requests.

The envelopes ``json`` (of Vertex AI's PyTorch containers) and ``kserve`` take the ``instances`` from bodies and put
the handler's answers into ``predictions``. The handlers here read such bodies themselves, with their ``parameters``,
but a server may be configured with an envelope.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ts.utils.util import PredictionException

from torchmar_handlers.common.reply import Reply
from torchmar_handlers.request import JSON, Request

_PACKAGE = "ts.torch_handler.request_envelope."
_INSTANCES = ("json", "kserve")
_BASE = f"{_PACKAGE}base"
_MAX_DEPTH = 4  # calls between the envelope and `has_instances`: overridden methods call those of the base class


def has_instances() -> bool:
    """Return whether an envelope calls the handler with instances; TorchServe has no flag for it."""
    if _BASE not in sys.modules:  # only TorchServe's loader imports it, if an envelope is configured
        return False
    frame = sys._getframe(1)
    for _ in range(_MAX_DEPTH):
        if frame.f_back is None:
            return False
        frame = frame.f_back
        if frame.f_globals.get("__name__") == _BASE:
            return type(frame.f_locals.get("self")).__module__.removeprefix(_PACKAGE) in _INSTANCES
    return False


def headers(context: Any) -> dict[str, Any]:
    """Return the headers of the first request of a batch, with JSON as the type of its instances."""
    return {**Request.of(0, {}, context).headers, "content-type": JSON}


def requests(instances: Sequence[Any], context: Any, limit: int) -> list[Request]:
    """Return the instances of an envelope as requests, with the headers of the first of the batch.

    Args:
        instances: instances of all requests of the batch, which only the envelope can distinguish.
        context: TorchServe's context.
        limit: the largest number of instances in a request; the instances are divided into requests of this size, so
            that none is rejected.
    """
    size = limit if len(context.request_processor) > 1 else max(1, len(instances))
    parts = [list(instances[start : start + size]) for start in range(0, len(instances), size)] or [[]]
    return [Request(0, {"body": {"instances": part}}, headers(context)) for part in parts]


def answers(reply: Reply) -> list[Any]:
    """Return the answers to the instances of one of `requests`, which the envelope assigns to the clients' requests.

    Raises:
        PredictionException: the reply is an error; only the envelope knows the request that it concerns, so that all of
            the batch fail. The built-in server repeats such a batch request by request.
    """
    if reply.status >= 400:
        raise PredictionException(reply.message, reply.status)
    document = json.loads(reply.body)
    assert isinstance(document, Mapping)
    (values,) = document.values()
    return list(values)
