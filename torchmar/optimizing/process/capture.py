"""Record the inputs that an archive's handler passes to its model for each request."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchmar.optimizing.process.captured import Captured, save
from torchmar.worker.process import loading
from torchmar.worker.process.batch_runner import BatchRunner, Parts
from torchmar.worker.process.messages import ModelSpec

_HANDLERS = "torchmar_handlers.base"


def capture(job: Mapping[str, Any]) -> dict[str, Any]:
    """Load an archive as a worker does, send it requests, and save the calls of its model.

    Args:
        job: ``model``, the arguments of `ModelSpec`; ``requests``, a list of mappings with ``name``, ``body`` (a file)
            and ``headers``; ``target``, the file of the calls.

    Returns:
        ``inputs``: name and digest of each instance that the model got; ``rejected``: name and reason of each request
        without an answer; ``explains``: whether the handler explains; ``threads``: the number that it has set.

    Raises:
        ValueError: the handler has no model that can be replaced, or the model's outputs cannot be compared; the text
            is the reason.
    """
    import torch

    from torchmar.optimizing.process import source

    spec = ModelSpec(**job["model"])
    loading.activate_archive(spec.model_dir)
    service = loading.load(spec)
    handler = getattr(service._entry_point, "__self__", None)
    model = replaceable_model(handler)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    incomparable: set[str] = set()

    call = type(model).__call__

    def recording(module: Any, *args: Any, **kwargs: Any) -> Any:
        if module is not model:
            return call(module, *args, **kwargs)
        calls.append((_copied(args), _copied(kwargs)))
        output = call(module, *args, **kwargs)
        incomparable.update(filter(None, [source.incomparable(output)]))
        return output

    # In place of a hook, which TorchScript does not have.
    type(model).__call__ = recording
    runner = BatchRunner(service, Parts(lambda head, bodies: None), isolate=False)
    inputs: list[Captured] = []
    rejected: list[tuple[str, str]] = []
    for number, request in enumerate(job["requests"]):
        calls.clear()
        body = memoryview(Path(request["body"]).read_bytes())
        content_type = request["headers"]["content-type"]
        (result,), _ = runner.run([(str(number), request["headers"], [("body", content_type, len(body))])], [body])
        if result[0] >= 400:
            rejected.append((request["name"], f"status {result[0]}: {bytes(result[3])[:200].decode(errors='replace')}"))
            continue
        for place, (args, kwargs) in enumerate(calls, 1):
            name = request["name"] if place == 1 else f"{request['name']}#{place}"
            inputs += Captured(name, args, kwargs).instances()
    type(model).__call__ = call
    if incomparable:
        raise ValueError(
            f"{type(model).__name__} returns a {min(incomparable)}, which answers cannot be compared in; "
            "let it return tensors and numbers, in tuples, lists or mappings"
        )
    save(inputs, Path(job["target"]))
    return {
        "inputs": [(captured_input.name, captured_input.digest) for captured_input in inputs],
        "rejected": rejected,
        "threads": torch.get_num_threads(),
        "explains": _explains(handler),
    }


def replaceable_model(handler: Any) -> Any:
    """Return the module that a handler of torchmar runs.

    Raises:
        ValueError: there is no such module; the text is the reason.
    """
    import torch

    if handler is None:
        raise ValueError("the handler is a function, and only a class has a model that can be replaced")
    name = type(handler).__name__
    if not any(kind.__module__ == _HANDLERS for kind in type(handler).__mro__):
        raise ValueError(f"{name} is not built on torchmar_handlers.base.BaseHandler, which loads optimised weights")
    model = getattr(handler, "model", None)
    if not isinstance(model, torch.nn.Module):
        raise ValueError(f"{name} has no single module as self.model: there is nothing that could be replaced")
    return model


def _explains(handler: Any) -> bool:
    """Return whether a handler has explanations; the base handler itself has none."""
    return bool(type(handler).explain_handle.__module__ != _HANDLERS)


def _copied(value: Any) -> Any:
    """Return a value with copied tensors, because the handler may change the originals after the call."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone(memory_format=torch.contiguous_format)
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(map(_copied, value))
    return value
