"""The replica's connection to the process that loads the model for all replicas of a version on its node.

The replica that needs it first starts it (`loader_process`); the others find it by its address, an abstract Unix
socket, which ends with it. It is no child of any replica, and ends when no replica is connected. When it ends before,
the workers that it has started end, too: their replicas start it again, and repeat the requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from torchmar.cluster.processes import loader_words
from torchmar.errors import WorkerError
from torchmar.server.telemetry import logs
from torchmar.server.workers.control_connection import ControlConnection, ForkRequests, fail
from torchmar.server.workers.model_process import ForkServerExitedError, ModelLoadError
from torchmar.server.workers.output import open_output
from torchmar.server.workers.pool_options import PoolOptions
from torchmar.server.workers.worker_log import WorkerLog
from torchmar.server.workers.worker_process import WorkerProcess
from torchmar.worker.process.messages import (
    Described,
    Forked,
    LogEntry,
    Message,
    ModelDescription,
    Ready,
    StartFailed,
    StartWorker,
)

_MODULE = "torchmar.cluster.loader_process"
_START_SECONDS = 120.0  # for the process to accept a connection
_TRIES, _PAUSE_SECONDS = 10, 0.2  # to connect: it may end at this moment, since its last replica has
_NAMESPACES = ("mnt", "pid", "user")  # where paths, processes and users are the same
_CREDENTIALS = struct.Struct("3i")  # pid, uid and gid


@dataclass(frozen=True, kw_only=True)
class LoaderSpec:
    """What the process loads, and for whom.

    Attributes:
        key: of the replicas' pool in the directory.
        node_id: Ray's id of the node.
        head: address of the cluster's head.
        group: of the servers, as `torchmar.cluster.processes.group_name` returns it.
        options: of the pool; the folders are those of the node.
        environment: of the workers.
        packages: a folder whose modules precede installed ones; empty: none.
        venv: the folder of the environment whose interpreter runs workers; empty: that of this process.
    """

    key: str
    node_id: str
    head: str
    group: str
    options: PoolOptions
    environment: Mapping[str, str]
    packages: str = ""
    venv: str = ""

    @property
    def address(self) -> str:
        """Where the process listens, in the abstract namespace."""
        namespaces = []
        for name in _NAMESPACES:
            with contextlib.suppress(OSError):
                namespaces.append(os.stat(f"/proc/self/ns/{name}").st_ino)  # noqa: PTH116
        identity = [self.key, self.node_id, self.head, self.options.folder, *namespaces]
        return f"\0torchmar-loader-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]}"

    def to_json(self) -> str:
        """Return what `loader_process` reads."""
        options = asdict(replace(self.options, replica=None))
        return json.dumps({**asdict(replace(self, environment=dict(self.environment))), "options": options})

    @classmethod
    def from_json(cls, text: str) -> LoaderSpec:
        """Return what `to_json` has written."""
        document = json.loads(text)
        document["options"]["devices"] = ()
        return cls(**{**document, "options": PoolOptions(**document["options"])})


def available() -> bool:
    """Return whether the system has abstract sockets, which only Linux has."""
    return sys.platform == "linux"


class NodeLoader:
    """Starts the workers of a replica from what its node has loaded; a `torchmar.server.workers.model_loader.Loader`.

    Args:
        spec: what is loaded.

    Attributes:
        description: of the handler's tensors; empty until a worker has started.
    """

    def __init__(self, spec: LoaderSpec) -> None:
        self.description: ModelDescription = {}
        self._spec = spec
        self._control: ControlConnection | None = None
        self._forks: ForkRequests
        self._greeting: asyncio.Future[int]
        self._logs: dict[int, WorkerLog] = {}
        self._connecting = asyncio.Lock()

    async def start_worker(
        self, connection: socket.socket, log: WorkerLog, *, gpu: int | None, stage: str
    ) -> WorkerProcess:
        """Of `Loader`."""
        control = await self._connect()
        number, future = self._forks.add()
        self._logs[number] = log
        output = open_output(log.output)
        control.send(StartWorker(number, stage), [connection.fileno(), output])
        os.close(output)
        try:
            return await future
        finally:
            self._logs.pop(number, None)

    def release(self) -> None:
        """Of `Loader`; the workers that this replica has end, too."""
        if self._control:
            self._control.close()

    async def _connect(self) -> ControlConnection:
        """Return the connection, which is made if there is none.

        Raises:
            WorkerError: the process cannot be started.
        """
        async with self._connecting:
            for _ in range(_TRIES):
                if self._control and not self._control.closed:
                    return self._control
                self._greeting = asyncio.get_running_loop().create_future()
                control = ControlConnection(await self._open(), self._on_message, self._on_close)
                self._control, self._forks = control, ForkRequests(control.send)
                try:
                    await asyncio.wait_for(asyncio.shield(self._greeting), _START_SECONDS)
                except ForkServerExitedError:
                    await asyncio.sleep(_PAUSE_SECONDS)
                except asyncio.TimeoutError:
                    control.close()
                    raise WorkerError(
                        f"the node's loader of the model has not started in {_START_SECONDS:g} s"
                    ) from None
        raise WorkerError("the node's loader of the model ends at once", hint="the server's log has its output")

    async def _open(self) -> socket.socket:
        """Return a connection to the process, which is started if there is none."""
        address = self._spec.address
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.connect(address)
                if not is_of_this_user(connection):
                    raise WorkerError("a process of another user has the address of the node's loader of the model")
            except ConnectionRefusedError:
                connection.close()
            except BaseException:
                connection.close()
                raise
            else:
                return connection
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
                try:
                    listener.bind(address)
                except OSError as error:
                    if error.errno != errno.EADDRINUSE:
                        raise
                    await asyncio.sleep(_PAUSE_SECONDS)  # another replica has just begun to start it
                    continue
                listener.listen()
                await self._start(listener)

    async def _start(self, listener: socket.socket) -> None:
        """Start the process, which has a listening socket from now on."""
        spec = self._spec
        # Of warnings: a replica passes nothing else of its server's log on to its front.
        output = open_output(lambda line: logs.SERVER.warning("the node's loader of the model: %s", line))
        words = [sys.executable, "-m", _MODULE, *loader_words(spec.head, spec.group), str(listener.fileno())]
        try:
            with tempfile.TemporaryFile("w+") as described:
                described.write(spec.to_json())
                described.seek(0)
                process = subprocess.Popen(
                    words, stdin=described, stdout=output, stderr=output, pass_fds=[listener.fileno()], cwd="/"
                )
        except OSError as error:
            raise WorkerError(f"{sys.executable} cannot be started: {error.strerror}") from None
        finally:
            os.close(output)
        await asyncio.to_thread(process.wait)  # the process that goes on is a child of this one

    def _on_message(self, message: Message, files: Sequence[int]) -> None:
        if isinstance(message, Ready):
            if not self._greeting.done():
                self._greeting.set_result(message.pid)
        elif isinstance(message, Described):
            self.description = message.description
        elif isinstance(message, Forked):
            self._forks.complete(message, files)
        elif isinstance(message, StartFailed):
            self._forks.fail_one(message.id, _error(message))
        elif isinstance(message, LogEntry):
            if log := self._logs.get(message.id):
                log.server(message.level, message.text)
            else:
                logs.SERVER.log(message.level, "%s", message.text)

    def _on_close(self) -> None:
        if self._greeting.done():  # otherwise it has ended because no other replica was connected
            logs.SERVER.warning("the node's loader of the model has ended; its workers end, and are started again")
        fail(self._greeting, ForkServerExitedError())
        self._forks.fail(ForkServerExitedError)


def is_of_this_user(connection: socket.socket) -> bool:
    """Return whether the other end of a Unix socket is a process of this user."""
    if sys.platform != "linux":
        return False
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(credentials)[1] == os.getuid())


def _error(message: StartFailed) -> Exception:
    if message.cause == "model":
        return ModelLoadError(message.text)
    return ForkServerExitedError() if message.cause == "fork server" else WorkerError(message.text)
