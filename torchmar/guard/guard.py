"""The request to the model, its time limit, and the verdict."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Literal

from torchmar.connection import Endpoint
from torchmar.errors import TorchmarError
from torchmar.guard.http_request import SECRET_FIELDS, SECRET_HEADERS, as_text
from torchmar.inference import InferenceClient

logger = logging.getLogger("torchmar.guard")

_TIMEOUTS = (TimeoutError, asyncio.TimeoutError, FutureTimeoutError)  # different classes up to Python 3.10


@dataclass(frozen=True)
class Verdict:
    """The verdict on a request.

    Attributes:
        blocked: whether the request is to be blocked.
        probability: probability of an attack; None if the model did not answer.
        error: reason why the model did not answer; None if it did.
    """

    blocked: bool
    probability: float | None = None
    error: str | None = None

    @property
    def status(self) -> int:
        """The status of the response to a blocked request: 403, or 503 if the model did not answer."""
        return 503 if self.error else 403


class Guard:
    """A model that classifies HTTP requests, with a time limit. For use by any number of threads and tasks at once.

    Args:
        server: the endpoint, or only the address of its inference API; default: the server that runs in ``.torchmar``,
            or TorchServe's default addresses.
        model: the name of the model; it returns probabilities by label.
        threshold: probability of an attack at or above which a request is blocked.
        time_limit_s: time limit for the model's answer, in seconds.
        on_failure: handling of a request without an answer in time: ``allow`` or ``block``.
        headers: names of the headers that are sent to the model.
        max_body: number of bytes of the body that are sent to the model.
        secret_fields: parts of names of fields whose values are not sent; see `as_text`.
        attack_label: the label of an attack.
        connections: largest number of simultaneous requests to the model.

    Raises:
        ValueError: an argument is out of its range, or a header holds credentials.

    Examples:
        >>> guard = Guard("http://127.0.0.1:8080", time_limit_s=0.2, on_failure="allow")
        >>> Guard(headers=["Cookie"])
        Traceback (most recent call last):
        ValueError: headers: cookie holds credentials, which are never sent; leave it out
    """

    def __init__(
        self,
        server: Endpoint | str | None = None,
        model: str = "guard",
        *,
        threshold: float = 0.85,
        time_limit_s: float = 0.25,
        on_failure: Literal["allow", "block"] = "allow",
        headers: Iterable[str] = ("content-type", "user-agent"),
        max_body: int = 2048,
        secret_fields: Sequence[str] = SECRET_FIELDS,
        attack_label: str = "attack",
        connections: int = 8,
    ) -> None:
        self.headers = tuple(name.lower() for name in headers)
        if secret := SECRET_HEADERS.intersection(self.headers):
            raise ValueError(f"headers: {min(secret)} holds credentials, which are never sent; leave it out")
        if on_failure not in ("allow", "block"):
            raise ValueError(f"on_failure is {on_failure!r}; it is 'allow' or 'block'")
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold is {threshold}; it is a probability above 0")
        if not time_limit_s > 0:
            raise ValueError(f"time_limit_s is {time_limit_s}; it is a number of seconds above 0")
        if max_body < 0:
            raise ValueError(f"max_body is {max_body}; it is a number of bytes")
        self.model, self.threshold, self.attack_label = model, threshold, attack_label
        self.time_limit_s, self.on_failure, self.max_body = time_limit_s, on_failure, max_body
        self.secret_fields = tuple(secret_fields)
        self._server = Endpoint.coerce(server, "inference")
        # A socket's timeout restarts with every byte, so that only the wait for a thread has a real limit.
        self._threads = ThreadPoolExecutor(connections, thread_name_prefix="torchmar-guard")
        self._local = threading.local()

    def close(self) -> None:
        """End the threads. Requests that the model has not answered get no verdict."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def check(self, method: str, target: str, headers: Mapping[str, str], body: bytes = b"") -> Verdict:
        """Return the verdict on a request; never raises.

        Args:
            method: method, such as ``GET``.
            target: path and query, as the client sent them.
            headers: all headers of the request; only those named in ``headers`` of the guard are sent.
            body: the body; only its first ``max_body`` bytes are sent.
        """
        try:
            future = self._submit(method, target, headers, body)
            try:
                return self._verdict(method, target, future.result(self.time_limit_s))
            finally:
                future.cancel()  # it may still wait for a thread
        except Exception as error:  # after any error, the application must continue
            return self._failed(method, target, error)

    async def check_async(self, method: str, target: str, headers: Mapping[str, str], body: bytes = b"") -> Verdict:
        """Return the verdict on a request without blocking the event loop; see `check`."""
        try:
            future = asyncio.wrap_future(self._submit(method, target, headers, body))
            return self._verdict(method, target, await asyncio.wait_for(future, self.time_limit_s))
        except Exception as error:
            return self._failed(method, target, error)

    def _submit(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Future[float]:
        by_name = {name.lower(): value for name, value in headers.items()}
        if not body:
            by_name.pop("content-type", None)  # some WSGI servers set one for every request
        model_headers = {name.title(): by_name[name] for name in self.headers if name in by_name}
        text = as_text(method, target, model_headers, body[: self.max_body], secret_fields=self.secret_fields)
        return self._threads.submit(self._probability, text)

    def _probability(self, text: str) -> float:
        client: InferenceClient | None = getattr(self._local, "client", None)
        if client is None:
            client = self._local.client = InferenceClient(self._server, self.time_limit_s, retries=0)
        prediction = client.predict(self.model, {"text": text})
        if not isinstance(prediction, dict) or self.attack_label not in prediction:
            raise TorchmarError(f"the model {self.model} does not return a probability of {self.attack_label!r}")
        return float(prediction[self.attack_label])

    def _verdict(self, method: str, target: str, probability: float) -> Verdict:
        blocked = probability >= self.threshold
        if blocked:
            logger.warning("blocked %s %s: %.3f", method, _path(target), probability)
        return Verdict(blocked, probability)

    def _failed(self, method: str, target: str, error: Exception) -> Verdict:
        is_late = isinstance(error, _TIMEOUTS)
        reason = f"no answer within {self.time_limit_s} s" if is_late else str(error) or type(error).__name__
        blocked = self.on_failure == "block"
        action = "blocked" if blocked else "allowed"
        logger.error("%s %s %s without a verdict: %s", action, method, _path(target), reason)
        return Verdict(blocked, None, reason)


def _path(target: str) -> str:
    """Return the path of a target for the log: without the query, which may contain secrets, and on one line."""
    return repr(target.partition("?")[0][:200])[1:-1]
