"""Spans of a request to a model: the request, its times in the queue, its batches, and the steps in the worker.

A span is recorded when it is complete, and queued for the thread that sends it (`tracing`). Times are those of
`time.monotonic`, which server and workers share.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torchmar.worker.process.messages import ResponseHead, StepTimes
from torchmar.worker.process.stages import POSTPROCESS, PREPROCESS
from torchmar.worker.process.trace_context import SAMPLED, TraceParent

# Number of runs of the model in a batch with a span for each; more runs share one span.
_MAX_RUNS = 32
_HANDLED = "handle"
_WORKER_ENDED = "the worker ended before it answered"


class Span(NamedTuple):
    """A complete span.

    Attributes:
        name: name, such as ``queue``.
        trace_id: id of the trace.
        span_id: id of the span.
        parent_id: id of the parent span; 0: there is none.
        remote_parent: whether the parent span is the client's.
        trace_state: OpenTelemetry's part of the client's ``tracestate``; None: there is none.
        server: whether its kind is SERVER, not INTERNAL.
        start: start time.
        end: end time.
        attributes: attributes, with OpenTelemetry's names and further names with ``torchmar.``.
        error: message of its error status; None: it has not failed.
        links: trace and span of each other request in its batch.
    """

    name: str
    trace_id: int
    span_id: int
    parent_id: int
    remote_parent: bool
    trace_state: Any
    server: bool
    start: float
    end: float
    attributes: Mapping[str, Any]
    error: str | None = None
    links: tuple[tuple[int, int], ...] = ()


def new_id(bits: int) -> int:
    """Return a random id other than 0: with 128 bits for a trace, with 64 for a span."""
    while not (number := random.getrandbits(bits)):
        pass
    return number


class RequestSpan:
    """The server's span of one request that is sampled.

    Args:
        put: queues a complete span.
        name: name of the span.
        trace_id: id of the trace.
        parent: the client's span; None: the trace starts here.
        trace_state: OpenTelemetry's part of the client's ``tracestate``; None: there is none.
        start: start time of the request.
        attributes: attributes of the span; more may be added until its end.
    """

    __slots__ = ("_ended", "_put", "attributes", "name", "parent", "span_id", "start", "trace_id", "trace_state")

    def __init__(
        self,
        put: Callable[[Span], None],
        name: str,
        trace_id: int,
        parent: TraceParent | None,
        trace_state: Any,
        start: float,
        attributes: dict[str, Any],
    ) -> None:
        self._put, self.name, self.trace_id, self.parent = put, name, trace_id, parent
        self.trace_state, self.start, self.attributes = trace_state, start, attributes
        self.span_id = new_id(64)
        self._ended = False

    @property
    def traceparent(self) -> str:
        """The header by which the handler, and services that it calls, continue the trace below this span."""
        flags = SAMPLED | (self.parent.flags if self.parent else 0)
        return str(TraceParent(f"{self.trace_id:032x}", f"{self.span_id:016x}", flags))

    def end(self, error: str | None = None) -> None:
        """Record the span, once."""
        if self._ended:
            return
        self._ended = True
        parent = self.parent
        self._put(
            Span(
                self.name,
                self.trace_id,
                self.span_id,
                int(parent.span_id, 16) if parent else 0,
                parent is not None,
                self.trace_state,
                True,
                self.start,
                time.monotonic(),
                self.attributes,
                error,
            )
        )

    def add(
        self,
        name: str,
        start: float,
        end: float,
        attributes: Mapping[str, Any],
        *,
        above: int = 0,
        error: str | None = None,
        links: tuple[tuple[int, int], ...] = (),
    ) -> int:
        """Record a child of this span, or of its descendant ``above``; return its id."""
        span_id, state = new_id(64), self.trace_state
        parent = above or self.span_id
        self._put(Span(name, self.trace_id, span_id, parent, False, state, False, start, end, attributes, error, links))
        return span_id


class JobSpans:
    """The spans of one request in one pool of workers: waits in the queue, and batches.

    Args:
        request: the span of the request.
        stage: stage of a request that passes through stages; empty: workers do all steps.
    """

    __slots__ = ("_attributes", "_queued", "_sent", "request")

    def __init__(self, request: RequestSpan, stage: str = "") -> None:
        self.request = request
        self._attributes = {"torchmar.stage": stage} if stage else {}
        self._queued, self._sent = time.monotonic(), 0.0  # 0: it is not in the queue, or not in a batch

    def begin_queue(self) -> None:
        """Record that the request waits again, because its worker has ended."""
        self.fail(_WORKER_ENDED)
        self._queued = time.monotonic()

    def begin_batch(self) -> None:
        """Record that the request is sent to a worker."""
        now = time.monotonic()
        if self._queued:
            self.request.add("queue", self._queued, now, self._attributes)
        self._queued, self._sent = 0.0, now

    def fail(self, message: str) -> None:
        """Record that the request has failed in the queue, or in its batch."""
        now = time.monotonic()
        if self._sent:
            self.request.add("batch", self._sent, now, self._attributes, error=message)
        elif self._queued:
            self.request.add("queue", self._queued, now, self._attributes, error=message)
        self._queued = self._sent = 0.0

    def end_batch(
        self,
        attributes: Mapping[str, Any],
        links: tuple[tuple[int, int], ...],
        steps: Sequence[tuple[str, float, float]],
        error: str | None,
    ) -> None:
        """Record a batch that a worker has answered, with its steps."""
        now, request = time.monotonic(), self.request
        batch = request.add("batch", self._sent, now, {**self._attributes, **attributes}, error=error, links=links)
        for name, start, end in steps:
            request.add(name, start, end, self._attributes, above=batch)
        self._queued = self._sent = 0.0


def end_batch(
    jobs: Sequence[JobSpans | None],
    responses: Sequence[ResponseHead],
    times: StepTimes,
    *,
    worker: str,
    kind: str,
    stage: str,
    stages: Sequence[str],
) -> None:
    """Record a batch in the traces of its requests.

    Args:
        jobs: spans of each request; None: it has no trace.
        responses: responses, one for each request.
        times: times from the worker.
        worker: id of the worker.
        kind: kind of the requests: ``explain``, ``describe``, or empty for predictions.
        stage: stage of the worker; empty: it does all steps of a request.
        stages: stages with workers of their own.
    """
    attributes = {"torchmar.batch.size": len(jobs), "torchmar.worker.id": worker}
    identities = [(job.request.trace_id, job.request.span_id) for job in jobs if job is not None]
    for index, job in enumerate(jobs):
        if job is not None:
            identity = (job.request.trace_id, job.request.span_id)
            links = tuple(other for other in identities if other != identity)
            status, *_, message = responses[index]
            error = (message or f"status {status}") if status >= 500 else None
            job.end_batch(attributes, links, list(_steps(times, index, kind, stage, stages)), error)


def _steps(
    times: StepTimes, index: int, kind: str, stage: str, stages: Sequence[str]
) -> Iterator[tuple[str, float, float]]:
    """Yield the steps of a batch for one of its requests: name, start and end.

    The time before the first run of the model is the preprocessing, the time after the last run the postprocessing; for
    a handler that does not report its runs, there is only one step.
    """
    started, ended = times["started"], times["ended"]
    runs = sorted((begin, end) for begin, end, alone in times["runs"] if alone is None or alone == index)
    if kind or stage in (PREPROCESS, POSTPROCESS):
        yield kind or stage, started, ended
        return
    if not runs:
        yield _HANDLED, started, ended
        return
    first, last = runs[0][0], runs[-1][1]
    if PREPROCESS not in stages:
        yield "preprocess", started, first
    for begin, end in runs if len(runs) <= _MAX_RUNS else [(first, last)]:
        yield "inference", begin, end
    # After a failed batch, other requests may have run alone in between.
    if POSTPROCESS not in stages and not any(
        begin >= last and alone not in (None, index) for begin, _, alone in times["runs"]
    ):
        yield "postprocess", last, ended
