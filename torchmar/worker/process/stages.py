"""Stages of a handler in different processes: the steps before the model, the model, and the steps after it.

If a stage is absent, that of the model also runs its steps. Every stage is called like a handler, with rows and a
context. The server adds addresses of shared memory to the row of each request (see `shared_memory`): a stage reads the
request at `SOURCE`, if there is a previous stage, and writes it to `TARGET`, if there is a next one. It then returns an
empty response, marked by a header.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, Protocol

from . import shared_memory
from .handler_steps import STEPS, HandlerSteps

#: The parts of a row with addresses, and the header of a request for the next stage. A client's header cannot have a
#: space in its name, and the server removes form fields with these names.
SOURCE, TARGET, PASSED_ON = "torchmar source", "torchmar target", "torchmar stage"
PREPROCESS, INFERENCE, POSTPROCESS = "preprocess", "inference", "postprocess"


class StagesError(Exception):
    """A handler cannot be split into stages; the message is the reason."""


class Stages(Protocol):
    """The stages of a handler, the interface of `torchmar_handlers.base.BaseHandler`.

    A stage that is followed by another returns the input of that stage, and responses of requests that do not need it,
    both by index. The last three methods are for versions with a stage ``postprocess``.
    """

    def prepare_handle(self, data: Sequence[Any], context: Any) -> tuple[dict[int, Any], dict[int, Any]]: ...
    def finish_handle(self, prepared: Sequence[Any], context: Any) -> Any: ...
    def start_handle(self, data: Sequence[Any], context: Any) -> tuple[dict[int, Any], dict[int, Any]]: ...
    def inference_handle(self, prepared: Sequence[Any], context: Any) -> tuple[dict[int, Any], dict[int, Any]]: ...
    def reply_handle(self, outputs: Sequence[Any], context: Any) -> Any: ...


_HALVES = ("prepare_handle", "finish_handle")
_PARTS = ("start_handle", "inference_handle", "reply_handle")


def split_handler(service: Any, stages: Sequence[str], envelope: str = "") -> Stages:
    """Return the stages of a loaded service.

    Args:
        service: a loaded model.
        stages: names of the stages with processes of their own.
        envelope: the request envelope of the handler; empty: none.

    Raises:
        StagesError: the handler cannot be split.
    """
    if envelope:
        raise StagesError(f"its requests come in the envelope {envelope}, which belongs to all of its stages")
    handler = getattr(service._entry_point, "__self__", None)
    if handler is None or isinstance(handler, ModuleType):
        raise StagesError("its handler is a function; stages take a class with preprocess, inference and postprocess")
    kind = type(handler)
    definer = _definer(kind, "handle")
    if all(callable(getattr(handler, name, None)) for name in _HALVES):
        if not issubclass(_definer(kind, "prepare_handle"), definer):
            message = f"{definer.__name__} has a handle of its own, which prepare_handle and finish_handle lack"
            raise StagesError(message)
        if POSTPROCESS in stages:
            _check_parts(handler)
        own_stages: Stages = handler
        return own_stages
    for name in STEPS:
        try:
            inspect.signature(getattr(handler, name)).bind(None)
        except AttributeError:
            raise StagesError(f"{kind.__name__} has no {name}; stages need {', '.join(STEPS)}") from None
        except TypeError as error:
            raise StagesError(f"{kind.__name__}.{name} does not take the data alone: {error}") from None
    stock = definer.__module__ == "ts.torch_handler.base_handler"
    if not stock:
        code = getattr(inspect.unwrap(vars(definer)["handle"]), "__code__", None)
        if missing := [name for name in STEPS if name not in getattr(code, "co_names", ())]:
            raise StagesError(f"{definer.__name__} has a handle of its own, which does not go through {missing[0]}")
    return HandlerSteps(handler, measured=stock)


def _check_parts(handler: Any) -> None:
    """Raise StagesError if a handler with its own stages has none after the model."""
    kind = type(handler)
    if missing := [name for name in _PARTS if not callable(getattr(handler, name, None))]:
        raise StagesError(
            f"{kind.__name__} has no {missing[0]}, so that its postprocess stays with the model; "
            "remove postprocess from stages"
        )
    for name in ("finish_handle", "predict_handle"):
        definer = _definer(kind, name)
        if hasattr(handler, name) and not issubclass(_definer(kind, "inference_handle"), definer):
            raise StagesError(
                f"{definer.__name__} has a {name} of its own, whose steps after the model cannot be separated; "
                "override postprocess or postprocess_handle instead, or remove postprocess from stages"
            )


def _definer(kind: type, name: str) -> type:
    return next((base for base in kind.__mro__ if name in vars(base)), kind)


def apply_stage(service: Any, stage: str, stages: Stages) -> None:
    """Let a loaded service run one stage; the stage of the model also runs requests without addresses completely.

    These are explanations and descriptions.
    """
    handle = service._entry_point
    shared_memory.exclude(handle.__self__)
    service._entry_point = _Stage(stage, stages, handle)


class _Stage:
    """One stage, as a replacement for the handler's ``handle``."""

    def __init__(self, name: str, stages: Stages, handle: Callable[[Any, Any], Any]) -> None:
        self._name, self._stages, self._handle = name, stages, handle
        self.handler = getattr(handle, "__self__", None)

    def __call__(self, rows: list[Any], context: Any) -> Any:
        processors = context.request_processor
        sources, targets = ([_pop(name, *pair) for pair in zip(rows, processors, strict=True)] for name in _ADDRESSES)
        if not sources[0] and not targets[0]:  # a batch has requests of only one kind
            return self._handle(rows, context)
        values = rows
        if sources[0]:
            values = []
            for address, processor in zip(sources, processors, strict=True):
                response_state, value = shared_memory.read(address)
                vars(processor).update(response_state)
                values.append(value)
        if not targets[0]:
            last = self._stages.finish_handle if self._name == INFERENCE else self._stages.reply_handle
            return last(values, context)
        passed_on, responses = self._step_before_another(bool(sources[0]))(values, context)
        for index, value in passed_on.items():
            # The status and headers that the handler has set so far.
            shared_memory.write(targets[index], (vars(processors[index]), value))
            context.set_response_header(index, PASSED_ON, self._name)
            responses[index] = b""
        return [responses[index] for index in range(len(rows))]

    def _step_before_another(self, has_source: bool) -> Callable[[Any, Any], tuple[Mapping[int, Any], dict[int, Any]]]:
        if self._name == PREPROCESS:
            return self._stages.prepare_handle
        return self._stages.inference_handle if has_source else self._stages.start_handle


_ADDRESSES = (SOURCE, TARGET)


def _pop(name: str, row: dict[str, Any], processor: Any) -> str:
    """Remove an address from a request, so that no handler sees it, and return it; empty: there is none."""
    address = row.pop(name, None)
    processor.get_request_properties().pop(name, None)
    return "" if address is None else bytes(address).decode()
