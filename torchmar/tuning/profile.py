"""Measure the time of a batch against its size, in worker processes without a server.

Workers with different numbers of threads are measured in turn, in several rounds, so that a machine that becomes slower
or faster meanwhile changes all of them. The change from the first round to the last is known as the drift.
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

SIZES = (1, 2, 4, 16, 64)  # requests of the measured batches
DRIFT = 0.1  # relative change from the first round to the last, beyond which the machine was not steady
_ROUNDS = 2
_WARM_UP = 12  # batches before the first measured ones: TorchScript compiles, the worker tries numbers of threads
_WARM_UP_AGAIN = 2  # batches before those of later rounds: threads of the worker before compute a little longer
_WARM_UP_SECONDS = 1.0
_LEAST, _MOST = 5, 400  # measured batches of a size
_SECONDS = 0.8  # of measured batches of a size
# A percentile of few batches is that of the slowest one, so that single requests are measured for longer.
_LEAST_ALONE, _SECONDS_ALONE = 200, 4.0
_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A worker to measure.

    Attributes:
        archive: the archive.
        threads: that the worker may use, as a server limits it.
        gpu: whether it gets the first GPU.
    """

    archive: Path
    threads: int
    gpu: bool = False


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
        drift: by how much longer batches took in the last round than in the first, relative.
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
    on_size: Callable[[int], object] = lambda size: None,
) -> list[Profile]:
    """Measure batches of several sizes in workers, which are measured in turn.

    Batches are chosen at random from the requests, so that their times vary as those of the requests do.

    Args:
        subjects: the workers.
        requests: what batches are made of.
        longest: seconds; no larger batch of a worker is measured after one that took longer.
        largest: size of a batch.
        on_size: called before the batches of each size.

    Returns:
        A profile of each worker.

    Raises:
        TorchmarError: a request is answered with an error.
        LoadError: an archive does not load.
        WorkerError: a worker died, or did not answer in time.
    """
    with contextlib.ExitStack() as stack:
        measured = [_Measured(stack, subject, requests) for subject in subjects]
        processes = [each.process for each in measured]
        before = Reading(processes, local=True)
        for number in range(1, _ROUNDS + 1):
            for size in (size for size in SIZES if size <= largest):
                on_size(size)
                # In one order and in the other, so that what rises steadily is the same for all.
                for each in measured if number % 2 else measured[::-1]:
                    if size <= each.largest:
                        each.measure(size, number)
                        if each.mean(size) > longest:
                            each.largest = size
        others = before.use_until(Reading(processes, local=True)).other_cores or 0.0
        return [each.profile(others) for each in measured]


class _Measured:
    """A worker and its batches so far."""

    def __init__(self, stack: contextlib.ExitStack, subject: Subject, requests: Sequence[Request]) -> None:
        self._subject, self._requests = subject, requests
        self._source = random.Random(_SEED)
        self._rounds: dict[int, list[list[float]]] = {}  # seconds of batches by size and round
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
        """Measure the batches of a size in a round; rounds begin at 1."""
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
            each = cpu_seconds / len(seconds)
            # It waited for cores, not for anything else: it would use them.
            each = max(fmean(seconds), each) if waited else each
            times.append(BatchTimes(size=size, seconds=tuple(seconds), cpu_seconds=each))
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
    """Return by how much longer batches took in the last round than in the first, relative.

    It is the geometric mean of the ratios of medians: one stall of the machine changes none of them.

    Args:
        sizes: for each size, the seconds of its batches in each round.
    """
    ratios = [median(rounds[-1]) / median(rounds[0]) for rounds in sizes if len(rounds) > 1]
    return math.exp(fmean(map(math.log, ratios))) - 1 if ratios else 0.0


def _more(size: int, seconds: Sequence[float], share: float) -> bool:
    """Return whether more batches are to be measured, in a round at whose end a share of them is to be measured."""
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
