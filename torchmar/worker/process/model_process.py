"""The model process: it loads one model, then serves it, or forks workers that share its memory.

Most workers load their model themselves: `forking` decides whether forks after loading would change responses.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import socket
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

from . import describing, forking, loading, randomness, serving, shared_weights, stages
from .control_channel import ControlReader, ControlWriter
from .handler_metrics import MetricsBuffer
from .messages import Fork, Forked, Kill, Loaded, LoadFailed, ModelSpec, Serve
from .supervisor import Children


def run_model_process(model: ModelSpec, control: socket.socket, weights: int | None) -> None:
    """Load a model, send `Loaded` or `LoadFailed`, and handle `Serve`, `Fork` and `Kill` until the server disconnects.

    Args:
        model: the model to load.
        control: connection to the server.
        weights: descriptor of the file that all workers of the model share; None: there is no file.
    """
    writer = ControlWriter(control)
    loading.activate_archive(model.model_dir, model.requirements, own=model.own_folder)
    metrics = MetricsBuffer()
    before = forking.descriptors()
    fork = model.fork != forking.NEVER
    threads = _ThreadRecorder()
    try:
        if model.memory_limit:
            _limit_memory(model.memory_limit)
        metrics.install()
        if weights is not None:
            shared_weights.prepare()
        seed = randomness.reseed()
        with threads.recording(hold=fork):
            service = loading.load(model)
            envelope = loading.envelope_of(service)
            handler_stages = stages.split_handler(service, model.stages, envelope) if model.stages else None
    except BaseException as error:
        trace = loading.own_traceback(error)
        sys.stdout.write(trace)
        sys.stdout.flush()
        writer.send(LoadFailed(trace))
        os._exit(1)
    objection = forking.objection(model.fork, service, model.model_dir, before) if fork else "forks are not configured"
    shared_bytes = 0
    if weights is not None and objection:
        shared_bytes = shared_weights.share(weights)
    elif weights is not None:
        shared_weights.leave(weights)
    writer.send(Loaded(objection, shared_bytes, describing.description(service)))
    _ModelProcess(
        writer,
        service,
        metrics,
        threads=threads.count,
        handler_stages=handler_stages,
        poll_seconds=model.poll_seconds,
        seed=seed,
    ).run()


def _limit_memory(limit: int) -> None:
    """Limit the private memory of this process and its forks, in bytes.

    It is not a limit of addresses, which would count mapped libraries, and with which CUDA would not start.

    Raises:
        MemoryError: the process has this much memory already, and would end without a message.
    """
    # The limit counts writable private memory, as VmData does.
    size = sum(int(line.split()[1]) << 10 for line in _status() if line.startswith("VmData:"))
    if size + _LEAST_MEMORY > limit:
        required = (size + _LEAST_MEMORY >> 20) + 1
        raise MemoryError(
            f"torchmar_worker_memory={limit >> 20}MiB: a worker has {size >> 20} MiB before it loads its model; "
            f"set {required}MiB at the least"
        )
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _status() -> list[str]:
    try:
        with open("/proc/self/status", encoding="utf-8") as stream:
            return stream.readlines()
    except OSError:
        return []


_LEAST_MEMORY = 64 << 20  # bytes that a worker needs in addition


class _ModelProcess:
    """A process that has loaded a model."""

    def __init__(
        self,
        writer: ControlWriter,
        service: Any,
        metrics: MetricsBuffer,
        *,
        threads: int | None,
        handler_stages: stages.Stages | None,
        poll_seconds: float,
        seed: int | None,
    ) -> None:
        self._writer, self._service, self._metrics, self._threads = writer, service, metrics, threads
        self._stages, self._poll_seconds, self._seed = handler_stages, poll_seconds, seed

    def run(self) -> None:
        # Existing objects are never garbage in a worker; if a fork does not visit them, their pages stay shared.
        gc.collect()
        gc.freeze()
        reader = ControlReader(self._writer.socket)
        children = Children(adopting=False)
        for message, files in reader:
            if message is None:
                for _ in children.exited():  # the server notices that their connections close
                    pass
            elif isinstance(message, Kill):
                children.kill(message.id)
            elif isinstance(message, Serve):
                (connection,) = files
                reader.close()
                self._serve(connection, message.stage)
            elif isinstance(message, Fork):
                forked = children.fork(message.id)
                if forked is None:
                    connection, output = files
                    reader.close()
                    self._writer.socket.close()
                    _redirect_output(output)
                    randomness.reseed_again(self._seed)
                    self._serve(connection, message.stage)
                pid, pidfds = forked
                self._writer.send(Forked(message.id, pid), pidfds)
                for file in (*files, *pidfds):
                    os.close(file)

    def _serve(self, descriptor: int, stage: str) -> NoReturn:
        """Serve in this process, then exit."""
        status = 0
        try:
            if self._stages:
                stages.apply_stage(self._service, stage, self._stages)
            connection = socket.socket(fileno=descriptor)
            serving.serve(
                self._service, connection, self._metrics, self._threads, isolate=True, poll_seconds=self._poll_seconds
            )
        except BaseException as error:
            sys.stdout.write(loading.own_traceback(error))
            status = 1
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
            os._exit(status)


class _ThreadRecorder:
    """Records the number of torch's threads that a handler sets while it loads.

    Attributes:
        count: the last number; None: the handler has not set it.
    """

    def __init__(self) -> None:
        self.count: int | None = None

    @contextlib.contextmanager
    def recording(self, *, hold: bool) -> Iterator[None]:
        """Record the number; with ``hold``, torch has one thread meanwhile, because a fork would lose others."""
        import torch

        original = torch.set_num_threads

        def record(count: int) -> None:
            self.count = count
            if not hold:
                original(count)

        if hold:
            original(1)
        setattr(torch, "set_num_threads", record)  # noqa: B010 - torch declares the function
        try:
            yield
        finally:
            setattr(torch, "set_num_threads", original)  # noqa: B010


def _redirect_output(output: int) -> None:
    """Redirect the output of a forked process to its own log."""
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
