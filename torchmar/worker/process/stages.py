"""Two stages of a handler in different processes: the steps before the model, and the model with the steps after it.

Both stages are called as a handler is, with rows and a context. The server adds an address of shared memory to the row
of each request (see `shared_memory`): the first stage writes the prepared request there, the second stage reads it.
The first stage returns an empty response, and a header marks the request as prepared.
"""

from __future__ import annotations

import copy
import inspect
import logging
import time
from collections.abc import Callable, Hashable, MutableMapping, Sequence
from types import ModuleType
from typing import Any, Protocol

from . import shared_memory

log = logging.getLogger("ts.service")

#: The part of a row with the address, and the header that marks a prepared request. No header of a client has a space
#: in its name, and the server removes a form's field of this name.
NAME = "torchmar stage"
PREPROCESS, INFERENCE = "preprocess", "inference"


class StagesError(Exception):
    """A handler cannot be split into stages; the message has the reason."""


class Halves(Protocol):
    """The two stages of a handler, as `torchmar_handlers.base.BaseHandler` has them."""

    def prepare_handle(self, data: Sequence[Any], context: Any) -> tuple[dict[int, Any], dict[int, Any]]: ...
    def finish_handle(self, prepared: Sequence[Any], context: Any) -> Any: ...


def split_handler(service: Any, envelope: str = "") -> Halves:
    """Return the two stages of a loaded service.

    Raises:
        StagesError: it cannot be split.
    """
    if envelope:
        raise StagesError(f"its requests come in the envelope {envelope}, which belongs to both halves")
    handler = getattr(service._entry_point, "__self__", None)
    if handler is None or isinstance(handler, ModuleType):
        raise StagesError("its handler is a function; stages take a class with preprocess, inference and postprocess")
    kind = type(handler)
    definer = _definer(kind, "handle")
    if callable(getattr(handler, "prepare_handle", None)) and callable(getattr(handler, "finish_handle", None)):
        if issubclass(_definer(kind, "prepare_handle"), definer):
            own: Halves = handler
            return own
        raise StagesError(f"{definer.__name__} has a handle of its own, which prepare_handle and finish_handle lack")
    for name in _STEPS:
        try:
            inspect.signature(getattr(handler, name)).bind(None)
        except AttributeError:
            raise StagesError(f"{kind.__name__} has no {name}; stages need {', '.join(_STEPS)}") from None
        except TypeError as error:
            raise StagesError(f"{kind.__name__}.{name} does not take the data alone: {error}") from None
    stock = definer.__module__ == "ts.torch_handler.base_handler"
    if not stock:
        code = getattr(inspect.unwrap(vars(definer)["handle"]), "__code__", None)
        if left := [name for name in _STEPS if name not in getattr(code, "co_names", ())]:
            raise StagesError(f"{definer.__name__} has a handle of its own, which does not go through {left[0]}")
    return _Steps(handler, measured=stock)


def apply_stage(service: Any, stage: str, halves: Halves) -> None:
    """Have a loaded service run one stage from now on; the second also runs explanations and descriptions, whole."""
    handle = service._entry_point
    shared_memory.exclude(handle.__self__)
    service._entry_point = _Preprocess(halves) if stage == PREPROCESS else _Inference(halves, handle)


class _Preprocess:
    def __init__(self, halves: Halves) -> None:
        self._halves = halves

    def __call__(self, rows: list[Any], context: Any) -> list[Any]:
        processors = context.request_processor
        addresses = [_pop_address(row, processor) for row, processor in zip(rows, processors, strict=True)]
        waiting, responses = self._halves.prepare_handle(rows, context)
        for index, prepared in waiting.items():
            address = addresses[index]
            assert address
            # With the status and headers that the handler has set so far.
            shared_memory.write(address, (vars(processors[index]), prepared))
            context.set_response_header(index, NAME, PREPROCESS)
            responses[index] = b""
        return [responses[index] for index in range(len(rows))]


class _Inference:
    def __init__(self, halves: Halves, handle: Callable[[Any, Any], Any]) -> None:
        self._halves, self._handle = halves, handle

    def __call__(self, rows: list[Any], context: Any) -> Any:
        processors = context.request_processor
        addresses = [_pop_address(row, processor) for row, processor in zip(rows, processors, strict=True)]
        if None in addresses:  # a batch has requests of one kind
            return self._handle(rows, context)
        prepared = []
        for address, processor in zip(addresses, processors, strict=True):
            response_state, value = shared_memory.read(str(address))
            vars(processor).update(response_state)
            prepared.append(value)
        return self._halves.finish_handle(prepared, context)


