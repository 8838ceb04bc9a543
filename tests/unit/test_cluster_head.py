"""torchmar.cluster.head notices that nothing listens at the head's address, and for how long."""

from __future__ import annotations

import asyncio

import pytest

from torchmar.cluster import head
from torchmar.cluster.head import Head


def test_a_head_that_is_silent_is_a_problem_until_it_answers_and_is_lost_after_rays_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(head, "_CHECK_SECONDS", 0.01)
    monkeypatch.setattr(head, "_PATIENCE_SECONDS", 0.05)

    async def scenario() -> None:
        changes: list[str] = []

        async def until(count: int) -> None:
            while len(changes) < count:
                await asyncio.sleep(0.01)

        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        watched = Head(f"127.0.0.1:{port}", {"RAY_gcs_rpc_server_reconnect_timeout_s": "4"})
        watching = asyncio.ensure_future(watched.watch(lambda: changes.append(watched.problem)))
        await asyncio.sleep(0.1)
        assert (watched.problem, changes) == ("", [])
        server.close()
        await asyncio.wait_for(until(1), 20)
        assert f"the head of the cluster at 127.0.0.1:{port} has not answered for 0 s" in changes[0]
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", port)
        await asyncio.wait_for(until(2), 20)
        assert changes[1] == ""
        server.close()
        await asyncio.wait_for(watching, 20)
        assert watched.lost.is_set()
        assert "has not answered for 2 s, and Ray ends" in watched.error.message
        assert "ray start" in watched.error.hint

    asyncio.run(scenario())
