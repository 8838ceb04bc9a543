"""The processes that workers are: a nursery with torch loaded, a cradle for a model, forks of it.

The other side is `torchmar.worker.process`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from torchmar.errors import WorkerError
from torchmar.server import logs
from torchmar.server.config_keys import TOKEN_VARIABLES
from torchmar.worker import START
from torchmar.worker.environment import worker_environment
from torchmar.worker.process.lines import Conversation, Parser
from torchmar.worker.process.shared_weights import WeightsFile

Say = Callable[[str], None]  # is told each line that a process prints
_READY_SECONDS = 120.0
# What the server knows and handlers have no use for.
_SECRETS = (
    *("TORCHMAR_INFERENCE_TOKEN", "TORCHMAR_MANAGEMENT_TOKEN", *TOKEN_VARIABLES.values()),
    *("TORCHMAR_KEY", "NOTIFY_SOCKET"),
)


class LoadFailed(Exception):
    """A model did not load; the message is the handler's traceback, or why there is none."""


class Nursery:
    """The warm parent of all workers; started when it is first needed, and again should it die.

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
        self._talk: _Talk | None = None
        self._ready: asyncio.Future[None] | None = None
        self._waiting: dict[int, asyncio.Future[int]] = {}
        self._ended: dict[int, Callable[[int], None]] = {}
        self._count = 0

    async def start(self) -> None:
        """Start it if it does not run, and wait until torch is loaded.

        Raises:
            WorkerError: it cannot be started.
        """
        if self._talk is None or self._talk.gone:
            self._open()
        assert self._ready
        await asyncio.wait_for(asyncio.shield(self._ready), _READY_SECONDS)

    async def grow(self, job: dict[str, Any], say: Say, weights: WeightsFile | None = None) -> Cradle:
        """Return a process that loads the model of a job; see `Cradle.loaded`.

        Args:
            job: see `torchmar.worker.process.cradle`.
            say: is told each line that the process prints.
            weights: the file that the workers of one model have in common.
        """
        await self.start()
        assert self._talk
        ours, theirs = socket.socketpair()
        with theirs:
            cradle = Cradle(ours)
            output = listen_to_output(say)
            number = self._next()
            files = [theirs.fileno(), output, *([weights.descriptor] if weights else [])]
            self._talk.send({"grow": number, "job": job}, files)
            os.close(output)
        cradle.pid = await self._waiting[number]
        self._ended[cradle.pid] = cradle.has_ended
        return cradle

    async def prepare(self, modules: list[str]) -> None:
        """Have modules imported that handlers need, for those that are grown later."""
        await self.start()
        if self._talk:
            self._talk.send({"import": modules})

    def with_packages(self, folder: str) -> Nursery:
        """Return another one for models whose requirements are installed in a folder.

        Here torch and numpy are loaded already, and what they import: a model would get these in place of its own.
        """
        return Nursery(self._environment, folder)

    async def end(self) -> None:
        """End it as `close` does, while the loop goes on."""
        if self._talk:
            self._talk.close()
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """End it, and with it every worker."""
        if self._talk:
            self._talk.close()
        if self._process:
            try:
                self._process.wait(0.5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    @property
    def pid(self) -> int | None:
        """Its process; None before it is started."""
        return self._process.pid if self._process else None

    def _open(self) -> None:
        if self._process:
            self.close()
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        output = listen_to_output(lambda line: logs.SERVER.info("nursery: %s", line))
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
                )
            except OSError as error:
                raise WorkerError(f"{sys.executable} cannot be started: {error.strerror}") from None
            finally:
                os.close(output)
        self._ready = loop.create_future()
        self._talk = _Talk(ours, self._hear, self._lost)

    def _next(self) -> int:
        self._count += 1
        self._waiting[self._count] = asyncio.get_running_loop().create_future()
        return self._count

    def _hear(self, message: dict[str, Any]) -> None:
        if "ready" in message:
            assert self._ready
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
        elif "grown" in message:
            self._waiting.pop(message["grown"]).set_result(message["pid"])
        elif "ended" in message and (tell := self._ended.pop(message["pid"], None)):
            tell(message["status"])

    def _lost(self) -> None:
        failure = WorkerError("the parent of the workers has ended")
        for future in self._waiting.values():
            _fail(future, failure)
        if self._ready:
            _fail(self._ready, failure)
        self._waiting.clear()
        for tell in list(self._ended.values()):
            tell(-9)
        self._ended.clear()


class Cradle:
    """A process that loads one model; then it is a worker, or forks workers that share what it loaded.

    Attributes:
        description: what the handler says of its tensors; see `torchmar.worker.process.describing`.
        pid: of the process.
        shared_bytes: of its weights, that it shares with other processes that have loaded the model.
    """

    def __init__(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self.pid = 0
        self.shared_bytes = 0
        self._talk = _Talk(connection, self._hear, lambda: self.has_ended(-1))
        self.description: dict[str, Any] = {}
        self._loaded: asyncio.Future[str] = loop.create_future()
        self._forks: dict[int, asyncio.Future[int]] = {}
        self._count = 0

    async def loaded(self, seconds: float) -> str:
        """Wait until the model is loaded; return why forks would not be right, empty if they would.

        Raises:
            LoadFailed: it did not load, or not in time.
        """
        try:
            return await asyncio.wait_for(asyncio.shield(self._loaded), seconds)
        except asyncio.TimeoutError:
            self.kill()
            raise LoadFailed(f"the handler did not load within {seconds:.0f} s") from None

    def serve(self, connection: socket.socket, stage: str = "") -> int:
        """Have this process be a worker, of one stage if it is named; return its pid."""
        self._talk.send({"serve": {}, "stage": stage}, [connection.fileno()])
        return self.pid

    async def fork(self, connection: socket.socket, say: Say, stage: str = "") -> int:
        """Return the pid of a worker, of one stage if it is named, that shares what was loaded.

        Raises:
            LoadFailed: this process has ended.
        """
        self._count += 1
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
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

    def kill(self) -> None:
        """End it at once, and with it the workers that it forked."""
        if self.pid and not self.gone:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, 9)

    def has_ended(self, status: int) -> None:
        """Take note that the process has ended."""
        how = f"by signal {-status}" if status < -1 else f"with exit code {status}" if status >= 0 else "by itself"
        failure = LoadFailed(f"the process ended {how} while loading")
        _fail(self._loaded, failure)
        for future in self._forks.values():
            _fail(future, failure)
        self._forks.clear()

    def _hear(self, message: dict[str, Any]) -> None:
        if "failed" in message:
            _fail(self._loaded, LoadFailed(message["failed"]))
        elif "loaded" in message:
            self.description = message["description"]
            self.shared_bytes = message["shared_bytes"]
            if not self._loaded.done():
                self._loaded.set_result(message["why"])
        elif "forked" in message and (future := self._forks.pop(message["forked"], None)):
            future.set_result(message["pid"])


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # nobody may be waiting


class _Talk:
    """A conversation with a process, in the server's loop."""

    def __init__(
        self, connection: socket.socket, hear: Callable[[dict[str, Any]], None], lost: Callable[[], None]
    ) -> None:
        self._connection, self._hear, self._lost = connection, hear, lost
        self._parser = Parser()
        self._out = Conversation(connection)
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
            data = self._connection.recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            self._lost()
            return
        for message, _ in self._parser.feed(data):
            self._hear(message)


def listen_to_output(say: Say) -> int:
    """Return the writing end of a pipe whose lines are told; the caller closes it when a process has it."""
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


_LONGEST = 64 << 10  # bytes of a line; a longer one is told in pieces
