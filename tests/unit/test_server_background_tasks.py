"""torchmar.server.background_tasks keeps tasks until they are done, passes on failures and cancels on close."""

from __future__ import annotations

import asyncio
import gc

from torchmar.server.background_tasks import BackgroundTasks


def test_a_task_without_another_reference_runs_to_its_end() -> None:
    async def work() -> None:
        tasks, done = BackgroundTasks(), asyncio.Event()

        async def wait() -> None:
            future = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_later(0.01, future.set_result, None)
            await future
            done.set()

        tasks.start(wait())
        gc.collect()
        await asyncio.wait_for(done.wait(), 10)
        await asyncio.sleep(0)
        assert not len(tasks)

    asyncio.run(work())


def test_failures_are_passed_on_and_cancellations_are_not() -> None:
    async def work() -> None:
        errors: list[BaseException] = []
        tasks = BackgroundTasks(errors.append)

        async def fail() -> None:
            raise OSError("full")

        failing, waiting = tasks.start(fail()), tasks.start(asyncio.Event().wait())
        await asyncio.wait([failing])
        await tasks.close()
        assert [str(error) for error in errors] == ["full"]
        assert waiting.cancelled()

    asyncio.run(work())


def test_closing_also_ends_the_tasks_that_tasks_start_when_they_are_cancelled() -> None:
    async def work() -> None:
        tasks = BackgroundTasks()

        async def restart() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                tasks.start(asyncio.Event().wait())

        tasks.start(restart())
        await asyncio.sleep(0)
        await tasks.close()
        assert not len(tasks)

    asyncio.run(work())


def test_cancelling_does_not_wait() -> None:
    async def work() -> None:
        tasks = BackgroundTasks()
        waiting = tasks.start(asyncio.Event().wait())
        await asyncio.sleep(0)
        tasks.cancel()
        assert len(tasks)
        await asyncio.wait([waiting])
        assert waiting.cancelled()

    asyncio.run(work())
