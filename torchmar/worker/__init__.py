"""Run an archive in a worker process, as a server does, and send it batches.

The process loads the archive with TorchServe's Python loader and service classes and
runs batches; it needs no server and no Java::

    with Worker(Path("model_store/digits-1.0.mar")) as worker:
        (response,) = worker.predict_batch([exchange.read(Path("seven.png"))])
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torchmar.archive import Archive
from torchmar.errors import LoadError, WorkerError
from torchmar.exchange import Request, Response
from torchmar.worker.environment import worker_environment
from torchmar.worker.process import frames
from torchmar.worker.process.messages import (
    Batch,
    LoadFailed,
    ModelSpec,
    ResponseHead,
    RunWorker,
    WorkerReady,
    from_wire,
    to_wire,
)

if TYPE_CHECKING:
    from torchmar.recipe import Runtime
    from torchmar.worker.venvs.folder import Venv

__all__ = ["START", "Worker"]

START = Path(__file__).with_name("start.py")  # the file that a worker process runs

_STARTUP_TIMEOUT = 120.0  # seconds; TorchServe's default, as is the next value
_RESPONSE_TIMEOUT = 120.0
_END_TIMEOUT = 10.0  # seconds for a process to end its handler's processes
_LOG_TAIL = 20_000


class Worker:
    """A worker process with one archive loaded; a context manager.

    Processes that the handler starts end with the worker, even if this process is killed: on Linux all of them, on
    other systems those in the worker's process group.

    An archive with a ``runtime`` runs in its own environment, which is built first if this machine does not have it.

    Args:
        archive: the archive; it is extracted to a temporary folder that is removed with the worker.
        python: interpreter for the handler; it needs the packages of the extra ``worker``, but not torchmar.
            Default: that of the archive's environment, or this process's own.
        gpu: index of the handler's GPU; None: the CPU.
        on_build: called with each line of output while the environment is built.

    Raises:
        ArchiveError: the archive cannot be opened or extracted.
        LoadError: the handler could not be imported or loaded; ``traceback`` is the reason.
        WorkerError: the process did not start, or did not load within ``startupTimeout`` (default: 120 seconds), or
            its environment cannot be built.

    Examples:
        >>> import json
        >>> from pathlib import Path
        >>> import torchmar
        >>> built = torchmar.build(Path("archives/lengths"), Path("model_store"))
        >>> with torchmar.Worker(built.path) as worker:
        ...     (response,) = worker.predict_batch([torchmar.Request(b"hello", "text/plain")])
        >>> response.status, json.loads(response.body)
        (200, {'characters': 5})
    """

    def __init__(
        self,
        archive: Path,
        *,
        python: str | None = None,
        gpu: int | None = None,
        on_build: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._cleanup = contextlib.ExitStack()
        try:
            self._start(archive, python, gpu, on_build)
        except BaseException:
            self._cleanup.close()
            raise

    def _start(self, path: Path, python: str | None, gpu: int | None, on_build: Callable[[str], None]) -> None:
        home = Path(self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="torchmar-worker-")))
        model_dir = home / "model"
        with Archive(path) as archive:
            manifest = archive.manifest
            batch_size = int(archive.number("batchSize", 1))
            startup = archive.number("startupTimeout", _STARTUP_TIMEOUT)
            response = archive.number("responseTimeout", _RESPONSE_TIMEOUT)
            runtime = archive.runtime
            archive.extract(model_dir)
        variables: Mapping[str, str] = os.environ
        if runtime and not python:
            venv = _venv(runtime, model_dir, on_build)
            self._cleanup.callback(venv.close)
            python, variables = str(venv.python), venv.variables(variables)
        python = python or sys.executable
        self._log = home / "worker.log"
        parent_end, child_end = socket.socketpair()
        self._cleanup.callback(parent_end.close)
        self._socket = parent_end
        model = ModelSpec(
            name=manifest.name,
            model_dir=str(model_dir),
            handler=manifest.model.handler,
            batch_size=batch_size,
            gpu=gpu,
            envelope=manifest.model.envelope or "",
        )
        message = RunWorker(child_end.fileno(), model)
        try:
            with child_end, self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    [python, str(START), json.dumps(to_wire(message))],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=[child_end.fileno()],
                    env=worker_environment(variables),
                )
        except OSError as error:
            raise WorkerError(f"{python} cannot be started: {error.strerror}") from None
        self._cleanup.callback(self._end)
        self._socket.settimeout(startup)
        self._receiver = frames.Receiver(parent_end)
        _, document, _ = self._receive()
        result: WorkerReady | LoadFailed = from_wire(document)
        if isinstance(result, LoadFailed):
            trace = result.traceback
            name = f"{manifest.name} {manifest.version}"
            missing = re.search(r"^ModuleNotFoundError: No module named '(ts|torch)'$", trace, re.M)
            hint = f"{python} has no {missing[1]}: pip install 'torchmar[worker]'" if missing else ""
            raise LoadError(f"{path}: the handler of {name} did not load", traceback=trace, log=self.log(), hint=hint)
        self._socket.settimeout(response)
        self._pid = result.pid

    def predict_batch(self, requests: Sequence[Request]) -> list[Response]:
        """Send one batch to the handler.

        Args:
            requests: requests, possibly more than the batch size of the archive.

        Returns:
            The responses, in the order of the requests.

        Raises:
            WorkerError: the process ended, or took longer than ``responseTimeout`` (default: 120 seconds). Create
                another worker then.
        """
        if not requests:
            return []
        batch: Batch = [
            (str(index), request_headers(request), [("body", request.content_type, len(request.body))])
            for index, request in enumerate(requests)
        ]
        try:
            frames.send(self._socket, frames.encode(frames.BATCH, batch, [request.body for request in requests]))
        except OSError:
            raise self._died() from None
        parts: list[list[bytes]] = [[] for _ in requests]
        while True:
            kind, document, bodies = self._receive()
            if kind == frames.RESPONSES:
                return list(_responses(document["responses"], parts, bodies))
            parts[document[0]].append(bytes(bodies[0]))

    def limit_threads(self, count: int) -> None:
        """Limit the threads of torch, like a server that shares its cores among workers.

        Args:
            count: largest number; fewer are used if more do not help. Without a limit, it is the number that the
                handler has set.
        """
        try:
            frames.send(self._socket, frames.encode(frames.THREADS, count, []))
        except OSError:
            raise self._died() from None

    @property
    def pid(self) -> int:
        """The pid of the worker, a child of its supervisor, which is the process that was started."""
        return self._pid

    def log(self) -> str:
        """Return the last part of the process's output."""
        with self._log.open("rb") as stream:
            stream.seek(max(0, self._log.stat().st_size - _LOG_TAIL))
            return stream.read().decode("utf-8", "replace")

    def close(self) -> None:
        """Kill the process and remove its folder."""
        self._cleanup.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _receive(self) -> tuple[int, Any, Sequence[bytearray | memoryview]]:
        try:
            return self._receiver.receive()
        except TimeoutError:
            seconds = self._socket.gettimeout()
            self._socket.close()  # a late answer must not become the answer to another batch
            raise WorkerError(f"the worker did not answer within {seconds:.0f} s", log=self.log()) from None
        except (OSError, frames.DisconnectedError):
            raise self._died() from None

    def _died(self) -> WorkerError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        code = self._process.returncode
        status = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
        return WorkerError(f"the worker process ended {status}", log=self.log())

    def _end(self) -> None:
        self._socket.close()  # the supervisor then kills the worker and all processes of its handler
        try:
            self._process.wait(_END_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _venv(runtime: Runtime, folder: Path, on_build: Callable[[str], None]) -> Venv:
    """Return the environment of an extracted archive; build it if this machine does not have it."""
    # Imported here, because most archives have none, and processes that start often import this module.
    from torchmar.worker.venvs import building, specification
    from torchmar.worker.venvs import folder as folders

    return building.build(specification.read(runtime, folder), folders.root(), on_build)


def request_headers(request: Request) -> dict[str, str]:
    """Return the headers for a handler: those of the request, ``explain``, the content type and ``Accept``."""
    own_headers = {"explain": str(request.explain), "content-type": request.content_type, "Accept": request.accept}
    return {**request.headers, **own_headers}


def _responses(
    heads: list[ResponseHead], parts: list[list[bytes]], bodies: Sequence[bytearray | memoryview]
) -> Iterator[Response]:
    for streamed, body, (status, content_type, headers, _, _) in zip(parts, bodies, heads, strict=True):
        lower = {name.lower(): value for name, value in headers.items()}
        if content_type:
            lower["content-type"] = content_type
        yield Response(status, b"".join([*streamed, body]), lower)
