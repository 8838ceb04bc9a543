"""The expected answer to each request: that of a sample, or that of the server before the load.

The answer to a request without a sample is compared with the answer that the server gave to this request alone:
an answer to another request, or an answer that depends on other requests in its batch, is wrong.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torchmar import comparison
from torchmar.connection import Connection
from torchmar.errors import ServerError
from torchmar.exchange import Response
from torchmar.load.answers import Comparison, Expected
from torchmar.load.target import GRPC, Target, send_alone
from torchmar.load.workload import Case, Workload
from torchmar.recipe import Sample

# : If there are more requests, only those with samples are compared: each other one has to be sent twice before the
# load.
REFERENCES = 100
_REPETITIONS = 2  # repetitions of a request that fails with 5xx before the load
Send = Callable[[Case], Response]
Content = Callable[[bytes], bytes]
_TOLERANCE = 1e-3  # absolute, as for samples
_LARGEST_PART = 1e-2  # limit as a part of an answer's largest fraction: all of its numbers may be small


@dataclass(frozen=True)
class Expectations:
    """The expected answers of a measurement.

    Attributes:
        expected: expected answer to each request.
        compared: number of requests whose answers are compared.
        varying: requests whose answers vary even without load; they are not compared.
    """

    expected: tuple[Expected, ...]
    compared: int
    varying: tuple[str, ...]


def gather(target: Target, workload: Workload) -> Expectations:
    """Send requests alone, and return the answers to expect under load.

    Raises:
        ConnectError: no server answers.
        ServerError: the server rejects a request without a sample that expects this.
    """
    expected, varying = [], []
    with _sender(target) as send_once:
        send = _patient(send_once)
        for number, case in enumerate(workload.cases):
            if case.sample is not None and case.sample.status >= 300:
                expected.append(Expected(case.name, case.sample.status))
            elif case.sample is not None and case.sample.expect is not None:
                if not number:
                    send(case)  # the server answers, and knows the model
                expected.append(Expected(case.name, 200, _of_sample(target, case.sample)))
            elif number < REFERENCES:
                comparison_ = of_reference(_content(target), send(case), send(case))
                if comparison_ is None:
                    varying.append(case.name)
                expected.append(Expected(case.name, 200, comparison_))
            else:
                expected.append(Expected(case.name))
    differing = sum(expectation.difference is not None for expectation in expected)
    return Expectations(tuple(expected), differing, tuple(varying))


@contextlib.contextmanager
def _sender(target: Target) -> Iterator[Send]:
    """Yield a function that sends a case and returns its response."""
    if target.protocol in GRPC:
        from torchmar.load import grpc_calls

        with grpc_calls.sender(target) as send:
            yield send
        return
    connection = Connection(target.endpoint, "inference", 120.0)
    try:
        yield lambda case: send_alone(target, case, connection)
    finally:
        connection.close()


def send_one(target: Target, case: Case) -> None:
    """Send a request alone, and wait for its answer; errors from the server are ignored."""
    with _sender(target) as send, contextlib.suppress(ServerError):
        send(case)


def _patient(send: Send) -> Send:
    """Return a function that repeats a request if the server could not answer it."""

    def repeated(case: Case) -> Response:
        for _ in range(_REPETITIONS):
            try:
                return send(case)
            except ServerError as error:
                if error.status < 500:
                    raise
        return send(case)

    return repeated


def _content(target: Target) -> Content:
    """Return a function that extracts the answer from a body: over gRPC a body is a message."""
    if target.protocol not in GRPC:
        return lambda body: body
    from torchmar.load import grpc_calls

    return lambda body: grpc_calls.answer(target, body)


def _of_sample(target: Target, sample: Sample) -> Comparison:
    """Return the comparison with the answer of a sample, in the form of the protocol."""
    content = _content(target)

    def difference(status: int, body: bytes) -> str:
        body = content(body)
        if target.protocol == "kserve-v1":
            with contextlib.suppress(ValueError, LookupError, TypeError):
                document = json.loads(body)
                body = json.dumps(document["explanations" if sample.explain else "predictions"][0]).encode()
        return "; ".join(comparison.differences(sample, Response(status, body))[:3])

    return difference


def of_reference(content: Content, first: Response, second: Response) -> Comparison | None:
    """Return the comparison with a response; None if another response to the same request differs from it."""
    expected = content(first.body)
    reference = _reference(expected)
    if reference is None:
        if content(second.body) != expected:
            return None
        return lambda status, body: "" if content(body) == expected else "its bytes differ"

    def difference(status: int, body: bytes) -> str:
        return "; ".join(comparison.differences(reference, Response(status, content(body)))[:3])

    return None if difference(200, second.body) else difference


def _reference(body: bytes) -> Sample | None:
    """Return a sample that expects an answer; None if the answer is no JSON."""
    try:
        value = json.loads(body)
    except ValueError:
        return None
    if value is None:
        return None
    largest = max(map(abs, _fractions(value)), default=0.0)
    tolerance = min(_TOLERANCE, _LARGEST_PART * largest) if largest else _TOLERANCE
    return Sample(json=0, expect=value, tolerance=tolerance)


def _fractions(value: Any) -> Iterator[float]:
    """Yield the numbers in an answer in JSON that are no integers, because integers are counts or names."""
    if isinstance(value, float):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _fractions(item)
