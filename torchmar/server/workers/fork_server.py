"""The server's handle of the fork server; its code is `torchmar.worker.process.fork_server`."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

from torchmar.errors import WorkerError
from torchmar.server.background_tasks import BackgroundTasks
from torchmar.server.config.keys import TOKEN_VARIABLES
from torchmar.server.telemetry import logs
from torchmar.server.workers.control_connection import ControlConnection, ForkRequests, fail
from torchmar.server.workers.model_process import ForkServerExitedError, ModelProcess, exit_text
from torchmar.server.workers.output import open_output
from torchmar.worker import START
from torchmar.worker.environment import worker_environment
from torchmar.worker.process.messages import (
    Exited,
    Forked,
    ImportModules,
    Message,
    ModelSpec,
    Ready,
    RunForkServer,
    Spawn,
    to_wire,
)
from torchmar.worker.process.shared_weights import WeightsFile
from torchmar.worker.venvs.folder import Venv

_READY_SECONDS = 120.0
_TRIES = 3  # attempts to start the fork server
_PAUSE = 1.0  # seconds between attempts
_END_SECONDS = 10.0  # time for a fork server to kill the processes below it
# Variables of the server that handlers must not see.
_SECRETS = (
    *("TORCHMAR_INFERENCE_TOKEN", "TORCHMAR_MANAGEMENT_TOKEN", *TOKEN_VARIABLES.values()),
    *("TORCHMAR_KEY", "NOTIFY_SOCKET"),
)


class ForkServer:
    """The parent of all workers, with torch loaded; started at first use, and again if it exits.

    Like each worker, its process is a child of a supervisor and not of the server, see
    `torchmar.worker.process.supervisor`.

    Args:
        environment: environment variables of the workers; default: the server's own, without its secrets.
        packages: folder whose modules precede installed ones; empty: none.
        venv: environment whose interpreter runs workers; None: the server's own.
    """

    def __init__(
        self, environment: Mapping[str, str] | None = None, packages: str = "", venv: Venv | None = None
    ) -> None:
        variables = dict(os.environ if environment is None else environment)
        for name in _SECRETS:
            variables.pop(name, None)
        # At its import in each worker, numpy would start a thread for every core, although torch does the work.
        self._environment = {"OPENBLAS_NUM_THREADS": "1", **worker_environment(variables)}
        self._packages, self._python = packages, sys.executable
        if venv:
            self._environment, self._python = venv.variables(self._environment), str(venv.python)
        if packages:
            before = self._environment.get("PYTHONPATH")
            self._environment["PYTHONPATH"] = os.pathsep.join([packages, *([before] if before else [])])
        # Of the running process:
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._control: ControlConnection | None = None
        self._forks: ForkRequests | None = None
        self._ready: asyncio.Future[None] | None = None
        self._pid: int | None = None
        self._model_processes: dict[int, ModelProcess] = {}
        self._tasks = BackgroundTasks()

    @property
    def pid(self) -> int | None:
        """Its process id; None before it has loaded torch, and after its exit."""
        return self._pid

    async def start(self) -> None:
        """Start the process if it does not run, and wait until torch is loaded.

        Raises:
            WorkerError: the process cannot be started.
        """
        for remaining in reversed(range(_TRIES)):
            if self._control is None or self._control.closed:
                self._open()
            assert self._ready
            try:
                await asyncio.wait_for(asyncio.shield(self._ready), _READY_SECONDS)
            except ForkServerExitedError:
                if not remaining:
                    raise
                await asyncio.sleep(_PAUSE)
            except asyncio.TimeoutError:
                raise WorkerError(f"the fork server has not loaded torch in {_READY_SECONDS:g} s") from None
            else:
                return

    async def spawn(
        self, model: ModelSpec, on_line: Callable[[str], None], weights: WeightsFile | None = None
    ) -> ModelProcess:
        """Return a process that loads a model; see `ModelProcess.loaded`.

        Args:
            model: the model to load.
            on_line: called with each line of the process's output.
            weights: shared file of the model's weights.

        Raises:
            WorkerError: the process cannot be started.
        """
        await self.start()
        assert self._control
        assert self._forks
        parent_end, child_end = socket.socketpair()
        with child_end:
            model_process = ModelProcess(parent_end)
            output = open_output(on_line)
            number, future = self._forks.add()
            self._model_processes[number] = model_process
            files = [child_end.fileno(), output, *([weights.descriptor] if weights else [])]
            self._control.send(Spawn(number, model), files)
            os.close(output)
        try:
            model_process.process = await future
        except BaseException:
            model_process.close()
            raise
        return model_process

    async def prepare(self, modules: list[str]) -> None:
        """Import modules of handlers, so that later model processes inherit them."""
        await self.start()
        if self._control:
            self._control.send(ImportModules(modules))

    def with_packages(self, folder: str, venv: Venv | None = None) -> ForkServer:
        """Return another fork server, for models whose requirements are in a folder or an environment.

        This one has loaded torch and numpy with their imports, which such a model would get in place of its own
        packages.
        """
        return ForkServer(self._environment, folder, venv)

    async def end(self) -> None:
        """End the process as `close` does, without blocking the loop."""
        self._disconnect()
        await asyncio.to_thread(self._wait)

    def close(self) -> None:
        """End the process, and with it all workers and their processes."""
        self._disconnect()
        self._wait()

    def _disconnect(self) -> None:
        self._tasks.cancel()
        if self._control:
            self._control.close()  # this closes the supervisor's lifeline

    def _wait(self) -> None:
        if self._supervisor:
            try:
                self._supervisor.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self._supervisor.kill()
                self._supervisor.wait()

    def _open(self) -> None:
        parent_end, child_end = socket.socketpair()
        output = open_output(lambda line: logs.SERVER.info("fork server: %s", line))
        with child_end:
            message = json.dumps(to_wire(RunForkServer(child_end.fileno())))
            try:
                supervisor = subprocess.Popen(
                    [self._python, str(START), message],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=[child_end.fileno()],
                    env=self._environment,
                    cwd="/",
                    # Not in a new session: the process makes itself the leader of a process group, so that a signal to
                    # the server's group does not prevent it from ending the processes below it. Linux schedules each
                    # session as a group, so that a worker in another session could not yield its core to the
                    # server.
                )
            except OSError as error:
                parent_end.close()
                raise WorkerError(f"{self._python} cannot be started: {error.strerror}") from None
            finally:
                os.close(output)
        self._supervisor = supervisor
        self._ready = asyncio.get_running_loop().create_future()
        self._control = ControlConnection(parent_end, self._on_message, lambda: self._on_exit(supervisor))
        self._forks = ForkRequests(self._control.send)

    def _on_message(self, message: Message, files: list[int]) -> None:
        if isinstance(message, Ready):
            self._on_ready(message)
        elif isinstance(message, Forked):
            assert self._forks
            self._forks.complete(message, files)
        elif isinstance(message, Exited) and (model_process := self._model_processes.pop(message.id, None)):
            model_process.on_exit(message.status)

    def _on_ready(self, message: Ready) -> None:
        assert self._ready
        self._pid = message.pid
        missing = [name for name in message.missing if name != "numpy"]
        if missing and (self._packages or self._python != sys.executable):
            reason = f"workers cannot import {missing[0]} beside the requirements that are installed for the model"
            fail(self._ready, WorkerError(reason, hint="see which versions its requirements ask for"))
        elif missing:
            reason = f"workers cannot import {missing[0]}"
            fail(self._ready, WorkerError(reason, hint="pip install 'torchmar[worker]'"))
        else:
            self._ready.set_result(None)

    def _on_exit(self, supervisor: subprocess.Popen[bytes]) -> None:
        pid, self._pid = self._pid, None
        if self._forks:
            self._forks.fail(ForkServerExitedError)
        model_processes, self._model_processes = self._model_processes, {}
        for model_process in model_processes.values():
            model_process.on_fork_server_exit()
        if self._ready:
            fail(self._ready, ForkServerExitedError())
        self._tasks.start(self._restart(supervisor, pid))

    async def _restart(self, supervisor: subprocess.Popen[bytes], pid: int | None) -> None:
        """Log the exit status, and start another process at once, so that workers can start sooner."""
        status = exit_text(await _exit_status(supervisor))
        if pid is None:  # `start` is waiting, and tries again
            logs.SERVER.error("the fork server has ended %s before it had loaded torch", status)
            return
        logs.SERVER.error("the fork server (process %s) has ended %s; it is restarted", pid, status)
        try:
            await self.start()
        except (WorkerError, OSError) as error:
            logs.SERVER.error("the fork server cannot be restarted: %s", error)


async def _exit_status(supervisor: subprocess.Popen[bytes]) -> int:
    """Return the exit status of a supervisor, which exits shortly after its child."""
    deadline = time.monotonic() + _END_SECONDS
    while (status := supervisor.poll()) is None:
        if time.monotonic() > deadline:
            supervisor.kill()
            return supervisor.wait()
        await asyncio.sleep(0.05)
    return status
