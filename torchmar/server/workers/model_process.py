"""The server's handle of a model process; its code is `torchmar.worker.process.model_process`."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from functools import partial

from torchmar.errors import WorkerError
from torchmar.server.workers.control_connection import ControlConnection, ForkRequests, fail
from torchmar.server.workers.output import open_output
from torchmar.server.workers.worker_process import WorkerProcess
from torchmar.worker.process.messages import Fork, Forked, Loaded, LoadFailed, Message, ModelDescription, Serve

_STATUS_SECONDS = 5.0  # limit for the exit status to arrive after the end of a process's connection


class ModelLoadError(Exception):
    """A model did not load; the message is the handler's traceback, or the reason why there is none."""


class ForkServerExitedError(WorkerError):
    """The fork server has exited, which is not the fault of the model that was being loaded."""

    def __init__(self) -> None:
        super().__init__("the fork server has ended", hint="the server's log has its exit status")


class ModelProcess:
    """A process that loads one model; then it becomes a worker, or forks workers that share the loaded model.

    Attributes:
        process: set by the fork server; None before, and after `serve`.
        description: the handler's description of its tensors.
        shared_bytes: bytes of its weights in memory that it shares with other processes of the model.
    """

    def __init__(self, connection: socket.socket) -> None:
        loop = self._loop = asyncio.get_running_loop()
        self.process: WorkerProcess | None = None
        self.description: ModelDescription = {}
        self.shared_bytes = 0
        self._control = ControlConnection(connection, self._on_message, self._on_close)
        self._forks = ForkRequests(self._control.send)
        self._loaded: asyncio.Future[str] = loop.create_future()
        self._failure: Callable[[], Exception] | None = None

    async def loaded(self, seconds: float | None) -> str:
        """Wait until the model is loaded; return the reason why the process must not be forked, or an empty text.

        Args:
            seconds: time limit for loading; None: no limit.

        Raises:
            ModelLoadError: the model did not load, or not in time.
            ForkServerExitedError: the process was killed with the fork server.
        """
        try:
            return await asyncio.wait_for(asyncio.shield(self._loaded), seconds)
        except asyncio.TimeoutError:
            self.kill()
            raise ModelLoadError(f"the handler did not load within {seconds:.0f} s") from None

    def serve(self, connection: socket.socket, stage: str = "") -> WorkerProcess:
        """Turn this process into a worker, of one stage if ``stage`` is not empty; return it.

        If the process has exited, the other end of the connection is closed, as if the worker had exited at once.
        """
        assert self.process
        self._control.send(Serve(stage), [connection.fileno()])
        self._control.close()
        process, self.process = self.process, None
        return process

    async def fork(self, connection: socket.socket, on_line: Callable[[str], None], stage: str = "") -> WorkerProcess:
        """Return a worker that is a fork of this process, of one stage if ``stage`` is not empty.

        Raises:
            ModelLoadError: this process has exited.
            ForkServerExitedError: the process was killed with the fork server.
        """
        number, future = self._forks.add()
        output = open_output(on_line)
        self._control.send(Fork(number, stage), [connection.fileno(), output])
        os.close(output)
        if self._failure:
            self._forks.fail(self._failure)
        return await future

    @property
    def closed(self) -> bool:
        """Whether the process has exited, or has become a worker."""
        return self._control.closed

    def close(self) -> None:
        """Let the process exit; a worker that it has become or forked continues."""
        self._control.close()
        if self.process:
            self.process.close()
            self.process = None

    def kill(self) -> None:
        """Kill the process at once, with the workers that it has forked."""
        if self.process:
            self.process.kill()

    def on_exit(self, status: int) -> None:
        """Fail all waiting calls, because the process has exited; a negative status is the number of a signal."""
        self._fail(partial(ModelLoadError, f"the process ended {exit_text(status)} while loading"))

    def on_fork_server_exit(self) -> None:
        """Fail all waiting calls, because the process was killed with the fork server."""
        self._fail(ForkServerExitedError)

    def _on_close(self) -> None:
        # The fork server soon reports the exit status, or that it has exited itself.
        self._loop.call_later(_STATUS_SECONDS, self._fail, partial(ModelLoadError, "the process ended while loading"))

    def _fail(self, failure: Callable[[], Exception]) -> None:
        self._failure = self._failure or failure
        fail(self._loaded, failure())
        self._forks.fail(failure)

    def _on_message(self, message: Message, files: list[int]) -> None:
        if isinstance(message, LoadFailed):
            fail(self._loaded, ModelLoadError(message.traceback))
        elif isinstance(message, Loaded):
            self.description = message.description
            self.shared_bytes = message.shared_bytes
            if not self._loaded.done():
                self._loaded.set_result(message.objection)
        elif isinstance(message, Forked):
            self._forks.complete(message, files)


def exit_text(status: int) -> str:
    """Return an exit status in words; a negative one is the number of a signal."""
    return f"by signal {-status}" if status < 0 else f"with exit code {status}"
