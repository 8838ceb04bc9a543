"""Processes with a version's model for its workers: forks of one process that has loaded it, or one for each worker."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Protocol

from torchmar.server.telemetry import logs
from torchmar.server.workers.fork_server import ForkServer
from torchmar.server.workers.model_process import ModelProcess
from torchmar.server.workers.pool_options import PoolOptions
from torchmar.server.workers.worker_log import WorkerLog
from torchmar.server.workers.worker_process import WorkerProcess
from torchmar.worker.process import forking, shared_weights
from torchmar.worker.process.messages import ModelDescription, ModelSpec


class Loader(Protocol):
    """The interface that starts the processes of a version's workers.

    Attributes:
        description: the handler's description of its tensors; empty until the model has loaded once.
    """

    description: ModelDescription

    async def start_worker(
        self, connection: socket.socket, log: WorkerLog, *, gpu: int | None, stage: str
    ) -> WorkerProcess:
        """Return a process that has the model and serves on a connection.

        Raises:
            ModelLoadError: the model did not load.
            WorkerError: the process could not be started.
        """

    def release(self) -> None:
        """Release the loaded model and the shared weights; running workers keep theirs."""


class RequestLog(Protocol):
    """The log of one worker, for a `ModelLoader`; see `WorkerLog`."""

    def output(self, line: str) -> None:
        """Log a line of the worker's output."""

    def server(self, level: int, text: str) -> None:
        """Log a sentence about the worker in the server's log, after the name of the worker."""


class ModelLoader:
    """Loads the model of a version in worker processes.

    Attributes:
        description: the handler's description of its tensors; empty until the model has loaded once.
    """

    def __init__(self, fork_server: ForkServer, options: PoolOptions) -> None:
        self.description: ModelDescription = {}
        self._fork_server, self._options = fork_server, options
        self._forks = options.fork != forking.NEVER and not options.devices
        self._model_process: ModelProcess | None = None  # parent of the workers, if they are forks
        self._loading = asyncio.Lock()  # the first worker loads the model, the others are forks
        self._weights: shared_weights.WeightsFile | None = None
        self._mode_logged = False

    async def start_worker(
        self, connection: socket.socket, log: RequestLog, *, gpu: int | None, stage: str
    ) -> WorkerProcess:
        """Implement `Loader`."""
        self._log_mode()
        async with self._loading:
            if self._model_process and not self._model_process.closed:
                return await self._model_process.fork(connection, log.output, stage)
            self._close_model_process()
            if self._forks:
                model_process, objection = await self._load(log, gpu, fork=True)
                if not objection:
                    self._model_process = model_process
                    return await model_process.fork(connection, log.output, stage)
                level = logging.WARNING if self._options.fork == forking.ALLOWED else logging.INFO
                log.server(level, f"has loaded the model for itself, as each will: {objection}")
                self._forks = False
                return model_process.serve(connection, stage)
        model_process, _ = await self._load(log, gpu, fork=False)
        if shared_bytes := model_process.shared_bytes:
            log.server(logging.INFO, f"has {shared_bytes >> 20} MiB of weights in memory that workers share")
        return model_process.serve(connection, stage)

    def release(self) -> None:
        """Implement `Loader`."""
        self._weights = None
        self._close_model_process()

    def _close_model_process(self) -> None:
        if self._model_process:
            self._model_process.close()
            self._model_process = None

    async def _load(self, log: RequestLog, gpu: int | None, *, fork: bool) -> tuple[ModelProcess, str]:
        """Return a process that has loaded the model, and the reason why it must not be forked."""
        options = self._options
        model = ModelSpec(
            name=options.name,
            model_dir=options.folder,
            own_folder=options.own_folder,
            handler=options.handler,
            batch_size=options.batch_size,
            gpu=gpu,
            envelope=options.envelope,
            requirements=options.requirements,
            metrics_config=options.metrics_config,
            limit_max_image_pixels=options.limit_max_image_pixels,
            memory_limit=options.memory_limit,
            poll_seconds=options.poll / 1e6,
            stages=list(options.stages),
            fork=options.fork if fork else forking.NEVER,
        )
        if self._weights is None and not options.devices and shared_weights.available():
            self._weights = shared_weights.WeightsFile()
        model_process = await self._fork_server.spawn(model, log.output, self._weights)
        try:
            objection = await model_process.loaded(options.startup_timeout or None)
        except BaseException:
            model_process.kill()
            model_process.close()
            raise
        self.description = model_process.description
        return model_process, objection

    def _log_mode(self) -> None:
        """Log once whether workers are forks of one process, and why."""
        if self._mode_logged:
            return
        self._mode_logged = True
        options = self._options
        mode = "workers are forks of one process that loads the model" if self._forks else "each worker loads the model"
        reason = "workers that use a GPU cannot be forks" if options.devices else options.fork_reason
        logs.log_version(logging.INFO, options.name, options.version, f"{mode}: {reason or 'the default'}")
