"""Measure the time of a batch against its size, in worker processes without a server.

Workers with different numbers of threads are measured in turn, in several rounds, so that a change of the machine's
speed affects all of them. The drift is the change from the first round to the last.
"""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

import psutil

from torchmar.errors import TorchmarError
from torchmar.exchange import Request
from torchmar.load.machine_use import Reading, cores
from torchmar.load.measuring import MAX_OTHERS
from torchmar.tuning.service_model import BatchTimes
from torchmar.worker import Worker

SIZES = (1, 2, 4, 16, 64)  # sizes of the measured batches
DRIFT = 0.1  # relative drift above which the machine was not steady
_ROUNDS = 2
_WARM_UP = 12  # batches before the first measurement: TorchScript compiles, and the worker tries numbers of threads
_WARM_UP_AGAIN = 2  # batches before measurements of later rounds: threads of the previous worker still compute
_WARM_UP_SECONDS = 1.0
_LEAST, _MOST = 5, 400  # limits for the number of measured batches of a size
_SECONDS = 0.8  # limit for the duration of the measured batches of a size
# With few batches, a percentile is the slowest batch; therefore single requests are measured for longer.
_LEAST_ALONE, _SECONDS_ALONE = 200, 4.0
_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A worker to measure.

    Attributes:
        archive: the archive.
        threads: number of threads of the worker, as a server would limit it.
        gpu: whether the worker gets the first GPU.
    """

    archive: Path
    threads: int
    gpu: bool = False


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Measured batches of a worker.

    Attributes:
        threads: largest number of threads of the worker.
        gpu: whether the worker had a GPU.
        times: measured batches, by their size.
        memory: bytes of the worker that no other process shares.
        load_seconds: time until the worker was ready.
        others: cores that other programs used during the measurements.
        drift: relative change of the batches' time from the first round to the last.
    """

    threads: int
    gpu: bool
    times: tuple[BatchTimes, ...]
    memory: int
    load_seconds: float
    others: float = 0.0
    drift: float = 0.0


def profile(
    subjects: Sequence[Subject],
    requests: Sequence[Request],
    *,
    longest: float = float("inf"),
    largest: int = SIZES[-1],
    on_loaded: Callable[[int], object] = lambda memory: None,
    on_size: Callable[[int], object] = lambda size: None,
) -> list[Profile]:
    """Measure batches of several sizes in workers, in turn.

    Requests are drawn at random, so that the times of batches vary as those of the requests do.

    Args:
        subjects: the workers.
        requests: requests for the batches.
        longest: seconds; if a batch takes longer, no larger batch of this worker is measured.
        largest: largest size of a batch.
        on_loaded: called before the first measurement, with the bytes of the smallest worker.
        on_size: called before the batches of each size.

    Returns:
        The profile of each worker.

    Raises:
        TorchmarError: a request is answered with an error.
        LoadError: an archive does not load.
        WorkerError: a worker died, or did not answer in time.
    """
    with contextlib.ExitStack() as stack:
        measured = [_Measured(stack, subject, requests) for subject in subjects]
        processes = [worker.process for worker in measured]
        on_loaded(min(map(_own_memory, processes)))
        before = Reading(processes, local=True)
        for number in range(1, _ROUNDS + 1):
            for size in (size for size in SIZES if size <= largest):
                on_size(size)
                # In both directions, so that a steady change of the machine affects all workers equally.
                for worker in measured if number % 2 else measured[::-1]:
                    if size <= worker.largest:
                        worker.measure(size, number)
                        if worker.mean(size) > longest:
                            worker.largest = size
        others = before.use_until(Reading(processes, local=True)).other_cores or 0.0
        return [worker.profile(others) for worker in measured]