def _pop_address(row: dict[str, Any], processor: Any) -> str | None:
    """Remove the address from a request, so that no handler sees it, and return it."""
    address = row.pop(NAME, None)
    processor.get_request_properties().pop(NAME, None)
    return None if address is None else bytes(address).decode()


_STEPS = ("preprocess", "inference", "postprocess")


def _definer(kind: type, name: str) -> type:
    return next((base for base in kind.__mro__ if name in vars(base)), kind)


class _Steps:
    """The stages of a handler that has the three steps of TorchServe's base handler.

    ``preprocess`` gets each request alone. Its results are joined where that equals a batch: tensors of one type and
    shape with one row each, and tuples and mappings of such. Others are run one by one.
    """

    def __init__(self, handler: Any, *, measured: bool) -> None:
        self._handler, self._measured, self._warned = handler, measured, False

    def prepare_handle(self, data: Sequence[Any], context: Any) -> tuple[dict[int, Any], dict[int, Any]]:
        handler, prepared = self._handler, {}
        handler.context = context
        before = dict(vars(handler))
        for index, row in enumerate(data):
            started = time.perf_counter()
            value = handler.preprocess([row])
            prepared[index] = (value, time.perf_counter() - started)
        changed = [name for name, value in vars(handler).items() if before.get(name, self) is not value]
        if changed and not self._warned:
            self._warned = True
            names = ", ".join(f"self.{name}" for name in changed)
            log.warning("preprocess sets %s, and with stages inference and postprocess do not see it", names)
        return prepared, {}

    def finish_handle(self, prepared: Sequence[Any], context: Any) -> Any:
        started = time.perf_counter()
        self._handler.context = context
        values = [value for value, _ in prepared]
        groups: dict[Hashable, list[int]] = {}
        for index, value in enumerate(values):
            groups.setdefault(_batch_key(value) or index, []).append(index)
        responses: dict[int, Any] = {}
        for members in groups.values():
            document = self._run_model(_join([values[index] for index in members]))
            if not isinstance(document, list) or len(document) != len(members):
                # The result for one request, right or wrong; too few for several, so that each is repeated alone.
                return document if len(values) == 1 or not isinstance(document, list) else []
            responses.update(zip(members, document, strict=True))
        if self._measured:
            seconds = time.perf_counter() - started + sum(seconds for _, seconds in prepared)
            context.metrics.add_time("HandlerTime", round(seconds * 1000, 2), None, "ms")
        return [responses[index] for index in range(len(values))]

    def _run_model(self, data: Any) -> Any:
        handler = self._handler
        device = getattr(handler, "device", None)
        # The processes of the first stage have no GPU; tensors are moved to the handler's device here.
        if getattr(device, "type", "cpu") != "cpu":
            data = _map_tensors(data, lambda value: value.to(device) if type(value).__name__ == "Tensor" else value)
        return handler.postprocess(handler.inference(data))


def _batch_key(value: Any) -> Hashable:
    """Return a key that is equal for values that can be joined to one batch; None: the value cannot be joined."""
    if isinstance(value, MutableMapping) and value:
        keys = tuple((name, _batch_key(item)) for name, item in value.items())
        return None if any(key is None for _, key in keys) else (type(value), keys)
    # A tuple of one may be a tensor for each request as well as the one input of all.
    if isinstance(value, tuple) and len(value) > 1:
        columns = tuple(map(_batch_key, value))
        return None if None in columns else (type(value), columns)
    if type(value).__name__ in ("Tensor", "ndarray") and len(value.shape) and value.shape[0] == 1:
        return type(value), value.dtype, tuple(value.shape)
    return None


def _join(values: list[Any]) -> Any:
    """Return values with equal batch keys as one batch."""
    first = values[0]
    if len(values) == 1:
        return first
    if isinstance(first, MutableMapping):
        batch: Any = copy.copy(first)
        for name in first:
            batch[name] = _join([value[name] for value in values])
        return batch
    if isinstance(first, tuple):
        columns = [_join(list(column)) for column in zip(*values, strict=True)]
        return type(first)(*columns) if hasattr(first, "_fields") else tuple(columns)
    if type(first).__name__ == "ndarray":
        import numpy as np

        return np.concatenate(values)
    import torch

    return torch.cat(values)


def _map_tensors(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return a value with its tensors changed, through mappings, tuples and lists."""
    if isinstance(value, MutableMapping):
        changed: Any = copy.copy(value)
        for name in value:
            changed[name] = _map_tensors(value[name], change)
        return changed
    if isinstance(value, tuple | list):
        columns = [_map_tensors(item, change) for item in value]
        return type(value)(*columns) if hasattr(value, "_fields") else type(value)(columns)
    return change(value)
