"""A load that sends requests at their scheduled times, regardless of answers."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType

from torchmar.connection import Endpoint
from torchmar.errors import TorchmarError
from torchmar.exchange import Request
from torchmar.inference import InferenceClient


class OpenLoop:
    """Requests at a constant rate while the context is open; at its end, all have been answered or given up.

    Args:
        server: endpoint of the server.
        name: name of the model, whose default version answers.
        rate: requests a second.
        body: body of each request.
        clients: largest number of requests that wait at once.
        timeout: seconds after which a request is given up.
        right: function that returns whether an answer with status 200 is right; default: every answer is.
    """

    def __init__(
        self,
        server: Endpoint,
        name: str,
        rate: float = 25,
        body: bytes = b"1",
        clients: int = 32,
        timeout: float = 40,
        content_type: str = "application/json",
        right: Callable[[bytes], bool] = lambda body: True,
    ) -> None:
        self.outcomes: Counter[str] = Counter()
        self._request, self._right = Request(body, content_type), right
        self._server, self._name, self._rate, self._timeout = server, name, rate, timeout
        self._due: queue.Queue[float | None] = queue.Queue()
        self._ended = threading.Event()
        self._sender = threading.Thread(target=self._send)
        self._clients = [threading.Thread(target=self._ask) for _ in range(clients)]
        self._lock = threading.Lock()

    def __enter__(self) -> OpenLoop:
        for thread in (self._sender, *self._clients):
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        for thread in (self._sender, *self._clients):
            thread.join()

    @property
    def answered(self) -> int:
        """The number of requests with a right answer."""
        return self.outcomes["200"]

    @property
    def lost(self) -> dict[str, int]:
        """The number of requests with another outcome than 200, by outcome."""
        return {outcome: count for outcome, count in self.outcomes.items() if outcome != "200"}

    def wait_for(self, count: int) -> None:
        """Wait until ``count`` more requests have ended."""
        target = sum(self.outcomes.values()) + count
        while sum(self.outcomes.values()) < target:
            time.sleep(0.01)

    def _send(self) -> None:
        due = time.monotonic()
        while not self._ended.is_set():
            self._due.put(due)
            due += 1 / self._rate
            time.sleep(max(0.0, due - time.monotonic()))
        for _ in self._clients:
            self._due.put(None)

    def _ask(self) -> None:
        with InferenceClient(self._server, timeout=self._timeout, retries=0) as client:
            while self._due.get() is not None:
                try:
                    answer = client.request(self._name, self._request)
                    wrong = answer.status == 200 and not self._right(answer.body)
                    outcome = f"wrong: {answer.body[:100]!r}" if wrong else str(answer.status)
                except TorchmarError as error:
                    outcome = f"{type(error).__name__}: {error.message}"
                with self._lock:
                    self.outcomes[outcome] += 1
