"""The processes that workers are: a fork server with torch loaded, a model process for a model, forks of it.

The other side is `torchmar.worker.process`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import psutil

from torchmar.errors import WorkerError
from torchmar.server.config.keys import TOKEN_VARIABLES
from torchmar.server.telemetry import logs
from torchmar.worker import START
from torchmar.worker.environment import worker_environment
from torchmar.worker.process.control_channel import MOST_FILES, ControlWriter, MessageParser
from torchmar.worker.process.shared_weights import WeightsFile

Say = Callable[[str], None]  # called with each line that a process prints
_READY_SECONDS = 120.0
_TRIES = 3  # to start the parent of the workers, or to load a model in one that lives
_PAUSE = 1.0  # seconds between tries
_END_SECONDS = 10.0  # that a parent has to end what is below it
_STATUS_SECONDS = 5.0  # from when a process has closed its connection until its exit status is known
# What the server knows and handlers have no use for.
_SECRETS = (
    *("TORCHMAR_INFERENCE_TOKEN", "TORCHMAR_MANAGEMENT_TOKEN", *TOKEN_VARIABLES.values()),
    *("TORCHMAR_KEY", "NOTIFY_SOCKET"),
)


class LoadFailed(Exception):
    """A model did not load; the message is the handler's traceback, or why there is none."""


class ParentEnded(WorkerError):
    """The parent of the workers has ended, through no fault of the model that was being loaded."""

    def __init__(self) -> None:
        super().__init__("the parent of the workers has ended", hint="the server's log has its exit status")


