"""The explanations of an archive's handler, with the weights of a variant in place of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torchmar.optimizing.process.capture import replaceable_model
from torchmar.optimizing.process.jobs import Weights
from torchmar.worker.process import loading
from torchmar.worker.process.batch_runner import BatchRunner, Parts
from torchmar.worker.process.messages import ModelSpec


def explain(job: Mapping[str, Any]) -> dict[str, Any]:
    """Load an archive as a worker does, give its handler other weights, and save its explanations of requests.

    Args:
        job: ``model``, the arguments of `ModelSpec`; ``weights``, those of `Weights`, or null for the archive's own;
            ``requests`` as for `capture.capture`; ``target``, the file of the attributions; ``seconds``, after which
            no further request is explained.

    Returns:
        ``explained``: the names of the requests, in their order. The file has an array for each, by its index.
    """
    import numpy as np
    import torch

    from torchmar.optimizing.process import source

    spec = ModelSpec(**job["model"])
    loading.activate_archive(spec.model_dir)
    service = loading.load(spec)
    handler = service._entry_point.__self__
    if job["weights"] is not None:
        from torchmar_handlers import weights as handlers_weights

        replaceable_model(handler)
        handler.model = source.model_of(Weights(**job["weights"]))
        stored_dtype = handlers_weights.dtype(handler.model)
        handler.dtype = stored_dtype if stored_dtype in (torch.float16, torch.bfloat16) else None
        handler.served_weights = None  # otherwise it would explain with the archive's own weights
    runner = BatchRunner(service, Parts(lambda head, bodies: None), isolate=False)
    arrays: dict[str, Any] = {}
    names: list[str] = []
    deadline = time.monotonic() + job["seconds"]
    for number, request in enumerate(job["requests"]):
        if number and time.monotonic() > deadline:
            break
        body = memoryview(Path(request["body"]).read_bytes())
        headers = {**request["headers"], "explain": "True"}
        batch = [(str(number), headers, [("body", headers["content-type"], len(body))])]
        (result,), _ = runner.run(batch, [body])
        if result[0] >= 400:
            raise ValueError(f"{request['name']} is not explained: status {result[0]}")
        arrays[str(number)] = np.array(list(_attributions(json.loads(bytes(result[3])))))
        names.append(request["name"])
    np.savez(job["target"], **arrays)
    return {"explained": names}


def _attributions(document: Any, depth: int = 0) -> Iterator[float]:
    """Yield the numbers with fractions from lists and mappings of an explanation; the other values only describe it."""
    if isinstance(document, float):
        if depth > 1:
            yield document
    elif isinstance(document, Mapping):
        for value in document.values():
            yield from _attributions(value, depth + 1)
    elif isinstance(document, list):
        for value in document:
            yield from _attributions(value, depth + 1)
