"""The queue, the workers and the cores of a server, simulated event by event.

Requests arrive at random (Poisson), pass the server's event loop one after the other, wait in the queue of the version,
and are run in batches:

* the built-in server sends all waiting requests, up to the batch size, to a worker when one is idle
  (`torchmar.server.workers.pool`); it never waits for a full batch;
* TorchServe's idle worker takes the first request, and waits until the batch is full or ``maxBatchDelay`` is over.
  Only one worker at a time collects a batch.

Batches share the cores with the event loop and the clients, which use a constant part of them. When more cores are
needed than there are, batches become slower in the same ratio (processor sharing). The same seed gives the same
arrivals, so that settings are compared with the same load.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torchmar.tuning.service_model import ServiceModel

_NEARLY, _USABLE = 0.99, 0.93
_MANY = 1_000_000
_AHEAD = 2  # batches that wait for each worker with the model, as in torchmar.server.workers.staged_pool


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Workers that run one step of a request, one request at a time.

    Attributes:
        workers: number of workers.
        service: time of one request.
    """

    workers: int
    service: ServiceModel


@dataclass(frozen=True, kw_only=True)
class System:
    """A server with one model; times in seconds.

    Attributes:
        service: time of a batch in a worker.
        workers: number of workers with the model.
        batch_size: largest number of requests in a batch.
        delay: time that a worker waits for a full batch, from its first request; None: it does not wait, as on the
            built-in server.
        cores: number of cores of the machine.
        loop: CPU time of a request in the server's event loop, which handles one at a time.
        latency: time of a request on its way in which it uses no core of this machine.
        client: CPU time of a request on the same machine outside of server and workers.
        queue_size: largest number of waiting requests; more are rejected.
        preprocess: the stage before the model.
        postprocess: the stage after it.
    """

    service: ServiceModel
    workers: int
    batch_size: int
    delay: float | None = None
    cores: float = 1
    loop: float = 0.0
    latency: float = 0.0
    client: float = 0.0
    queue_size: int = 100
    preprocess: Stage | None = None
    postprocess: Stage | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The results of a simulation.

    Attributes:
        latencies: seconds of each completed request after the warm-up, sorted.
        rejected: number of requests that were rejected because the queue was full.
        batch_sizes: number of batches of each size.
        cores: mean number of cores in use.
        seconds: simulated time.
    """

    latencies: tuple[float, ...]
    rejected: int
    batch_sizes: dict[int, int] = field(default_factory=dict)
    cores: float = 0.0
    seconds: float = 0.0

    @property
    def mean(self) -> float:
        """Mean latency in seconds; infinite without a completed request."""
        return sum(self.latencies) / len(self.latencies) if self.latencies else math.inf

    @property
    def mean_batch(self) -> float:
        """Mean size of a batch."""
        batches = sum(self.batch_sizes.values())
        return sum(size * count for size, count in self.batch_sizes.items()) / batches if batches else 0.0

    def percentile(self, percent: float) -> float:
        """Return a percentile of the latencies in seconds (nearest rank); infinite without a completed request."""
        if not self.latencies:
            return math.inf
        return self.latencies[max(0, math.ceil(percent / 100 * len(self.latencies)) - 1)]

    def statistic(self, percent: float | None) -> float:
        """Return a percentile of the latencies in seconds; None: their mean."""
        return self.mean if percent is None else self.percentile(percent)


def capacity(system: System) -> float:
    """Return the rate in requests per second above which the queue grows without limit: that of full batches."""
    size, service = system.batch_size, system.service
    seconds = service.mean(size)
    cpu = seconds * service.cores(size) / size + system.loop + system.client
    rate = system.workers * size / seconds
    for stage in (system.preprocess, system.postprocess):
        if stage:
            alone = stage.service.mean(1)
            rate = min(rate, stage.workers / alone)
            cpu += alone * stage.service.cores(1)
    return min(rate, system.cores / cpu, 1 / system.loop if system.loop else math.inf)


def usable_capacity(system: System) -> float:
    """Return the highest rate, in requests per second, at which the simulation is realistic.

    The workers' capacity is known from their times. But the system and other programs also need cores, in amounts that
    no profile shows; when they take them, the event loop stops.
    """
    boundless = replace(system, cores=_MANY, loop=0.0)
    return min(_NEARLY * capacity(boundless), _USABLE * capacity(system))


def simulate(
    system: System, rate: float, *, requests: int = 5_000, seed: int = 0, late: tuple[float, int] | None = None
) -> Outcome:
    """Simulate Poisson arrivals at a rate.

    Args:
        system: the server.
        rate: requests per second.
        requests: number of requests; the first tenth, at most 200, does not count for the latencies.
        seed: seed of arrivals and noise.
        late: a latency in seconds and a number of requests: the simulation ends early once more requests than this
            number took longer, because the percentile is then certainly too high.

    Returns:
        The latencies and batches of the requests. All requests that are not rejected are completed.
    """
    return _Simulation(system, rate, requests, seed, late).run()


@functools.lru_cache(maxsize=16)
def _unit_arrivals(requests: int, seed: int) -> tuple[float, ...]:
    """Return the times of random arrivals at a rate of one per second."""
    source = random.Random(seed)
    return tuple(itertools.accumulate(source.expovariate(1.0) for _ in range(requests)))


@functools.lru_cache(maxsize=32)
def _arrivals(rate: float, loop: float, requests: int, seed: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the times at which requests arrive, and at which the event loop has handled each, one after the other.

    Cached, because many systems are simulated at the same rate.
    """
    arrivals = tuple([unit / rate for unit in _unit_arrivals(requests, seed)])
    if not loop:
        return arrivals, arrivals
    admissions: list[float] = []
    free = 0.0
    admit = admissions.append
    for moment in arrivals:
        free = (moment if moment > free else free) + loop
        admit(free)
    return arrivals, tuple(admissions)


