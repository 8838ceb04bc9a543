"""Measure the time of a batch against its size, in a worker process without a server."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from torchmar.errors import TorchmarError
from torchmar.exchange import Request
from torchmar.load.machine_use import Reading, cores
from torchmar.load.measuring import MAX_OTHERS
from torchmar.tuning.service_model import BatchTimes
from torchmar.worker import Worker

SIZES = (1, 2, 4, 16, 64)  # requests of the measured batches
_WARM_UP = 12  # batches before the measured ones: TorchScript compiles, the worker tries numbers of threads
_WARM_UP_SECONDS = 1.0
_LEAST, _MOST = 5, 400  # measured batches of a size
_SECONDS = 0.8  # of measured batches of a size
# A percentile of few batches is that of the slowest one, so that single requests are measured for longer.
_LEAST_ALONE, _SECONDS_ALONE = 200, 4.0
_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Measured batches of a worker with a number of threads.

    Attributes:
        threads: of the worker, at the most.
        gpu: whether it had a GPU.
        times: batches by their size.
        memory: bytes of the worker that it shares with no other process.
        load_seconds: until it was ready.
        others: cores that other programs used meanwhile.
    """

    threads: int
    gpu: bool
    times: tuple[BatchTimes, ...]
    memory: int
    load_seconds: float
    others: float = 0.0


def profile(
    archive: Path,
    requests: Sequence[Request],
    threads: int,
    *,
    gpu: bool = False,
    longest: float = float("inf"),
    largest: int = SIZES[-1],
    on_size: Callable[[int], object] = lambda size: None,
) -> Profile:
    """Measure batches of several sizes in one worker.

    Batches are chosen at random from the requests, so that their times vary as those of the requests do.

    Args:
        archive: the archive.
        requests: what batches are made of.
        threads: that the worker may use, as a server limits it.
        gpu: whether the worker gets the first GPU.
        longest: seconds; no larger batch is measured after one that took longer.
        largest: size of a batch.
        on_size: called before the batches of each size.

    Raises:
        TorchmarError: a request is answered with an error.
        LoadError: the archive does not load.
        WorkerError: the worker died, or did not answer in time.
    """
    source = random.Random(_SEED)
    started = time.perf_counter()
    times: list[BatchTimes] = []
    with Worker(archive, gpu=0 if gpu else None) as worker:
        load_seconds = time.perf_counter() - started
        worker.limit_threads(threads)
        for index, request in enumerate(requests):
            (response,) = worker.predict_batch([request])
            if response.status >= 400:
                message = response.body[:200].decode("utf-8", "replace")
                raise TorchmarError(
                    f"request {index + 1} of {len(requests)} gets status {response.status}: {message}",
                    hint="only requests with answers are measured; --requests names others",
                )
        process = psutil.Process(worker.pid)
        before = Reading([process], local=True)
        for size in (size for size in SIZES if size <= largest):
            on_size(size)
            times.append(_measure(worker, process, requests, size, source))
            if times[-1].mean > longest:
                break
        others = before.use_until(Reading([process], local=True)).other_cores or 0.0
        memory = _own_memory(process)
    if others > MAX_OTHERS * len(cores()):
        # It waited for cores, not for anything else: it would use them.
        times = [replace(each, cpu_seconds=max(each.mean, each.cpu_seconds or 0.0)) for each in times]
    return Profile(
        threads=threads, gpu=gpu, times=tuple(times), memory=memory, load_seconds=load_seconds, others=others
    )


def _measure(
    worker: Worker, process: psutil.Process, requests: Sequence[Request], size: int, source: random.Random
) -> BatchTimes:
    def run() -> float:
        batch = source.choices(requests, k=size)
        started = time.perf_counter()
        worker.predict_batch(batch)
        return time.perf_counter() - started

    deadline = time.perf_counter() + _WARM_UP_SECONDS
    for _ in range(_WARM_UP):
        run()
        if time.perf_counter() > deadline:
            break
    before, seconds = _cpu_seconds(process), [run()]
    while _more(size, seconds):
        seconds.append(run())
    cpu_seconds = (_cpu_seconds(process) - before) / len(seconds)
    return BatchTimes(size=size, seconds=tuple(seconds), cpu_seconds=cpu_seconds)


def _more(size: int, seconds: Sequence[float]) -> bool:
    """Return whether more batches are to be measured."""
    measured, spent = len(seconds), sum(seconds)
    if size == 1 and measured < _LEAST_ALONE and spent < _SECONDS_ALONE:
        return True
    return measured < _LEAST or (spent < _SECONDS and measured < _MOST)


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _own_memory(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().uss)
    except psutil.AccessDenied:
        return int(process.memory_info().rss)
