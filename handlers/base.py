"""The base of all handlers: TorchServe's own, with every request of a batch on its own feet."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from ts.torch_handler import base_handler as stock
from ts.utils.util import PredictionException

from torchmar_handlers import samples
from torchmar_handlers.reply import Reply
from torchmar_handlers.request import Request

logger = logging.getLogger(__name__)

_WARM_CALLS = 3  # TorchScript's profiling executor records one call of a shape and compiles in the next


class BaseHandler(stock.BaseHandler):  # type: ignore[misc]
    """Answer a batch in which each request stands alone.

    What a handler of this family overrides, in the order in which it happens:

    * ``decode(request)``: one request to one input; ``BadRequest`` refuses that request only;
    * ``preprocess(inputs)``: the inputs of a batch to what the model takes;
    * ``inference(batch)``: the model;
    * ``postprocess(output)``: the model's output to a list with one answer per request;
    * ``explain_handle(batch, requests)``: one explanation per request.

    Predictions and explanations may share a batch; each group runs once. A step that fails
    for a group is repeated for each of its requests alone, so that only the culprit fails:
    with its own code (``PredictionException``), 507 (out of memory) or 503, as TorchServe says.
    """

    def initialize(self, context: Any) -> None:
        """Load the model as TorchServe's base handler does; ``options`` is the ``handler`` section of the config.

        Torch gets this worker's share of the cores (option ``threads``: that many), since workers
        that each use all of them are slower together than one alone.
        """
        super().initialize(context)
        config = context.model_yaml_config or {}
        self.options: dict[str, Any] = config.get("handler") or {}
        torch.set_num_threads(int(self.options.get("threads") or _share_of_cores(config.get("maxWorkers"))))

    def warm_up(self, context: Any) -> None:
        """Answer the archive's samples, alone and in a full batch; the last thing to do in ``initialize``.

        What is slow at first (TorchScript compiles in the first calls of every shape) is paid here
        and not by the first clients. Explanations are left out: most workers are never asked for
        one, and captum costs seconds and memory. Option ``warm_up: false`` skips it all.
        """
        properties = context.system_properties
        requests = [] if self.options.get("warm_up") is False else samples.read(properties.get("model_dir"))
        predicted = [request for request in requests if not request.wants_explanation]
        for size in sorted({1, int(properties.get("batch_size") or 1)}) if predicted else ():
            batch = [predicted[index % len(predicted)] for index in range(size)]
            for _ in range(_WARM_CALLS):
                # A sample may be there to be refused; what else is wrong, the first client is told.
                with contextlib.suppress(Exception):
                    self._predict([(request, self.decode(request)) for request in batch])

    def decode(self, request: Request) -> Any:
        """Return the input of one request; the row itself unless overridden."""
        return request.row

    def preprocess(self, inputs: Sequence[Any]) -> Any:
        """Stack decoded inputs (tensors of one shape) to a batch on the model's device."""
        return torch.stack(list(inputs)).to(self.device)

    def explain_handle(self, batch: Any, requests: Sequence[Request]) -> list[Any]:
        """Return one explanation per request; a handler that offers none refuses."""
        raise PredictionException(f"{type(self).__name__} has no explanations", 501)

    def handle(self, data: Sequence[Any], context: Any) -> list[Any]:
        """Answer a batch; the list that returns is as long as ``data``, whatever happened."""
        started = time.perf_counter()
        self.context = context
        inputs: dict[int, tuple[Request, Any]] = {}
        replies: dict[int, Reply] = {}
        for index, row in enumerate(data):
            request = Request.of(index, row, context)
            try:
                if request.wants_description:
                    replies[index] = Reply.of(self.describe_handle())
                else:
                    inputs[index] = request, self.decode(request)
            except Exception as error:
                replies[index] = self._refusal(error)
        explained = [item for item in inputs.values() if item[0].wants_explanation]
        predicted = [item for item in inputs.values() if not item[0].wants_explanation]
        replies |= self._answer(self._predict, predicted)
        replies |= self._answer(self._explain, explained)
        context.metrics.add_time("HandlerTime", round((time.perf_counter() - started) * 1000, 2), None, "ms")
        return [replies[index].send(context, index) for index in range(len(data))]

    def _predict(self, items: Sequence[tuple[Request, Any]]) -> list[Any]:
        batch = self.preprocess([item for _, item in items])
        answers: list[Any] = self.postprocess(self.inference(batch))
        return answers

    def _explain(self, items: Sequence[tuple[Request, Any]]) -> list[Any]:
        return self.explain_handle(self.preprocess([item for _, item in items]), [request for request, _ in items])

    def _answer(
        self, step: Callable[[Sequence[tuple[Request, Any]]], list[Any]], items: Sequence[tuple[Request, Any]]
    ) -> dict[int, Reply]:
        """Run ``step`` for all items at once and, if that fails, for each alone."""
        if not items:
            return {}
        try:
            answers = step(items)
            if len(answers) != len(items):
                raise ValueError(f"{type(self).__name__} gave {len(answers)} answers to {len(items)} requests")
            return {request.index: Reply.of(answer) for (request, _), answer in zip(items, answers, strict=True)}
        except Exception as error:
            if len(items) == 1:
                return {items[0][0].index: self._refusal(error)}
        replies: dict[int, Reply] = {}
        for item in items:
            replies |= self._answer(step, [item])
        return replies

    def _refusal(self, error: Exception) -> Reply:
        if isinstance(error, PredictionException):
            return Reply.error(error.error_code, error.message)
        logger.error("%s failed", type(self).__name__, exc_info=error)
        # The same two cases, by the same signs, as in TorchServe's service.
        if isinstance(error, MemoryError) or "CUDA" in str(error):
            return Reply.error(507, "Out of resources")
        return Reply.error(503, "Prediction failed")


def _share_of_cores(workers: Any) -> int:
    """Return how many of the cores that this process may use are a worker's, one at least."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // workers) if isinstance(workers, int) and workers > 0 else cores
