"""The stages of a handler with the three steps of TorchServe's base handler: preprocess, inference, postprocess."""

from __future__ import annotations

import logging
import time
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from . import rows

log = logging.getLogger("ts.service")

#: The steps; each gets the result of the previous one.
STEPS = ("preprocess", "inference", "postprocess")


class HandlerSteps:
    """The stages of a handler, with the interface of `stages.Stages`.

    In a separate stage, ``preprocess`` gets each request alone. Its results are joined if this is the same as a batch:
    tensors of one type and shape with one row each, and tuples and mappings of them. Others are run one by one.

    In a separate stage, ``postprocess`` gets the output of each request alone. The output of a batch is split if
    `rows.split` can split it; otherwise ``inference`` is run for each request.

    Args:
        handler: the loaded handler.
        measured: whether to add TorchServe's metric ``HandlerTime``, as its ``handle`` does.
    """

    def __init__(self, handler: Any, *, measured: bool) -> None:
        self._handler, self._measured = handler, measured
        self._warned = set[str]()

    def prepare_handle(self, data: Sequence[Any], context: Any) -> tuple[dict[int, Any], dict[int, Any]]:
        handler, prepared = self._handler, {}
        handler.context = context
        with self._warning_of_changes("preprocess", "inference and postprocess"):
            for index, row in enumerate(data):
                started = time.perf_counter()
                value = handler.preprocess([row])
                prepared[index] = (value, time.perf_counter() - started)
        return prepared, {}

    def finish_handle(self, prepared: Sequence[Any], context: Any) -> Any:
        started = time.perf_counter()
        self._handler.context = context
        responses: dict[int, Any] = {}
        for members, value in _batches(prepared):
            document = self._handler.postprocess(self._infer(value))
            if not isinstance(document, list) or len(document) != len(members):
                # The result for one request, correct or wrong; too few results for several requests, so that each is
                # repeated alone.
                return document if len(prepared) == 1 or not isinstance(document, list) else []
            responses.update(zip(members, document, strict=True))
        self._measure(context, prepared, started)
        return [responses[index] for index in range(len(prepared))]

    def start_handle(self, data: Sequence[Any], context: Any) -> tuple[dict[int, Any], dict[int, Any]]:
        started = time.perf_counter()
        handler = self._handler
        handler.context = context
        with self._warning_of_changes("preprocess or inference", "postprocess"):
            copies = [dict(row) if isinstance(row, dict) else row for row in data]  # preprocess may change them
            outputs = rows.split(handler.inference(handler.preprocess(copies)), len(data))
            if outputs is None:
                self._warn_of_output()
                outputs = [handler.inference(handler.preprocess([row])) for row in data]
        return _shares(outputs, [0.0] * len(data), started), {}

    def inference_handle(self, prepared: Sequence[Any], context: Any) -> tuple[dict[int, Any], dict[int, Any]]:
        started = time.perf_counter()
        self._handler.context = context
        outputs: dict[int, Any] = {}
        with self._warning_of_changes("inference", "postprocess"):
            for members, value in _batches(prepared):
                separate = rows.split(self._infer(value), len(members))
                if separate is None:
                    self._warn_of_output()
                    separate = [self._infer(prepared[index][0]) for index in members]
                outputs.update(zip(members, separate, strict=True))
        ordered = [outputs[index] for index in range(len(prepared))]
        return _shares(ordered, [seconds for _, seconds in prepared], started), {}

    def reply_handle(self, outputs: Sequence[Any], context: Any) -> Any:
        started = time.perf_counter()
        self._handler.context = context
        responses: list[Any] = []
        for value, _ in outputs:
            document = self._handler.postprocess(value)
            if not isinstance(document, list) or len(document) != 1:
                return document if len(outputs) == 1 or not isinstance(document, list) else []
            responses += document
        self._measure(context, outputs, started)
        return responses

    def _infer(self, data: Any) -> Any:
        handler = self._handler
        device = getattr(handler, "device", None)
        # Processes of the first stage have no GPU; tensors are moved to the handler's device here.
        if getattr(device, "type", "cpu") != "cpu":
            data = rows.map_arrays(data, lambda value: value.to(device) if hasattr(value, "device") else value)
        return handler.inference(data)

    def _measure(self, context: Any, values: Sequence[Any], started: float) -> None:
        """Add the time of this stage to that of the previous stages, which comes with each value."""
        if self._measured:
            seconds = time.perf_counter() - started + sum(seconds for _, seconds in values)
            context.metrics.add_time("HandlerTime", round(seconds * 1000, 2), None, "ms")

    @contextmanager
    def _warning_of_changes(self, steps: str, later: str) -> Iterator[None]:
        """Warn once about attributes that steps set, because steps in other processes do not see them."""
        before = dict(vars(self._handler))
        yield
        attributes = [name for name, value in vars(self._handler).items() if before.get(name, self) is not value]
        if attributes and steps not in self._warned:
            self._warned.add(steps)
            names = ", ".join(f"self.{name}" for name in attributes)
            log.warning("%s sets %s, and with stages %s do not see it", steps, names, later)

    def _warn_of_output(self) -> None:
        if "" not in self._warned:
            self._warned.add("")
            log.warning(
                "inference returns no row for each request of a batch, so that it is run for each request: with a "
                "stage postprocess, it should return tensors or arrays, or mappings and tuples of them"
            )


def _batches(prepared: Sequence[Any]) -> Iterator[tuple[list[int], Any]]:
    """Yield the indices of the requests in each batch, and the batch."""
    groups: dict[Hashable, list[int]] = {}
    for index, (value, _) in enumerate(prepared):
        groups.setdefault(rows.batch_key(value) or index, []).append(index)
    for members in groups.values():
        yield members, rows.join([prepared[index][0] for index in members])


def _shares(outputs: list[Any], seconds: Sequence[float], started: float) -> dict[int, Any]:
    """Return outputs by index, on the CPU and without gradients, each with the time so far."""
    outputs = [
        rows.map_arrays(output, lambda value: value.detach().cpu() if hasattr(value, "detach") else value)
        for output in outputs
    ]
    share = (time.perf_counter() - started) / len(outputs)
    return dict(enumerate((output, before + share) for output, before in zip(outputs, seconds, strict=True)))
