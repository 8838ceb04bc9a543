"""Requests of the management API on their way from a front to the leading one, which the directory has meanwhile."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Container
from typing import NamedTuple

_POLL_SECONDS = 5.0  # that `CallQueue.next` waits


class Call(NamedTuple):
    """A request to the management API that a front passes on to the leading one.

    Attributes:
        id: of the call; 0 where the queue is to choose it.
        method: ``POST``.
        target: as it stands in the request line.
        headers: all of them.
        body: the content.
    """

    id: int
    method: str
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Response(NamedTuple):
    """The response to a `Call`.

    Attributes:
        status: of the response.
        content_type: empty: it has none.
        headers: others of it.
        body: its content.
        revision: of the shared state after it.
    """

    status: int
    content_type: str
    headers: list[tuple[str, str]]
    body: bytes
    revision: int


class CallQueue:
    """Calls that wait for the leading front to take them, and then for its response.

    A call is offered until it is taken: a front that was killed may still wait for one, and an offer may be lost on its
    way. It is taken once, since a registration must not be done twice.
    """

    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self._waiting: asyncio.Queue[Call] = asyncio.Queue()
        self._offered: dict[int, tuple[str, Call]] = {}  # to a front that has not taken it, by the call's id
        self._taken: dict[int, str] = {}  # by which front
        self._responses: dict[int, asyncio.Future[Response | None]] = {}

    async def send(self, call: Call, seconds: float) -> Response | None:
        """Return the response to a call.

        None: there is none after ``seconds``, or the front that has taken the call has ended.
        """
        number = next(self._ids)
        self._responses[number] = response = asyncio.get_running_loop().create_future()
        await self._waiting.put(call._replace(id=number))
        try:
            return await asyncio.wait_for(response, seconds)
        except asyncio.TimeoutError:
            return None
        finally:
            del self._responses[number]
            self._offered.pop(number, None)
            self._taken.pop(number, None)

    async def next(self, front: str, leads: Callable[[], bool]) -> Call | None:
        """Return a call for the leading front, which has to `take` it; None: there is none for a few seconds.

        Args:
            front: that leads.
            leads: returns whether it still does.
        """
        call = next((call for _, call in self._offered.values()), None)
        if call is None:
            try:
                call = await asyncio.wait_for(self._waiting.get(), _POLL_SECONDS)
            except asyncio.TimeoutError:
                return None
        if call.id not in self._responses:  # its sender does not wait any more
            return None
        if not leads():
            self._waiting.put_nowait(call)
            return None
        self._offered[call.id] = front, call
        return call

    def take(self, front: str, number: int) -> bool:
        """Return whether a front may run a call that it was offered; no other is offered it from now on."""
        offered, _ = self._offered.get(number, ("", None))
        if offered != front:
            return False
        del self._offered[number]
        self._taken[number] = front
        return True

    def respond(self, number: int, response: Response | None) -> None:
        """Pass a response on to the sender of a call."""
        if (waiting := self._responses.get(number)) and not waiting.done():
            waiting.set_result(response)

    def end_calls(self, fronts: Container[str]) -> None:
        """End the calls that were taken by fronts other than these: whether those have run them is not known."""
        for number, front in self._taken.items():
            if front not in fronts:
                self.respond(number, None)
