"""Answer a batch of requests with the same number of replies; no request changes the reply to another."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Protocol

from ts.utils.util import PredictionException

from torchmar_handlers import protocols
from torchmar_handlers.common import faults, rows
from torchmar_handlers.common.reply import Reply
from torchmar_handlers.request import Request

logger = logging.getLogger(__name__)


class HandlerProtocol(faults.Handler, Protocol):
    """The methods and attributes of a handler that are needed to answer a batch."""

    max_forward_batch: int
    executor: Executor | None
    known_inputs: faults.KnownInputs

    def group(self, decoded: Any) -> Hashable: ...
    def error_keys(self, status: int, message: str) -> Mapping[str, Any]: ...
    def inference(self, data: Any) -> Any: ...
    def postprocess_handle(self, output: Any, requests: Sequence[Request]) -> Sequence[Any]: ...
    def predict_handle(self, batch: Any, requests: Sequence[Request]) -> Sequence[Any]: ...
    def explain_handle(self, batch: Any, requests: Sequence[Request]) -> Sequence[Any]: ...
    def describe_handle(self) -> Any: ...
    def described_weights(self) -> Mapping[str, Any]: ...


@dataclass(slots=True)
class _Failure:
    error: Exception


@dataclass(slots=True)
class Decoded:
    """A request before the model: the decoded input of each instance, and the function that combines their answers."""

    parsed: protocols.ParsedRequest
    inputs: Sequence[Any]


@dataclass(slots=True)
class Inferred:
    """A request after the model: for each instance, its answer or its `_Output`, which several instances may share."""

    parsed: protocols.ParsedRequest
    outcomes: Sequence[Any]


@dataclass(slots=True, eq=False)
class _Output:
    """The model's output for one or more instances of a request, in their order."""

    rows: Any


@dataclass(slots=True)
class _Part:
    """One instance of one request: decoded input, and answer or failure; ``owner`` is the index of the request."""

    request: Request
    input: Any
    owner: int
    outcome: Any = None


def answer(handler: HandlerProtocol, requests: Sequence[Request]) -> list[Reply]:
    """Return one reply per request, even if some requests fail.

    Every instance is decoded independently. Then predictions and explanations run, each group of
    similar inputs at once. A group that fails is repeated instance by instance, so that only the
    faulty instance fails: with its own code (``PredictionException``), 400 if the model accepts another input
    right after (see `torchmar_handlers.common.faults`), 507 (out of memory) or 503, as in TorchServe.
    """
    return finish(handler, decode(handler, requests))


def decode(handler: HandlerProtocol, requests: Sequence[Request]) -> list[Decoded | Reply]:
    """Return each decoded request, or the reply to a request that needs no model: an error, or a description."""
    parsed_requests = [_read(handler, request) for request in requests]
    parts: list[Request] = []
    for parsed in parsed_requests:
        if not isinstance(parsed, Reply):
            parts += parsed.parts
    inputs = _decode(handler, parts)
    halves: list[Decoded | Reply] = []
    end = 0
    for parsed in parsed_requests:
        if isinstance(parsed, Reply):
            halves.append(parsed)
            continue
        start, end = end, end + len(parsed.parts)
        own_inputs = inputs[start:end]
        # One invalid instance fails its request; its other instances need not be computed.
        failed = _Failure in map(type, own_inputs)
        halves.append(_reply(handler, parsed, own_inputs) if failed else Decoded(parsed, own_inputs))
    return halves


def finish(handler: HandlerProtocol, halves: Sequence[Decoded | Reply]) -> list[Reply]:
    """Return the replies to requests from `decode`, of one or several calls."""
    all_parts = _parts(halves)
    for explain, members in _groups(handler, itertools.chain.from_iterable(all_parts)):
        _run(handler, handler.explain_handle if explain else handler.predict_handle, members)
    return [
        half if isinstance(half, Reply) else _reply(handler, half.parsed, [part.outcome for part in parts])
        for half, parts in zip(halves, all_parts, strict=True)
    ]


