"""The tensor signature of a loaded handler, for the Open Inference Protocol."""

from __future__ import annotations

import json
import logging
from typing import Any

log = logging.getLogger(__name__)


def description(service: Any, envelope: str = "") -> dict[str, Any]:
    """Return ``inputs`` and ``outputs`` as a handler's ``signature()`` does, and how it takes tensors.

    ``binary`` says whether as bytes, too; ``max_instances`` how many instances a request may have (0: unknown).
    A handler without that method, or whose method fails, has empty lists.

    Args:
        service: the loaded service.
        envelope: which its requests come in; handlers see no tensors then.
    """
    handler = getattr(service._entry_point, "__self__", None)
    method = getattr(handler, "signature", None)
    document = _nothing()
    if not callable(method) or envelope:
        return document
    try:
        signature = method()
        for key in ("inputs", "outputs"):
            document[key] = [_tensor(one) for one in signature[key]]
        json.dumps(document)
    except Exception:
        log.warning("the handler's signature() is of no use", exc_info=True)
        return _nothing()
    limit = getattr(handler, "max_instances", 0)
    document["max_instances"] = limit if isinstance(limit, int) else 0
    document["binary"] = getattr(handler, "takes_binary_tensors", False) is True and _is_ours(service._entry_point)
    return document


def _nothing() -> dict[str, Any]:
    return {"inputs": [], "outputs": [], "binary": False, "max_instances": 0}


def _is_ours(entry_point: Any) -> bool:
    """Tell whether requests reach the handler as torchmar's base handler takes them: not by a method of its own."""
    return str(getattr(entry_point, "__module__", "")).partition(".")[0] == "torchmar_handlers"


def _tensor(given: Any) -> dict[str, Any]:
    name, datatype, shape = str(given["name"]), str(given["datatype"]), [int(size) for size in given["shape"]]
    return {"name": name, "datatype": datatype, "shape": shape}