class _Measured:
    """A worker and its batches so far."""

    def __init__(self, stack: contextlib.ExitStack, subject: Subject, requests: Sequence[Request]) -> None:
        self._subject, self._requests = subject, requests
        self._source = random.Random(_SEED)
        self._rounds: dict[int, list[list[float]]] = {}  # seconds of each batch, by size and round
        self._cpu_seconds: dict[int, float] = {}
        self.largest = SIZES[-1]
        started = time.perf_counter()
        self._worker = stack.enter_context(Worker(subject.archive, gpu=0 if subject.gpu else None))
        self._load_seconds = time.perf_counter() - started
        self._worker.limit_threads(subject.threads)
        for index, request in enumerate(requests):
            (response,) = self._worker.predict_batch([request])
            if response.status >= 400:
                message = response.body[:200].decode("utf-8", "replace")
                raise TorchmarError(
                    f"request {index + 1} of {len(requests)} gets status {response.status}: {message}",
                    hint="only requests with answers are measured; --requests names others",
                )
        self.process = psutil.Process(self._worker.pid)

    def mean(self, size: int) -> float:
        """Return the mean time of a batch so far, in seconds."""
        return fmean(self._seconds(size))

    def measure(self, size: int, number: int) -> None:
        """Measure the batches of a size in a round; rounds are numbered from 1."""
        deadline = time.perf_counter() + _WARM_UP_SECONDS / number
        for _ in range(_WARM_UP if number == 1 else _WARM_UP_AGAIN):
            self._run(size)
            if time.perf_counter() > deadline:
                break
        rounds = self._rounds.setdefault(size, [])
        rounds.append([])
        before = _cpu_seconds(self.process)
        while not rounds[-1] or _more(size, self._seconds(size), number / _ROUNDS):
            rounds[-1].append(self._run(size))
        self._cpu_seconds[size] = self._cpu_seconds.get(size, 0.0) + _cpu_seconds(self.process) - before

    def profile(self, others: float) -> Profile:
        """Return the profile; ``others`` are the cores that other programs used."""
        waited = others > MAX_OTHERS * len(cores())
        times = []
        for size, cpu_seconds in self._cpu_seconds.items():
            seconds = self._seconds(size)
            batch_seconds = cpu_seconds / len(seconds)
            # in the rest of the time it waited for cores, which it would also have used
            batch_seconds = max(fmean(seconds), batch_seconds) if waited else batch_seconds
            times.append(BatchTimes(size=size, seconds=tuple(seconds), cpu_seconds=batch_seconds))
        return Profile(
            threads=self._subject.threads,
            gpu=self._subject.gpu,
            times=tuple(times),
            memory=_own_memory(self.process),
            load_seconds=self._load_seconds,
            others=others,
            drift=drift(list(self._rounds.values())),
        )

    def _seconds(self, size: int) -> list[float]:
        return [seconds for batches in self._rounds[size] for seconds in batches]

    def _run(self, size: int) -> float:
        batch = self._source.choices(self._requests, k=size)
        started = time.perf_counter()
        self._worker.predict_batch(batch)
        return time.perf_counter() - started


def drift(sizes: Sequence[Sequence[Sequence[float]]]) -> float:
    """Return the relative change of the batches' time from the first round to the last.

    It is the geometric mean of the ratios of medians: a single stall of the machine changes none of them.

    Args:
        sizes: seconds of each batch, by size and round.
    """
    ratios = [median(rounds[-1]) / median(rounds[0]) for rounds in sizes if len(rounds) > 1]
    return math.exp(fmean(map(math.log, ratios))) - 1 if ratios else 0.0


def _more(size: int, seconds: Sequence[float], share: float) -> bool:
    """Return whether to measure more batches of a size; ``share`` is their part that this round should complete."""
    measured, spent = len(seconds), sum(seconds)
    if size == 1 and measured < share * _LEAST_ALONE and spent < share * _SECONDS_ALONE:
        return True
    return measured < share * _LEAST or (spent < share * _SECONDS and measured < share * _MOST)


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _own_memory(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().uss)
    except psutil.AccessDenied:
        return int(process.memory_info().rss)