def infer(handler: HandlerProtocol, halves: Sequence[Decoded | Reply]) -> list[Inferred | Reply]:
    """Return each request from `decode` with the model's output, or the reply if it needs no further step."""
    all_parts = _parts(halves)
    for explain, members in _groups(handler, itertools.chain.from_iterable(all_parts)):
        if explain:
            _run(handler, handler.explain_handle, members)
        else:
            _infer(handler, members)
    results: list[Inferred | Reply] = []
    for half, parts in zip(halves, all_parts, strict=True):
        if isinstance(half, Reply):
            results.append(half)
            continue
        outcomes = [part.outcome for part in parts]
        waits = any(isinstance(outcome, _Output) for outcome in outcomes)
        failed = any(isinstance(outcome, _Failure) for outcome in outcomes)
        complete = not waits or failed
        results.append(_reply(handler, half.parsed, outcomes) if complete else Inferred(half.parsed, outcomes))
    return results


def conclude(handler: HandlerProtocol, inferred: Sequence[Inferred]) -> list[Reply]:
    """Return the replies to requests from `infer`, of one or several calls."""
    replies = []
    for request in inferred:
        outcomes = list(request.outcomes)
        shared: dict[int, list[int]] = {}
        for position, outcome in enumerate(outcomes):
            if isinstance(outcome, _Output):
                shared.setdefault(id(outcome), []).append(position)
        for positions in shared.values():
            parts = [request.parsed.parts[position] for position in positions]
            answers = _conclude(handler, outcomes[positions[0]].rows, parts)
            for position, answer in zip(positions, answers, strict=True):
                outcomes[position] = answer
        replies.append(_reply(handler, request.parsed, outcomes))
    return replies


def _parts(halves: Sequence[Decoded | Reply]) -> list[list[_Part]]:
    """Return the parts of each request; a reply has none."""
    return [
        []
        if isinstance(half, Reply)
        else [_Part(*pair, owner) for pair in zip(half.parsed.parts, half.inputs, strict=True)]
        for owner, half in enumerate(halves)
    ]


def _read(handler: HandlerProtocol, request: Request) -> protocols.ParsedRequest | Reply:
    """Return the instances of a request, or the reply to a request that needs no model."""
    try:
        if request.wants_description:
            return Reply.of(_description(handler))
        return protocols.read(request, handler)
    except Exception as error:
        status, message = _status_and_message(handler, faults.of_reading(handler.known_inputs, error))
        return Reply.error(status, message, **handler.error_keys(status, message))


def _description(handler: HandlerProtocol) -> Any:
    """Return a handler's description, with the weights that are served if there are several."""
    description, of_weights = handler.describe_handle(), handler.described_weights()
    if of_weights and (description is None or isinstance(description, Mapping)):
        return {**(description or {}), **of_weights}
    return description


def _decode(handler: HandlerProtocol, parts: Sequence[Request]) -> list[Any]:
    def decode_part(part: Request) -> Any:
        try:
            return handler.decode(part)
        except Exception as error:
            return _Failure(faults.of_reading(handler.known_inputs, error))

    if handler.executor is not None and len(parts) > 1:
        return list(handler.executor.map(decode_part, parts))
    return [decode_part(part) for part in parts]


def _groups(handler: HandlerProtocol, parts: Iterable[_Part]) -> Iterator[tuple[bool, Sequence[_Part]]]:
    """Yield the parts that can share a forward pass, in groups of at most the handler's limit."""
    parts = list(parts)
    if len(parts) == 1:
        yield parts[0].request.wants_explanation, parts
        return
    groups: dict[tuple[bool, Hashable], list[_Part]] = {}
    for part in parts:
        try:
            kind = part.request.wants_explanation, handler.group(part.input)
        except Exception as error:
            part.outcome = _Failure(faults.of_reading(handler.known_inputs, error))
            continue
        groups.setdefault(kind, []).append(part)
    for (explain, _), members in groups.items():
        for start in range(0, len(members), handler.max_forward_batch):
            yield explain, members[start : start + handler.max_forward_batch]


