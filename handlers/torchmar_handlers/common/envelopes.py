"""TorchServe's request envelopes around a handler: batches of instances, where the handler expects requests.

The envelopes ``json`` (of Vertex AI's PyTorch containers) and ``kserve`` take the ``instances`` out of bodies and put
the handler's answers into ``predictions``. The handlers here read such bodies themselves, with their ``parameters``,
but a server may be configured so.
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
_MAX_DEPTH = 4  # calls between the envelope and `has_instances`: overridden methods call those of the base


def has_instances() -> bool:
    """Return whether the handler is called by an envelope that gives it instances; TorchServe does not say so."""
    if _BASE not in sys.modules:  # only TorchServe's loader imports it, where an envelope is configured
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
    """Return the headers of the first request of a batch, whose instances are JSON whatever it was sent as."""
    return {**Request.of(0, {}, context).headers, "content-type": JSON}


def requests(instances: Sequence[Any], context: Any, limit: int) -> list[Request]:
    """Return the instances of an envelope as requests, with the headers of the first of the batch.

    Args:
        instances: of all requests of the batch, which only the envelope tells apart.
        context: TorchServe's.
        limit: the instances that a request may have; those of several requests are divided, so that none is rejected
            for the others.
    """
    size = limit if len(context.request_processor) > 1 else max(1, len(instances))
    parts = [list(instances[start : start + size]) for start in range(0, len(instances), size)] or [[]]
    return [Request(0, {"body": {"instances": part}}, headers(context)) for part in parts]


def answers(reply: Reply) -> list[Any]:
    """Return the answers to the instances of one of `requests`, which the envelope distributes to the requests.

    Raises:
        PredictionException: the reply is an error; which request it is about only the envelope knows, so that all of
            the batch fail. The built-in server repeats such a batch request by request.
    """
    if reply.status >= 400:
        raise PredictionException(reply.message, reply.status)
    document = json.loads(reply.body)
    assert isinstance(document, Mapping)
    (values,) = document.values()
    return list(values)
