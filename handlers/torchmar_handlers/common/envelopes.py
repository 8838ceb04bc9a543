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
_MAX_DEPTH = 4  # calls between the envelope and `has_instances`: overridden methods call those of the base


def has_instances() -> bool:
    """Return whether the handler is called by an envelope that gives it instances; TorchServe does not say so."""
    frame = sys._getframe(1)
    for _ in range(_MAX_DEPTH):
        if frame.f_back is None:
            return False
        frame = frame.f_back
        if frame.f_globals.get("__name__") == f"{_PACKAGE}base":
            return type(frame.f_locals.get("self")).__module__.removeprefix(_PACKAGE) in _INSTANCES
    return False


def request(instances: Sequence[Any], context: Any) -> Request:
    """Return the instances of an envelope as one request, with the headers of the first of the batch."""
    first = Request.of(0, {"body": {"instances": list(instances)}}, context)
    return Request(0, first.row, {**first.headers, "content-type": JSON})


def answers(reply: Reply) -> list[Any]:
    """Return the answers to the instances of `request`, which the envelope distributes to the requests.

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
