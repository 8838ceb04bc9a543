"""The times of a batch in its worker: start and end of the handler, and each run of its model.

A run of the model is a call of the handler's method ``inference``. While a batch is timed, this method is replaced, in
the class and not in the handler, so that handlers that pickle themselves still work. Handlers without this method, such
as functions, have no runs.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any

from .messages import StepTimes

_METHOD = "inference"


class StepTimer:
    """Times one batch at a time.

    Args:
        entry_point: entry point of TorchServe's service, or the stage that replaces it.

    Attributes:
        index: index of the request that runs alone because its batch has failed; None: the whole batch runs.
    """

    def __init__(self, entry_point: Any) -> None:
        self._handler = _handler_of(entry_point)
        self._runs: list[tuple[float, float, int | None]] = []
        self.index: int | None = None

    @contextmanager
    def timing(self) -> Iterator[StepTimes]:
        """Time a batch; the times, by `time.monotonic`, are complete at the end."""
        self._runs, self.index = [], None
        times: StepTimes = {"started": time.monotonic(), "ended": 0.0, "runs": self._runs}
        original, replaced = self._replace()
        try:
            yield times
        finally:
            if replaced:
                if original is None:
                    delattr(type(self._handler), _METHOD)
                else:
                    setattr(type(self._handler), _METHOD, original)
            times["ended"] = time.monotonic()

    def _replace(self) -> tuple[Any, bool]:
        """Replace the method; return the class's own method, None if it is inherited, and whether it was replaced."""
        handler = self._handler
        kind = type(handler)
        method = inspect.getattr_static(handler, _METHOD, None)
        if not isinstance(method, FunctionType) or _METHOD in getattr(handler, "__dict__", ()):
            return None, False
        timer = self

        def inference(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self is not handler:
                return method(self, *args, **kwargs)
            started, index = time.monotonic(), timer.index
            try:
                return method(self, *args, **kwargs)
            finally:
                timer._runs.append((started, time.monotonic(), index))

        original = vars(kind).get(_METHOD)
        try:
            setattr(kind, _METHOD, inference)
        except (TypeError, AttributeError):  # for example, the class of an extension module
            return None, False
        return original, True


def _handler_of(entry_point: Any) -> Any:
    """Return the object whose method answers requests; None if there is none."""
    handler = getattr(entry_point, "__self__", None) or getattr(entry_point, "handler", None)
    # TorchServe's envelopes call the method of the handler.
    handler = getattr(getattr(handler, "_handle_fn", None), "__self__", handler)
    return None if isinstance(handler, ModuleType) else handler
