"""Half of a handler: what comes before the model in some processes, the model and what follows it in others.

Both halves are asked as a handler is, with rows and a context. In the row of a request the server puts the address
of memory (see `memory`): the first half writes there what it has made of the request, the second half reads it.
Between the two the server sees an empty answer with a header that says so.
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

#: The part of a row with the address, and the header of an answer that is none yet. No header of a client has a
#: space in its name, and of forms the server takes a field of this name out.
NAME = "torchmar stage"
PREPROCESS, INFERENCE = "preprocess", "inference"


class NotStaged(Exception):
    """A handler has no such halves; the message says why."""


class Halves(Protocol):
    """What `torchmar_handlers.base.BaseHandler` says of the two."""

    def prepare_handle(self, data: Sequence[Any], context: Any) -> tuple[dict[int, Any], dict[int, Any]]: ...
    def finish_handle(self, prepared: Sequence[Any], context: Any) -> Any: ...


def split_handler(service: Any, envelope: str = "") -> Halves:
    """Return the halves of a loaded service.

    Raises:
        NotStaged: it has none.
    """
    if envelope:
        raise NotStaged(f"its requests come in the envelope {envelope}, which belongs to both halves")
    handler = getattr(service._entry_point, "__self__", None)
    if handler is None or isinstance(handler, ModuleType):
        raise NotStaged("its handler is a function; stages take a class with preprocess, inference and postprocess")
    kind = type(handler)
    definer = _definer(kind, "handle")
    if callable(getattr(handler, "prepare_handle", None)) and callable(getattr(handler, "finish_handle", None)):
        if issubclass(_definer(kind, "prepare_handle"), definer):
            own: Halves = handler
            return own
        raise NotStaged(f"{definer.__name__} has a handle of its own, which prepare_handle and finish_handle lack")
    for name in _STEPS:
        try:
            inspect.signature(getattr(handler, name)).bind(None)
        except AttributeError:
            raise NotStaged(f"{kind.__name__} has no {name}; stages need {', '.join(_STEPS)}") from None
        except TypeError as error:
            raise NotStaged(f"{kind.__name__}.{name} does not take the data alone: {error}") from None
    stock = definer.__module__ == "ts.torch_handler.base_handler"
    if not stock:
        code = getattr(inspect.unwrap(vars(definer)["handle"]), "__code__", None)
        if left := [name for name in _STEPS if name not in getattr(code, "co_names", ())]:
            raise NotStaged(f"{definer.__name__} has a handle of its own, which does not go through {left[0]}")
    return _Steps(handler, measured=stock)


def apply_stage(service: Any, stage: str, halves: Halves) -> None:
    """Have a loaded service do one stage from now on; explanations and descriptions are the second's, whole."""
    handle = service._entry_point
    shared_memory.keep_here(handle.__self__)
    service._entry_point = _Preprocess(halves) if stage == PREPROCESS else _Inference(halves, handle)


class _Preprocess:
    def __init__(self, halves: Halves) -> None:
        self._halves = halves

    def __call__(self, rows: list[Any], context: Any) -> list[Any]:
        processors = context.request_processor
        addresses = [_address(row, one) for row, one in zip(rows, processors, strict=True)]
        waiting, answers = self._halves.prepare_handle(rows, context)
        for index, prepared in waiting.items():
            address = addresses[index]
            assert address
            # What the handler has set of the answer so far goes along.
            shared_memory.write(address, (vars(processors[index]), prepared))
            context.set_response_header(index, NAME, PREPROCESS)
            answers[index] = b""
        return [answers[index] for index in range(len(rows))]


