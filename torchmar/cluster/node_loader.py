"""The replica's connection to the process that loads the model for all replicas of its version on its node.

The first replica starts this process (`loader_process`); the others find it by its address, an abstract Unix socket,
which ends with the process. It is no child of any replica, and ends when no replica is connected. If it ends earlier,
its workers end too: the replicas then start it again, and repeat the requests.
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
_START_SECONDS = 120.0  # limit for the process to accept a connection
_TRIES, _PAUSE_SECONDS = 10, 0.2  # attempts to connect: the process may be about to end with its last replica
_NAMESPACES = ("mnt", "pid", "user")  # paths, processes and users have the same meaning in the same namespaces
_CREDENTIALS = struct.Struct("3i")  # pid, uid and gid


@dataclass(frozen=True, kw_only=True)
class LoaderSpec:
    """The model that the process loads, with its replicas.

    Attributes:
        key: key of the replicas' pool in the directory.
        node_id: Ray's id of the node.
        head: address of the cluster's head.
        group: name of the group of servers, from `torchmar.cluster.processes.group_name`.
        options: options of the pool, with the folders of the node.
        environment: environment variables of the workers.
        packages: a folder whose modules precede installed ones; empty: none.
        venv: folder of the environment whose interpreter runs workers; empty: that of this process.
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
        """The address of the process, in the abstract namespace."""
        namespaces = []
        for name in _NAMESPACES:
            with contextlib.suppress(OSError):
                namespaces.append(os.stat(f"/proc/self/ns/{name}").st_ino)  # noqa: PTH116
        identity = [self.key, self.node_id, self.head, self.options.folder, *namespaces]
        return f"\0torchmar-loader-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]}"

    def to_json(self) -> str:
        """Return the specification as JSON, for `loader_process`."""
        options = asdict(replace(self.options, replica=None))
        return json.dumps({**asdict(replace(self, environment=dict(self.environment))), "options": options})

    @classmethod
    def from_json(cls, text: str) -> LoaderSpec:
        """Return a specification from the JSON of `to_json`."""
        document = json.loads(text)
        document["options"]["devices"] = ()
        return cls(**{**document, "options": PoolOptions(**document["options"])})


def available() -> bool:
    """Return whether the system has abstract sockets; only Linux does."""
    return sys.platform == "linux"


class NodeLoader:
    """Starts the workers of a replica in the loader process of its node; a
    `torchmar.server.workers.model_loader.Loader`.

    Args:
        spec: model to load.

    Attributes:
        description: the handler's description of its tensors; empty until a worker has started.
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
        """Implement `Loader`."""
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
        """Implement `Loader`; the workers of this replica end too."""
        if self._control:
            self._control.close()

    async def _connect(self) -> ControlConnection:
        """Return the connection; connect first if there is none.

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
        """Return a connection to the process; start it first if it does not run."""
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
                    await asyncio.sleep(_PAUSE_SECONDS)  # another replica is just starting it
                    continue
                listener.listen()
                await self._start(listener)

    async def _start(self, listener: socket.socket) -> None:
        """Start the process, which inherits a listening socket."""
        spec = self._spec
        # Its output becomes warnings, because a replica sends only warnings of its server's log to its front.
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
        await asyncio.to_thread(process.wait)  # the process detaches itself: this child only starts it

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
        if self._greeting.done():  # without a greeting, it has ended because no other replica was connected
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
