"""The process that loads the model of a version once for all its replicas on a node, and forks their workers.

``python -m torchmar.cluster.loader_process ... DESCRIPTOR``, with a `LoaderSpec` as JSON on the standard input, and the
number of the inherited listening socket. It has a fork server of the built-in server, which decides in the same way
whether workers are forks, and shares weights in the same way. A worker is killed when the connection of its replica
closes, as it does when the replica is killed; the process ends when no replica is connected.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from torchmar.cluster import log_lines
from torchmar.cluster.node_loader import LoaderSpec, is_of_this_user
from torchmar.errors import WorkerError
from torchmar.server.background_tasks import BackgroundTasks
from torchmar.server.telemetry import logs
from torchmar.server.workers.control_connection import ControlConnection
from torchmar.server.workers.fork_server import ForkServer
from torchmar.server.workers.model_loader import ModelLoader
from torchmar.server.workers.model_process import ForkServerExitedError, ModelLoadError
from torchmar.server.workers.worker_process import WorkerProcess
from torchmar.worker.process.messages import Described, Forked, Kill, LogEntry, Message, Ready, StartFailed, StartWorker
from torchmar.worker.venvs.folder import Venv

_UNUSED_SECONDS = 60.0  # limit until the first replica connects, which may have been killed


def main() -> None:
    """Run the process that the command line and the standard input describe, detached from the caller."""
    listener = socket.socket(fileno=int(sys.argv[-1]))
    spec = LoaderSpec.from_json(sys.stdin.read())
    # Ray kills the children of a replica that ends, and may kill its process group. No new session, for the reason in
    # `torchmar.server.workers.fork_server`.
    os.setpgid(0, 0)
    if os.fork():
        os._exit(0)
    asyncio.run(_LoaderProcess(spec, listener).run())


class _LoaderProcess:
    def __init__(self, spec: LoaderSpec, listener: socket.socket) -> None:
        # It needs no locks: the replicas hold those of folder and environment.
        self._fork_server = ForkServer(spec.environment, spec.packages, Venv(Path(spec.venv)) if spec.venv else None)
        self._spec, self._listener = spec, listener
        self.loader: ModelLoader
        self.tasks = BackgroundTasks(lambda error: logs.SERVER.error("the node's loader has failed", exc_info=error))
        self._replicas: set[_Replica] = set()
        self._unused = asyncio.Event()

    async def run(self) -> None:
        """Serve until no replica is connected."""
        loop = asyncio.get_running_loop()
        self.loader = ModelLoader(self._fork_server, self._spec.options)
        handler = _Forwarding(self)
        for logger in (logs.SERVER, logs.WORKERS):
            logger.handlers, logger.propagate = [handler], False
            logger.setLevel(logging.INFO)
        self._listener.setblocking(False)
        loop.add_reader(self._listener.fileno(), self._accept)
        loop.call_later(_UNUSED_SECONDS, self._end_if_unused)
        await self._unused.wait()
        loop.remove_reader(self._listener.fileno())
        self._listener.close()
        await self.tasks.close()
        self.loader.release()
        await self._fork_server.end()

    def log(self, level: int, text: str) -> None:
        """Send a sentence to the log of one of the replicas."""
        for replica in self._replicas:
            replica.send(LogEntry(0, level, text))
            return

    def remove(self, replica: _Replica) -> None:
        """Remove a replica whose connection is closed."""
        self._replicas.discard(replica)
        self._end_if_unused()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            if is_of_this_user(connection):
                self._replicas.add(_Replica(connection, self))
            else:
                connection.close()

    def _end_if_unused(self) -> None:
        if not self._replicas:
            self._accept()  # a replica that has connected at this moment
        if not self._replicas:
            self._unused.set()


class _Replica:
    """A connected replica, and its workers."""

    def __init__(self, connection: socket.socket, process: _LoaderProcess) -> None:
        self._process = process
        self._workers: dict[int, WorkerProcess] = {}
        self._control = ControlConnection(connection, self._on_message, self._on_close)
        self.send(Ready(os.getpid(), []))

    def send(self, message: Message, files: Sequence[int] = ()) -> None:
        """Send a message; nothing happens if the replica has ended."""
        self._control.send(message, files)

    def _on_message(self, message: Message, files: Sequence[int]) -> None:
        if isinstance(message, StartWorker):
            self._process.tasks.start(self._start(message, *files))
        elif isinstance(message, Kill) and (worker := self._workers.get(message.id)):
            worker.kill()

    async def _start(self, message: StartWorker, descriptor: int, output: int) -> None:
        loader, log = self._process.loader, _Log(self, message.id, output)
        try:
            with socket.socket(fileno=descriptor) as connection:
                worker = await loader.start_worker(connection, log, gpu=None, stage=message.stage)
        except ModelLoadError as error:
            self.send(StartFailed(message.id, "model", str(error)))
        except ForkServerExitedError as error:
            self.send(StartFailed(message.id, "fork server", str(error)))
        except (WorkerError, OSError) as error:
            self.send(StartFailed(message.id, "worker", str(error)))
        else:
            if self._control.closed:
                worker.kill()
                worker.close()
                return
            self._workers = {number: process for number, process in self._workers.items() if process.runs}
            self._workers[message.id] = worker
            self.send(Described(loader.description))
            self.send(Forked(message.id, worker.pid), worker.files)

    def _on_close(self) -> None:
        for worker in self._workers.values():
            worker.kill()
            worker.close()
        self._workers.clear()
        self._process.remove(self)


class _Log:
    """The log of a worker, in its replica; a `torchmar.server.workers.model_loader.RequestLog`."""

    def __init__(self, replica: _Replica, number: int, output: int) -> None:
        self._replica, self._number, self._output = replica, number, output
        os.set_blocking(output, False)  # a replica that does not read its output must not block the others

    def output(self, line: str) -> None:
        """Implement `RequestLog`."""
        with contextlib.suppress(OSError):  # the replica has ended, or does not read
            os.write(self._output, f"{line}\n".encode())

    def server(self, level: int, text: str) -> None:
        """Implement `RequestLog`."""
        self._replica.send(LogEntry(self._number, level, text))

    def __del__(self) -> None:
        os.close(self._output)


class _Forwarding(logging.Handler):
    """Sends the log records of this process to a replica."""

    def __init__(self, process: _LoaderProcess) -> None:
        super().__init__()
        self._process = process

    def emit(self, record: logging.LogRecord) -> None:
        """Implement `logging.Handler`."""
        self._process.log(record.levelno, log_lines.text_of(record))


if __name__ == "__main__":
    main()
