"""The model process: load one model, then serve it or fork workers that share its memory.

Most workers load their model themselves: `forking` says where forks after loading change no answer.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import socket
import sys
from collections.abc import Iterator
from typing import Any

from . import describing, forking, loading, randomness, serving, shared_weights, stages
from .control_channel import ControlReader, ControlWriter
from .handler_metrics import MetricsBuffer
from .supervisor import Children


def run_model_process(job: dict[str, Any], control: socket.socket) -> None:
    """Load the model of a job, tell the server, and do as it says until it goes.

    To the server: ``{"loaded", "shareable", "why", "shared_bytes", "description"}`` or ``{"failed": traceback}``; then
    for each fork ``{"forked": id, "pid"}`` with a pidfd. From it: ``{"serve": {}, "stage"}`` with a socket, or
    ``{"fork": id, "stage"}`` with a socket and a log; the stage is empty where a worker does all of a request.
    ``{"kill": id}`` ends a fork.
    """
    message = ControlWriter(control)
    loading.activate_archive(job["model_dir"], job.get("requirements", ""))
    measured = MetricsBuffer()
    before = forking.descriptors()
    share = job["fork"] != forking.NEVER
    threads = _Threads()
    weights = job.get("weights")  # the workers' common file; None: there is none
    try:
        if limit := job.get("memory_limit"):
            _limit_memory(limit)
        measured.install()
        if weights is not None:
            shared_weights.prepare()
        seed = randomness.reseed()
        with threads.watched(hold=share):
            service = loading.load(job)
            halves = stages.split_handler(service, job["envelope"]) if job.get("stage") else None
    except BaseException as error:
        trace = loading.own_traceback(error)
        sys.stdout.write(trace)
        sys.stdout.flush()
        message.send({"failed": trace})
        os._exit(1)
    why = forking.objection(job["fork"], service, job["model_dir"], before) if share else "it was not asked to be"
    shared = 0
    if weights is not None and why:
        shared = shared_weights.share(weights)
    elif weights is not None:
        shared_weights.leave(weights)
    description = describing.description(service, job["envelope"])
    loaded = {"loaded": True, "shareable": not why, "why": why, "shared_bytes": shared, "description": description}
    message.send(loaded)
    _ModelProcess(message, service, measured, threads.wanted, halves, job.get("poll", 0.0), seed).run()


def _limit_memory(limit: int) -> None:
    """Let this process, and its forks, have so many bytes of data.

    Not of addresses: libraries that are mapped would count, and CUDA would not start.

    Raises:
        MemoryError: it has as much already, and would end without a word.
    """
    # The limit counts private memory that can be written to, as VmData does.
    has = sum(int(line.split()[1]) << 10 for line in _status() if line.startswith("VmData:"))
    if has + _LEAST_MEMORY > limit:
        needed = (has + _LEAST_MEMORY >> 20) + 1
        raise MemoryError(
            f"torchmar_worker_memory={limit >> 20}MiB: a worker has {has >> 20} MiB before it loads its model; "
            f"set {needed}MiB at the least"
        )
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _status() -> list[str]:
    try:
        with open("/proc/self/status", encoding="utf-8") as stream:
            return stream.readlines()
    except OSError:
        return []


_LEAST_MEMORY = 64 << 20  # bytes, to do anything with


class _ModelProcess:
    def __init__(
        self,
        message: ControlWriter,
        service: Any,
        measured: MetricsBuffer,
        threads: int | None,
        halves: stages.Halves | None,
        poll: float,
        seed: int | None,
    ) -> None:
        self._told, self._service, self._measured, self._threads = message, service, measured, threads
        self._halves, self._poll, self._seed = halves, poll, seed

    def run(self) -> None:
        # Objects that are there now are never garbage of a worker: without looking at them it shares their pages.
        gc.collect()
        gc.freeze()
        lines = ControlReader(self._told.socket, children=True)
        children = Children(adopting=False)
        for message, descriptors in lines:
            if message is None:
                for _ in children.ended():  # the server sees their connections close
                    pass
            elif "kill" in message:
                children.kill(message["kill"])
            elif "serve" in message:
                (connection,) = descriptors
                lines.close()
                self._serve(connection, message["stage"])
            elif "fork" in message:
                forked = children.fork(message["fork"])
                if forked is None:
                    connection, output = descriptors
                    lines.close()
                    self._told.socket.close()
                    _own(output)
                    randomness.reseed_again(self._seed)
                    self._serve(connection, message["stage"])
                    raise AssertionError  # it does not return
                pid, handles = forked
                self._told.send({"forked": message["fork"], "pid": pid}, handles)
                for descriptor in (*descriptors, *handles):
                    os.close(descriptor)

    def _serve(self, descriptor: int, stage: str) -> None:
        """Serve in this process; it ends with it."""
        status = 0
        try:
            if self._halves:
                stages.apply_stage(self._service, stage, self._halves)
            connection = socket.socket(fileno=descriptor)
            serving.serve(self._service, connection, self._measured, self._threads, isolate=True, poll=self._poll)
        except BaseException as error:
            sys.stdout.write(loading.own_traceback(error))
            status = 1
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
            os._exit(status)


class _Threads:
    """How many threads a handler asks of torch while it loads."""

    def __init__(self) -> None:
        self.wanted: int | None = None

    @contextlib.contextmanager
    def watched(self, *, hold: bool) -> Iterator[None]:
        """Note what is asked; with ``hold`` there is one until the end, since a fork would lose the others."""
        import torch

        really = torch.set_num_threads

        def remember(count: int) -> None:
            self.wanted = count
            if not hold:
                really(count)

        if hold:
            really(1)
        setattr(torch, "set_num_threads", remember)  # noqa: B010 - torch declares the function
        try:
            yield
        finally:
            setattr(torch, "set_num_threads", really)  # noqa: B010


def _own(output: int) -> None:
    """Make a forked process one that writes to its own log."""
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
