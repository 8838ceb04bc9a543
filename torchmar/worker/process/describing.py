"""The tensor signature of a loaded handler, for the Open Inference Protocol."""

from __future__ import annotations

import json
import logging
from typing import Any

from .loading import is_ours
from .messages import ModelDescription, TensorInfo

log = logging.getLogger(__name__)


def description(service: Any) -> ModelDescription:
    """Return the tensors of a handler's ``signature()``; empty if it has no such method, or if the method fails.

    A handler in an envelope has no signature, because it gets no tensors.

    Args:
        service: the loaded service.
    """
    handler = getattr(service._entry_point, "__self__", None)
    method = getattr(handler, "signature", None)
    empty: ModelDescription = {"inputs": [], "outputs": [], "binary": False, "max_instances": 0}
    if not callable(method):
        return empty
    try:
        signature = method()
        inputs, outputs = ([_tensor(tensor) for tensor in signature[key]] for key in ("inputs", "outputs"))
        json.dumps([inputs, outputs])
    except Exception:
        log.warning("the handler's signature() is invalid", exc_info=True)
        return empty
    limit = getattr(handler, "max_instances", 0)
    return {
        "inputs": inputs,
        "outputs": outputs,
        "binary": getattr(handler, "takes_binary_tensors", False) is True and is_ours(service._entry_point),
        "max_instances": limit if isinstance(limit, int) else 0,
    }


def _tensor(entry: Any) -> TensorInfo:
    name, datatype, shape = str(entry["name"]), str(entry["datatype"]), [int(size) for size in entry["shape"]]
    return {"name": name, "datatype": datatype, "shape": shape}
