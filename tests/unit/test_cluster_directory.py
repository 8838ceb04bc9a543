"""torchmar.cluster.directory: which front leads, also after the directory was started again without its memory."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

import torchmar
from torchmar.cluster import directory
from torchmar.cluster.calls import Call, Response
from torchmar.cluster.directory import Directory, SharedState

T = TypeVar("T")


class Clock:
    """The clock of directories; those that announce nothing for six seconds are lost."""

    def __init__(self) -> None:
        self._now = 1000.0

    def monotonic(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(directory, "time", clock := Clock())
    return clock


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def test_the_first_front_leads_until_it_leaves() -> None:
    async def scenario() -> None:
        shared = Directory()
        first = await shared.join("a")
        assert (first.leader, first.revision, first.fronts) == ("a", 0, 1)
        assert (await shared.join("b")).leader == "a"
        assert await shared.publish("b", SharedState()) == 0
        assert await shared.publish("a", SharedState(routes="{1}")) == 1
        await shared.leave("a")
        # One that has just been started takes over what the others serve.
        standing = await shared.join("c")
        assert (standing.leader, standing.revision) == ("c", 1)

    run(scenario())


def test_a_front_learns_the_release_and_whether_others_have_it(clock: Clock) -> None:
    async def scenario() -> None:
        shared = Directory()
        assert await shared.release() == (torchmar.__version__, 0)
        await shared.join("a")
        assert await shared.release() == (torchmar.__version__, 1)
        clock.advance(6)
        assert await shared.release() == (torchmar.__version__, 0)  # it was killed

    run(scenario())


def test_after_a_restart_the_front_that_led_leads_whoever_announces_itself_first() -> None:
    async def scenario() -> None:
        before, shared = Directory(), Directory()
        standing = await shared.join("follower", 7)
        assert standing.leader == ""
        assert standing.directory != (await before.join("follower", 7)).directory
        assert (await shared.join("leader", 7, leads=True)).leader == "leader"
        assert (await shared.join("follower", 7)).leader == "leader"
        # Followers, which have revision 7, see that there is another one.
        assert await shared.publish("leader", SharedState(), 7) == 8

    run(scenario())


def test_after_a_restart_a_front_that_was_started_meanwhile_does_not_replace_what_is_served() -> None:
    async def scenario() -> None:
        shared = Directory()
        assert (await shared.join("new")).leader == "new"
        assert await shared.publish("new", SharedState()) == 1
        assert (await shared.join("leader", 7, leads=True)).leader == "leader"
        assert (await shared.join("new", 1, leads=True)).leader == "leader"

    run(scenario())


def test_another_front_leads_if_the_one_that_led_has_failed_with_the_directory(clock: Clock) -> None:
    async def scenario() -> None:
        shared = Directory()
        assert (await shared.join("a", 7)).leader == ""
        clock.advance(6)
        assert (await shared.join("a", 7)).leader == "a"
        assert await shared.publish("a", SharedState(), 7) == 8

    run(scenario())


def test_a_front_that_has_just_been_started_does_not_lead_while_another_serves_more(clock: Clock) -> None:
    async def scenario() -> None:
        # It would delete what it does not know: a directory that was started again does not know either.
        shared = Directory(restarted=True)
        assert (await shared.join("new")).leader == ""
        assert (await shared.join("leader", 7, leads=True)).leader == "leader"
        # The front that led has failed, too; only the one that follows knows what is served.
        shared = Directory(restarted=True)
        assert (await shared.join("new")).leader == (await shared.join("follower", 7)).leader == ""
        clock.advance(3)
        await shared.join("follower", 7)
        clock.advance(3)
        assert (await shared.join("new")).leader == ""
        assert (await shared.join("follower", 7)).leader == "follower"
        # There is no other.
        shared = Directory(restarted=True)
        await shared.join("new")
        clock.advance(6)
        assert (await shared.join("new")).leader == "new"

    run(scenario())


CALL = Call(0, "DELETE", b"/models/m", [], b"")
RESPONSE = Response(200, "application/json", [], b"{}", 1)


def test_a_request_that_a_killed_front_was_offered_is_done_by_the_next_that_leads(clock: Clock) -> None:
    async def scenario() -> None:
        shared = Directory()
        await shared.join("killed")
        await shared.publish("killed", SharedState())
        waiting = asyncio.create_task(shared.next_call("killed"))  # when it is killed
        await shared.join("next", 1)
        sent = asyncio.create_task(shared.call(CALL, 60))
        assert await waiting
        clock.advance(6)
        assert (await shared.join("next", 1)).leader == "next"
        call = await shared.next_call("next")
        assert call and not await shared.take("killed", call.id)
        assert await shared.take("next", call.id)
        await shared.respond(call.id, RESPONSE)
        assert await sent == RESPONSE

    run(scenario())


def test_a_request_is_not_repeated_after_a_front_has_taken_it_and_ended(clock: Clock) -> None:
    async def scenario() -> None:
        shared = Directory()
        await shared.join("killed")
        sent = asyncio.create_task(shared.call(CALL, 60))
        call = await shared.next_call("killed")
        assert call and await shared.next_call("killed") == call  # the first offer was lost
        assert await shared.take("killed", call.id)
        assert not await shared.take("killed", call.id)
        clock.advance(6)
        await shared.join("next")
        assert await sent is None

    run(scenario())