class WorkerProcess:
    """The process of a worker, which is never taken for another one that gets its number later.

    Args:
        pid: its number, for people and statistics.
        handle: a pidfd, opened while the process cannot have been reaped; empty where the system has none.
        kill: has the parent that will reap it kill it.
    """

    def __init__(self, pid: int, handle: list[int], kill: Callable[[], None]) -> None:
        self.pid = pid
        self._handle = handle[0] if handle else -1
        self._kill = kill

    def kill(self) -> None:
        """End it at once; nothing happens if it has ended."""
        if self._handle < 0:
            self._kill()
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    def memory(self) -> int:
        """Return the bytes that it has resident; 0 if it has ended."""
        with contextlib.suppress(psutil.Error, ValueError):
            resident = int(psutil.Process(self.pid).memory_info().rss)
            if self._runs():  # and so it was this process that was measured
                return resident
        return 0

    def close(self) -> None:
        """Forget the process, whose number may be another's from now on."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
        self._kill = _nothing

    def _runs(self) -> bool:
        if self._handle < 0:
            return True
        poll = select.poll()
        poll.register(self._handle, select.POLLIN)
        return not poll.poll(0)

    __del__ = close


def _nothing() -> None:
    pass


class ForkServer:
    """The warm parent of all workers; started when it is first needed, and again should it die.

    Its process is not a child of the server but of a supervisor, as that of every worker: see
    `torchmar.worker.process.supervisor`.

    Args:
        environment: of the workers; default: the server's own without its secrets.
        packages: a folder whose modules go before all that are installed; empty: none.
    """

    def __init__(self, environment: Mapping[str, str] | None = None, packages: str = "") -> None:
        chosen = dict(os.environ if environment is None else environment)
        for name in _SECRETS:
            chosen.pop(name, None)
        # numpy starts a thread for every core when it is imported, in every worker; torch does the work here.
        self._environment = {"OPENBLAS_NUM_THREADS": "1", **worker_environment(chosen)}
        self._packages = packages
        if packages:
            known = self._environment.get("PYTHONPATH")
            self._environment["PYTHONPATH"] = os.pathsep.join([packages, *([known] if known else [])])
        self._process: subprocess.Popen[bytes] | None = None
        self._talk: _ControlConnection | None = None
        self._ready: asyncio.Future[None] | None = None
        self._pid: int | None = None
        self._waiting: dict[int, asyncio.Future[WorkerProcess]] = {}
        self._model_processes: dict[int, ModelProcess] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._count = 0

    async def start(self) -> None:
        """Start it if it does not run, and wait until torch is loaded.

        Raises:
            WorkerError: it cannot be started.
        """
        for left in reversed(range(_TRIES)):
            if self._talk is None or self._talk.gone:
                self._open()
            assert self._ready
            try:
                await asyncio.wait_for(asyncio.shield(self._ready), _READY_SECONDS)
            except ParentEnded:
                if not left:
                    raise
                await asyncio.sleep(_PAUSE)
            except asyncio.TimeoutError:
                raise WorkerError(f"the parent of the workers has not loaded torch in {_READY_SECONDS:g} s") from None
            else:
                return

    async def spawn(self, job: dict[str, Any], say: Say, weights: WeightsFile | None = None) -> ModelProcess:
        """Return a process that loads the model of a job; see `ModelProcess.loaded`.

        Args:
            job: see `torchmar.worker.process.model_process`.
            say: called with each line that the process prints.
            weights: the file that the workers of one model have in common.

        Raises:
            WorkerError: it cannot be started.
        """
        await self.start()
        assert self._talk
        ours, theirs = socket.socketpair()
        with theirs:
            model_process = ModelProcess(ours)
            output = listen_to_output(say)
            number = self._next()
            self._model_processes[number] = model_process
            files = [theirs.fileno(), output, *([weights.descriptor] if weights else [])]
            self._talk.send({"spawn": number, "job": job}, files)
            os.close(output)
        try:
            model_process.process = await self._waiting[number]
        except BaseException:
            model_process.close()
            raise
        return model_process

    async def prepare(self, modules: list[str]) -> None:
        """Have modules imported that handlers need, for those that are grown later."""
        await self.start()
        if self._talk:
            self._talk.send({"import": modules})

    def with_packages(self, folder: str) -> ForkServer:
        """Return another one for models whose requirements are installed in a folder.

        Here torch and numpy are loaded already, and what they import: a model would get these in place of its own.
        """
        return ForkServer(self._environment, folder)

    async def end(self) -> None:
        """End it as `close` does, while the loop goes on."""
        self._disconnect()
        await asyncio.to_thread(self._wait)

    def close(self) -> None:
        """End it, and with it every worker and all that these have started."""
        self._disconnect()
        self._wait()

    def _disconnect(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._talk:
            self._talk.close()  # which is its supervisor's lifeline

    def _wait(self) -> None:
        if self._process:
            try:
                self._process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    @property
    def pid(self) -> int | None:
        """Its process; None before it has loaded torch, and once it has ended."""
        return self._pid

    def _open(self) -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        output = listen_to_output(lambda line: logs.SERVER.info("fork server: %s", line))
        with theirs:
            command = [sys.executable, str(START), json.dumps({"control": theirs.fileno()})]
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=[theirs.fileno()],
                    env=self._environment,
                    cwd="/",
                    # Not in a session of its own: it makes itself the leader of a process group, so that a signal to
                    # the server's group leaves it to end what is below it. Linux schedules each session as a group,
                    # and a worker that yields its core to the server would yield nothing from another session.
                )
            except OSError as error:
                raise WorkerError(f"{sys.executable} cannot be started: {error.strerror}") from None
            finally:
                os.close(output)
        self._ready = loop.create_future()
        process = self._process
        self._talk = _ControlConnection(ours, self._hear, lambda: self._lost(process))

    def _next(self) -> int:
        self._count += 1
        self._waiting[self._count] = asyncio.get_running_loop().create_future()
        return self._count

    def _hear(self, message: dict[str, Any], files: list[int]) -> None:
        if "ready" in message:
            assert self._ready
            self._pid = message["pid"]
            missing = [name for name in message["missing"] if name != "numpy"]
            if missing and self._packages:
                why = f"workers cannot import {missing[0]} beside the requirements that are installed for the model"
                self._ready.set_exception(WorkerError(why, hint="see which versions its requirements ask for"))
            elif missing:
                self._ready.set_exception(
                    WorkerError(f"workers cannot import {missing[0]}", hint="pip install 'torchmar[worker]'")
                )
            else:
                self._ready.set_result(None)
        elif "spawned" in message:
            number, talk = message["spawned"], self._talk
            assert talk
            process = WorkerProcess(message["pid"], files, lambda: talk.send({"kill": number}))
            _give(self._waiting.pop(number), process)
        elif "ended" in message and (model_process := self._model_processes.pop(message["ended"], None)):
            model_process.has_ended(message["status"])

    def _lost(self, process: subprocess.Popen[bytes]) -> None:
        pid, self._pid = self._pid, None
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            _fail(future, ParentEnded())
        model_processes, self._model_processes = self._model_processes, {}
        for model_process in model_processes.values():
            model_process.has_lost_parent()
        if self._ready:
            _fail(self._ready, ParentEnded())
        task = asyncio.get_running_loop().create_task(self._replace(process, pid))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _replace(self, process: subprocess.Popen[bytes], pid: int | None) -> None:
        """Log how a parent has ended, and start another one: not when it is needed, the workers come up sooner so."""
        how = _how(await _status(process))
        if pid is None:  # who started it is waiting, and tries again
            logs.SERVER.error("the parent of the workers has ended %s before it had loaded torch", how)
            return
        logs.SERVER.error("the parent of the workers (process %s) has ended %s; another one is started", pid, how)
        try:
            await self.start()
        except (WorkerError, OSError) as error:
            logs.SERVER.error("the parent of the workers cannot be started again: %s", error)


async def _status(process: subprocess.Popen[bytes]) -> int:
    """Return the exit status of a supervisor, which ends soon after the process below it."""
    until = time.monotonic() + _END_SECONDS
    while (status := process.poll()) is None:
        if time.monotonic() > until:
            process.kill()
            return process.wait()
        await asyncio.sleep(0.05)
    return status


def _how(status: int) -> str:
    return f"by signal {-status}" if status < 0 else f"with exit code {status}"


class ModelProcess:
    """A process that loads one model; then it is a worker, or forks workers that share what it loaded.

    Attributes:
        description: what the handler says of its tensors; see `torchmar.worker.process.describing`.
        pid: of the process.
        shared_bytes: of its weights, that it shares with other processes that have loaded the model.
    """

    def __init__(self, connection: socket.socket) -> None:
        loop = self._loop = asyncio.get_running_loop()
        self.process: WorkerProcess | None = None
        self.shared_bytes = 0
        self._talk = _ControlConnection(connection, self._hear, self._lost)
        self.description: dict[str, Any] = {}
        self._loaded: asyncio.Future[str] = loop.create_future()
        self._forks: dict[int, asyncio.Future[WorkerProcess]] = {}
        self._count = 0

    async def loaded(self, seconds: float | None) -> str:
        """Wait until the model is loaded; return why forks would not be right, empty if they would.

        Raises:
            LoadFailed: it did not load, or not in time.
            ParentEnded: it was killed with the parent of the workers.
        """
        try:
            return await asyncio.wait_for(asyncio.shield(self._loaded), seconds)
        except asyncio.TimeoutError:
            self.kill()
            raise LoadFailed(f"the handler did not load within {seconds:.0f} s") from None

    def serve(self, connection: socket.socket, stage: str = "") -> WorkerProcess:
        """Have this process be a worker, of one stage if it is named; return it."""
        assert self.process
        self._talk.send({"serve": {}, "stage": stage}, [connection.fileno()])
        process, self.process = self.process, None
        return process

    async def fork(self, connection: socket.socket, say: Say, stage: str = "") -> WorkerProcess:
        """Return the process of a worker, of one stage if it is named, that shares what was loaded.

        Raises:
            LoadFailed: this process has ended.
            ParentEnded: it was killed with the parent of the workers.
        """
        self._count += 1
        future: asyncio.Future[WorkerProcess] = asyncio.get_running_loop().create_future()
        self._forks[self._count] = future
        output = listen_to_output(say)
        self._talk.send({"fork": self._count, "stage": stage}, [connection.fileno(), output])
        os.close(output)
        return await future

    @property
    def gone(self) -> bool:
        """Whether the process has ended, or is a worker now."""
        return self._talk.gone

    def close(self) -> None:
        """Let the process end; a worker that it has become goes on."""
        self._talk.close()
        self._forget()

    def kill(self) -> None:
        """End it at once, and with it the workers that it forked."""
        if self.process and not self.gone:
            self.process.kill()

    def has_ended(self, status: int) -> None:
        """Fail what waits for the process, which has ended with an exit status."""
        self._fail(lambda: LoadFailed(f"the process ended {_how(status)} while loading"))

    def has_lost_parent(self) -> None:
        """Fail what waits for the process, which has ended because the parent of the workers has."""
        self._fail(ParentEnded)

    def _forget(self) -> None:
        if self.process:
            self.process.close()
            self.process = None

    def _lost(self) -> None:
        self._forget()
        # Its parent reports how it has ended, or has ended, too; whichever it is, it is heard of soon.
        self._loop.call_later(_STATUS_SECONDS, self._fail, partial(LoadFailed, "the process ended while loading"))

    def _fail(self, failure: Callable[[], Exception]) -> None:
        _fail(self._loaded, failure())
        for future in self._forks.values():
            _fail(future, failure())
        self._forks.clear()

    def _hear(self, message: dict[str, Any], files: list[int]) -> None:
        if "failed" in message:
            _fail(self._loaded, LoadFailed(message["failed"]))
        elif "loaded" in message:
            self.description = message["description"]
            self.shared_bytes = message["shared_bytes"]
            if not self._loaded.done():
                self._loaded.set_result(message["why"])
        elif "forked" in message:
            number, talk = message["forked"], self._talk
            process = WorkerProcess(message["pid"], files, lambda: talk.send({"kill": number}))
            _give(self._forks.pop(number, None), process)


def _give(future: asyncio.Future[WorkerProcess] | None, process: WorkerProcess) -> None:
    """Give a process to its waiter; it is killed if the wait was cancelled."""
    if future is None or future.done():
        process.kill()
        process.close()
    else:
        future.set_result(process)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # there may be no waiter


class _ControlConnection:
    """A conversation with a process, in the server's loop."""

    def __init__(
        self,
        connection: socket.socket,
        hear: Callable[[dict[str, Any], list[int]], None],
        lost: Callable[[], None],
    ) -> None:
        self._connection, self._hear, self._lost = connection, hear, lost
        self._parser = MessageParser()
        self._out = ControlWriter(connection)
        self.gone = False
        # Reading never blocks, since it is asked for when there is something; what is written is short.
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(connection.fileno(), self._read)

    def send(self, message: dict[str, Any], files: list[int] | None = None) -> None:
        if not self.gone:
            self._out.send(message, files)

    def close(self) -> None:
        if not self.gone:
            self.gone = True
            self._loop.remove_reader(self._connection.fileno())
            self._connection.close()

    def _read(self) -> None:
        try:
            room = socket.CMSG_SPACE(MOST_FILES * 4)
            data, ancillary, _, _ = self._connection.recvmsg(65536, room, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        if not data:
            self.close()
            self._lost()
            return
        for message, files in self._parser.feed(data, ancillary):
            self._hear(message, files)


def listen_to_output(say: Say) -> int:
    """Return the writing end of a pipe whose lines go to the callback; the caller closes it when a process has it."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    loop = asyncio.get_running_loop()
    left = b""

    def take() -> None:
        nonlocal left
        try:
            data = os.read(read, 65536)
        except BlockingIOError:
            return
        *lines, left = (left + data).split(b"\n")
        if len(left) > _LONGEST:
            lines, left = [*lines, left], b""
        if not data:
            loop.remove_reader(read)
            os.close(read)
            lines += [left] if left else []
        for line in lines:
            say(line.decode("utf-8", "replace"))

    loop.add_reader(read, take)
    return write


_LONGEST = 64 << 10  # bytes of a line; a longer one is passed in pieces
