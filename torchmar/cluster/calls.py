"""Requests of the management API that a front forwards to the leading front; the directory holds them in between."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Container
from typing import NamedTuple

_POLL_SECONDS = 5.0  # the longest time that `CallQueue.next` waits for a call


class Call(NamedTuple):
    """A request to the management API that a front forwards to the leading front.

    Attributes:
        id: number of the call; 0: the queue chooses it.
        method: ``POST``.
        target: path and query of the request line, unchanged.
        headers: all headers of the request.
        body: body of the request.
    """

    id: int
    method: str
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Response(NamedTuple):
    """The response to a `Call`.

    Attributes:
        status: status code.
        content_type: content type of the body; empty: the response has none.
        headers: the other headers.
        body: body of the response.
        revision: revision of the shared state after the call.
    """

    status: int
    content_type: str
    headers: list[tuple[str, str]]
    body: bytes
    revision: int


class CallQueue:
    """Calls that wait until the leading front takes them, and then until it responds.

    A call is offered until a front takes it: a front that was killed may still have a request for a call open, and an
        offer
    can be lost on its way. A call is taken only once, because a registration must not be done twice.
    """

    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self._waiting: asyncio.Queue[Call] = asyncio.Queue()
        self._offered: dict[int, tuple[str, Call]] = {}  # calls that no front has taken, with the last offer
        self._taken: dict[int, str] = {}  # the front that has taken each call
        self._responses: dict[int, asyncio.Future[Response | None]] = {}

    async def send(self, call: Call, seconds: float) -> Response | None:
        """Return the response to a call.

        None: there is no response after ``seconds``, or the front that has taken the call has ended.
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
        """Return a call for the leading front, which then has to `take` it; None: none has arrived within some seconds.

        Args:
            front: name of the leading front.
            leads: returns whether that front still leads.
        """
        call = next((call for _, call in self._offered.values()), None)
        if call is None:
            try:
                call = await asyncio.wait_for(self._waiting.get(), _POLL_SECONDS)
            except asyncio.TimeoutError:
                return None
        if call.id not in self._responses:  # its sender no longer waits
            return None
        if not leads():
            self._waiting.put_nowait(call)
            return None
        self._offered[call.id] = front, call
        return call

    def take(self, front: str, number: int) -> bool:
        """Return whether a front may run a call that was offered to it; it is then offered to no other front."""
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
        """End the calls that other fronts than ``fronts`` have taken; whether they have run them is unknown."""
        for number, front in self._taken.items():
            if front not in fronts:
                self.respond(number, None)