def late_limit(percent: float, seconds: float, requests: int) -> tuple[float, int]:
    """Return the argument ``late`` of `simulate` that ends it early if a percentile exceeds a number of seconds."""
    counted = requests - warm_up(requests)
    return seconds, counted - math.ceil(percent / 100 * counted)


def warm_up(requests: int) -> int:
    """Return the number of first requests that do not count."""
    return min(200, requests // 10)


class _Simulation:
    """One run; work is measured in virtual time, which advances more slowly when cores are short."""

    def __init__(self, system: System, rate: float, requests: int, seed: int, late: tuple[float, int] | None) -> None:
        self._system = system
        self._noise = random.Random(seed + 1).random
        self._times: dict[tuple[str, int], tuple[tuple[float, ...], float]] = {}  # times and cores, by step and size
        self._arrivals, self._admissions = _arrivals(rate, system.loop, requests, seed)
        self._late_after, self._late_left = late or (math.inf, 0)
        self._now = self._virtual = 0.0
        self._demand = rate * (system.client + system.loop)
        self._speed = self._rate_of_work()
        self._running: list[tuple[float, int, float, str, Sequence[int]]] = []  # batches, by their virtual end
        self._started = 0
        self._used = 0.0  # core seconds
        self._before: deque[int] = deque()
        self._waiting: deque[int] = deque()
        self._after: deque[int] = deque()
        self._idle = system.workers
        self._idle_before = system.preprocess.workers if system.preprocess else 0
        self._idle_after = system.postprocess.workers if system.postprocess else 0
        self._collected: list[int] = []  # requests of the batch that a worker of TorchServe collects
        self._deadline = math.inf
        self._latencies: list[float] = []
        self._warm_up = warm_up(requests)
        self._rejected = 0
        self._sizes: dict[int, int] = {}

    def run(self) -> Outcome:
        if self._system.delay is None and not (self._system.preprocess or self._system.postprocess):
            self._run_plain()
        else:
            self._run_any()
        self._latencies.sort()
        return Outcome(
            latencies=tuple(self._latencies),
            rejected=self._rejected,
            batch_sizes=self._sizes,
            cores=self._used / self._now if self._now else 0.0,
            seconds=self._now,
        )

    def _run_plain(self) -> None:
        """Run a server without stages and delays, the usual kind, in a third of the time of `_run_any`.

        Requests wait only while all workers are busy. Until the next worker ends its batch, nothing else changes, so
        that all requests that arrive in between are queued at once. A batch is a range of the queue.
        """
        system, arrivals, admissions = self._system, self._arrivals, [*self._admissions, math.inf]
        cores, batch_size, queue_size = float(system.cores), system.batch_size, system.queue_size
        push, pop, replace_first, noise = heapq.heappush, heapq.heappop, heapq.heapreplace, self._noise
        running: list[tuple[float, int, int, float]] = []  # virtual time of the end, range of the queue, cores
        times = {1: (alone := self._batch_times(1))}
        alone_likely, alone_count, alone_cores = alone
        sizes, total = {1: 0}, len(arrivals)
        queue: list[float] = []  # arrivals that were not rejected; those after index ``sent`` wait
        enqueue = queue.append
        idle, arrived, queued, sent = self._idle, 0, 0, 0
        now, virtual, used, demand, speed = self._now, self._virtual, self._used, self._demand, self._speed
        late_after, late_left = self._late_after, self._late_left
        answer, first_counted, further = self._latencies.append, self._warm_up, system.latency
        counted = total  # index of the first request after the warm-up
        next_arrival = admissions[0]
        while late_left >= 0:
            if running:
                next_end = now + (running[0][0] - virtual) / speed
            elif arrived < total:
                next_end = math.inf
            else:
                break
            if idle and next_arrival < next_end:
                elapsed = (next_arrival - now) * speed
                virtual += elapsed
                used += elapsed * demand
                now = next_arrival
                if arrived == first_counted:
                    counted = sent
                enqueue(arrivals[arrived])
                arrived += 1
                next_arrival = admissions[arrived]
                idle -= 1
                sizes[1] += 1
                queued += 1
                push(running, (virtual + alone_likely[int(noise() * alone_count)], sent, queued, alone_cores))
                sent = queued
                demand += alone_cores
            else:
                while next_arrival < next_end:
                    if arrived == first_counted:
                        counted = queued
                    if queued - sent < queue_size:
                        enqueue(arrivals[arrived])
                        queued += 1
                    else:
                        self._rejected += 1
                    arrived += 1
                    next_arrival = admissions[arrived]
                virtual, first, end, freed = running[0]
                used += (next_end - now) * speed * demand
                now = next_end
                demand -= freed
                for arrival in queue[first:end] if first >= counted else queue[counted:end]:
                    latency = now - arrival + further
                    answer(latency)
                    if latency > late_after:
                        late_left -= 1
                if sent < queued:
                    size = queued - sent
                    if size > batch_size:
                        size = batch_size
                    if size not in times:
                        times[size] = self._batch_times(size)
                        sizes[size] = 0
                    sizes[size] += 1
                    likely, count, batch_cores = times[size]
                    replace_first(running, (virtual + likely[int(noise() * count)], sent, sent + size, batch_cores))
                    sent += size
                    demand += batch_cores
                else:
                    pop(running)
                    idle += 1
            speed = cores / demand if demand > cores else 1.0
        self._now, self._used, self._sizes = now, used, sizes

    def _batch_times(self, size: int) -> tuple[tuple[float, ...], int, float]:
        """Return equally likely times of a batch, their number, and its cores."""
        times = self._system.service.times(size)
        return times, len(times), self._system.service.cores(size)

    def _run_any(self) -> None:
        """Run a server with stages before or after the model, or with workers that wait for full batches."""
        arrivals, running = self._admissions, self._running
        arrived, total = 0, len(arrivals)
        while (arrived < total or running or self._collected) and self._late_left >= 0:
            next_arrival = arrivals[arrived] if arrived < total else math.inf
            next_end = self._now + (running[0][0] - self._virtual) / self._speed if running else math.inf
            if next_end <= next_arrival and next_end <= self._deadline:
                self._advance(next_end)
                self._virtual, _, demand, kind, members = heapq.heappop(running)
                self._change_demand(-demand)
                self._complete(kind, members)
            elif next_arrival <= self._deadline:
                self._advance(next_arrival)
                self._arrive(arrived)
                arrived += 1
            else:
                self._advance(self._deadline)
                self._send_collected()

    # Time and cores.

    def _advance(self, moment: float) -> None:
        elapsed = moment - self._now
        self._virtual += elapsed * self._speed
        self._used += elapsed * self._speed * self._demand
        self._now = moment

    def _rate_of_work(self) -> float:
        return self._system.cores / self._demand if self._demand > self._system.cores else 1.0

    def _change_demand(self, change: float) -> None:
        self._demand += change
        self._speed = self._rate_of_work()

    def _start(self, seconds: float, demand: float, kind: str, members: Sequence[int]) -> None:
        self._started += 1
        heapq.heappush(self._running, (self._virtual + seconds, self._started, demand, kind, members))
        self._change_demand(demand)

    # Requests.

    def _arrive(self, index: int) -> None:
        if len(self._waiting) + len(self._before) + len(self._after) >= self._system.queue_size:
            self._rejected += 1
        else:
            self._admit(index)

    def _admit(self, index: int) -> None:
        if self._system.preprocess:
            self._before.append(index)
        else:
            self._waiting.append(index)
        self._dispatch()

    def _complete(self, kind: str, members: Sequence[int]) -> None:
        if kind == "before":
            self._idle_before += 1
            self._waiting.extend(members)
        elif kind == "after":
            self._idle_after += 1
            self._finish(members)
        else:
            self._idle += 1
            if self._system.postprocess:
                self._after.extend(members)
            else:
                self._finish(members)
        self._dispatch()

    def _finish(self, members: Sequence[int]) -> None:
        for index in members:
            if index >= self._warm_up:
                latency = self._now - self._arrivals[index] + self._system.latency
                self._latencies.append(latency)
                if latency > self._late_after:
                    self._late_left -= 1

    def _dispatch(self) -> None:
        system = self._system
        if system.postprocess:
            while self._idle_after and self._after:
                self._idle_after -= 1
                self._run_alone("after", system.postprocess, self._after.popleft())
        if system.delay is None:
            while self._idle and self._waiting and self._has_room_after():
                self._send([self._waiting.popleft() for _ in range(min(system.batch_size, len(self._waiting)))])
        else:
            self._collect(system.delay)
        if system.preprocess:
            while self._idle_before and self._before and self._has_room_before():
                self._idle_before -= 1
                self._run_alone("before", system.preprocess, self._before.popleft())

    def _has_room_before(self) -> bool:
        return len(self._waiting) < _AHEAD * self._system.batch_size * self._system.workers

    def _has_room_after(self) -> bool:
        stage = self._system.postprocess
        return not stage or len(self._after) < _AHEAD * max(self._system.batch_size, stage.workers)

    def _run_alone(self, kind: str, stage: Stage, index: int) -> None:
        self._run_batch(kind, stage.service, (index,))

    def _send(self, batch: Sequence[int]) -> None:
        size = len(batch)
        self._idle -= 1
        self._sizes[size] = self._sizes.get(size, 0) + 1
        self._run_batch("batch", self._system.service, batch)

    def _run_batch(self, kind: str, service: ServiceModel, members: Sequence[int]) -> None:
        key = kind, len(members)
        if key not in self._times:
            self._times[key] = service.times(len(members)), service.cores(len(members))
        times, cores = self._times[key]
        self._start(times[int(self._noise() * len(times))], cores, kind, members)

    def _collect(self, delay: float) -> None:
        """Let an idle worker of TorchServe take requests; a full batch is sent at once."""
        while self._waiting and (self._collected or self._idle):
            if not self._collected:
                self._deadline = self._now + delay
            while self._waiting and len(self._collected) < self._system.batch_size:
                self._collected.append(self._waiting.popleft())
            if len(self._collected) < self._system.batch_size and delay > 0:
                return
            self._send_collected()

    def _send_collected(self) -> None:
        batch, self._collected, self._deadline = self._collected, [], math.inf
        self._send(batch)
        if self._system.delay is not None:
            self._collect(self._system.delay)