class _Inference:
    def __init__(self, halves: Halves, handle: Callable[[Any, Any], Any]) -> None:
        self._halves, self._handle = halves, handle

    def __call__(self, rows: list[Any], context: Any) -> Any:
        processors = context.request_processor
        addresses = [_address(row, one) for row, one in zip(rows, processors, strict=True)]
        if None in addresses:  # a batch has requests of one kind
            return self._handle(rows, context)
        prepared = []
        for address, processor in zip(addresses, processors, strict=True):
            known, one = shared_memory.read(str(address))
            vars(processor).update(known)
            prepared.append(one)
        return self._halves.finish_handle(prepared, context)


def _address(row: dict[str, Any], processor: Any) -> str | None:
    """Take the address out of a request, so that no handler sees it."""
    address = row.pop(NAME, None)
    processor.get_request_properties().pop(NAME, None)
    return None if address is None else bytes(address).decode()


_STEPS = ("preprocess", "inference", "postprocess")


def _definer(kind: type, name: str) -> type:
    return next((one for one in kind.__mro__ if name in vars(one)), kind)


class _Steps:
    """The halves of a handler that has the three steps of TorchServe's own.

    ``preprocess`` gets each request alone. What it returns is joined with others where that is the same as a batch:
    tensors of one type and shape with one row each, and tuples and mappings of such. Others go on by themselves.
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
            groups.setdefault(_likeness(value) or index, []).append(index)
        answers: dict[int, Any] = {}
        for members in groups.values():
            document = self._answer(_joined([values[index] for index in members]))
            if not isinstance(document, list) or len(document) != len(members):
                # Of one request it is the answer, right or wrong; of several too few, so that each is asked alone.
                return document if len(values) == 1 or not isinstance(document, list) else []
            answers.update(zip(members, document, strict=True))
        if self._measured:
            seconds = time.perf_counter() - started + sum(seconds for _, seconds in prepared)
            context.metrics.add_time("HandlerTime", round(seconds * 1000, 2), None, "ms")
        return [answers[index] for index in range(len(values))]

    def _answer(self, data: Any) -> Any:
        handler = self._handler
        device = getattr(handler, "device", None)
        # The processes before this one have no GPU; where the handler would have put its tensors there, they go now.
        if getattr(device, "type", "cpu") != "cpu":
            data = _each(data, lambda one: one.to(device) if type(one).__name__ == "Tensor" else one)
        return handler.postprocess(handler.inference(data))


def _likeness(value: Any) -> Hashable:
    """Return what two values have in common that can be one batch; None: it can be one with no other."""
    if isinstance(value, MutableMapping) and value:
        likeness = tuple((name, _likeness(one)) for name, one in value.items())
        return None if any(one is None for _, one in likeness) else (type(value), likeness)
    # A tuple of one may be a tensor for each request as well as the one input of all.
    if isinstance(value, tuple) and len(value) > 1:
        columns = tuple(map(_likeness, value))
        return None if None in columns else (type(value), columns)
    if type(value).__name__ in ("Tensor", "ndarray") and len(value.shape) and value.shape[0] == 1:
        return type(value), value.dtype, tuple(value.shape)
    return None


def _joined(values: list[Any]) -> Any:
    """Return values of one likeness as a batch."""
    first = values[0]
    if len(values) == 1:
        return first
    if isinstance(first, MutableMapping):
        batch: Any = copy.copy(first)
        for name in first:
            batch[name] = _joined([value[name] for value in values])
        return batch
    if isinstance(first, tuple):
        columns = [_joined(list(column)) for column in zip(*values, strict=True)]
        return type(first)(*columns) if hasattr(first, "_fields") else tuple(columns)
    if type(first).__name__ == "ndarray":
        import numpy as np

        return np.concatenate(values)
    import torch

    return torch.cat(values)


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return a value with its tensors changed, through mappings, tuples and lists."""
    if isinstance(value, MutableMapping):
        changed: Any = copy.copy(value)
        for name in value:
            changed[name] = _each(value[name], change)
        return changed
    if isinstance(value, tuple | list):
        columns = [_each(one, change) for one in value]
        return type(value)(*columns) if hasattr(value, "_fields") else type(value)(columns)
    return change(value)