def _run(
    handler: HandlerProtocol,
    step: Callable[[Any, Sequence[Request]], Sequence[Any]],
    parts: Sequence[_Part],
) -> None:
    """Answer all parts with one call of ``step`` or, if that fails, with one call for each."""
    try:
        batch = handler.preprocess([part.input for part in parts])
        answers = step(batch, [part.request for part in parts])
        if len(answers) != len(parts):
            raise ValueError(f"{type(handler).__name__} gave {len(answers)} answers to {len(parts)} requests")
    except Exception as error:
        if len(parts) == 1:
            (part,) = parts
            outcome = faults.of_step(handler, handler.known_inputs, step, part.request, part.input, error)
            part.outcome = _Failure(outcome) if isinstance(outcome, Exception) else outcome
            return
    else:
        handler.known_inputs.keep(parts[0].input)
        for part, answer in zip(parts, answers, strict=True):
            part.outcome = answer
        return
    for part in parts:
        _run(handler, step, [part])


def _infer(handler: HandlerProtocol, parts: Sequence[_Part]) -> None:
    """Run the model on all parts at once; if this fails, or its output has no row for each, on each part alone."""
    owned = [list(members) for _, members in itertools.groupby(parts, key=lambda part: part.owner)]
    try:
        output = handler.inference(handler.preprocess([part.input for part in parts]))
        outputs = rows.split(output, [len(members) for members in owned])
    except Exception:
        if len(parts) == 1:
            # This call fails again, or answers the instance completely.
            _run(handler, handler.predict_handle, parts)
            return
        outputs = None
    if outputs is None:
        for part in parts:
            _infer(handler, [part])
        return
    handler.known_inputs.keep(parts[0].input)
    for members, value in zip(owned, outputs, strict=True):
        shared = _Output(value)
        for part in members:
            part.outcome = shared


def _conclude(handler: HandlerProtocol, output: Any, requests: Sequence[Request]) -> Sequence[Any]:
    """Return the answers to the instances of one output; if this fails, to each instance alone."""

    def answer() -> Sequence[Any]:
        answers = handler.postprocess_handle(output, requests)
        if len(answers) != len(requests):
            raise ValueError(f"{type(handler).__name__} gave {len(answers)} answers to {len(requests)} requests")
        return answers

    try:
        return answer()
    except Exception as error:
        if len(requests) == 1:
            known_inputs, step = handler.known_inputs, handler.predict_handle
            outcome = faults.of_step(handler, known_inputs, step, requests[0], None, error, repeat=lambda: answer()[0])
            return [_Failure(outcome) if isinstance(outcome, Exception) else outcome]
    # Only an output with rows belongs to several instances.
    separate = rows.split(output, [1] * len(requests)) or ()
    return [_conclude(handler, *pair)[0] for pair in zip(separate, ([request] for request in requests), strict=True)]


def _reply(handler: HandlerProtocol, parsed: protocols.ParsedRequest, answers: Sequence[Any]) -> Reply:
    for position, outcome in enumerate(answers):
        if isinstance(outcome, _Failure):
            return parsed.error_reply(*_status_and_message(handler, outcome.error), position, handler.error_keys)
    try:
        return parsed.reply(answers)
    except Exception as error:
        return parsed.error_reply(*_status_and_message(handler, error), error_keys=handler.error_keys)


def _status_and_message(handler: HandlerProtocol, error: Exception) -> tuple[int, str]:
    """Return the status and the message that a client gets for an error."""
    if isinstance(error, PredictionException):
        return error.error_code, error.message
    logger.error("%s failed", type(handler).__name__, exc_info=error)
    # The same two cases, recognised in the same way, as in TorchServe's service.
    if isinstance(error, MemoryError) or "CUDA" in str(error):
        return 507, "Out of resources"
    return 503, "Prediction failed"
