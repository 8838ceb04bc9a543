"""Predict what a setting would do: profiles and the simulation, corrected by the trials that were measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from torchmar.tuning.highest_rate import highest_rate
from torchmar.tuning.profile import Profile
from torchmar.tuning.service_model import ServiceModel, fit
from torchmar.tuning.simulation import (
    Outcome,
    Stage,
    System,
    capacity,
    late_limit,
    simulate,
    usable_capacity,
)
from torchmar.tuning.space import Setting
from torchmar.tuning.target import Target
from torchmar.tuning.trials import Trial

REFIT = 0.2  # relative error of a prediction beyond which the model is corrected
_MOST_SCALE = 4.0
_NEAR_CAPACITY = 0.75  # of the capacity
_LOOP = {
    "builtin": 60e-6,
    "ray": 200e-6,
    "torchserve": 300e-6,
}  # CPU seconds of a request in the server, until one is measured
_CLIENT = 40e-6  # the same in the client
_COARSE, _FINE = 600, 2_500  # simulated requests
# Stalls that no simulation has: each delays what arrives meanwhile, and until the queue is empty again.
_MOST_UTILISATION = 0.95
_LEAST_EFFICIENCY = 0.4
_COMMON = 0.5  # of the time of a request; what takes more of it than this explains what a trial shows
_MOST_FITTED = 4  # other trials near the capacity that are fitted with one
_MOST_ERROR = 8.0  # times the measured latency; a larger error counts as this one
_KEPT_UP = 0.97  # of the capacity, at the most, is a rate that a server keeps up with


class Bound(Enum):
    """The bound that a setting hits first; the value is how it is called."""

    NONE = "keeps the target"
    LATENCY = "latency target"
    WORKERS = "workers saturated"
    CORES = "cores saturated"
    LOOP = "event loop saturated"
    QUEUE = "queue full"
    MEMORY = "memory"


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a setting is expected to do.

    Attributes:
        setting: the setting.
        rate: the given rate; without one, the highest at which the target is kept.
        latency: the statistic of the target at this rate, in seconds.
        capacity: the rate beyond which the queue grows without end.
        cores: in use at this rate.
        memory: bytes of the server with its workers.
        mean_batch: requests of a batch at this rate.
        bound: that it hits: with a given rate, why the target is not kept; without one, why the rate is not higher.
    """

    setting: Setting
    rate: float
    latency: float
    capacity: float
    cores: float
    memory: int
    mean_batch: float
    bound: Bound


@dataclass(frozen=True, kw_only=True)
class Correction:
    """What trials have shown about settings with the same workers and threads.

    Attributes:
        scale: factor of the times of batches.
        tail: seconds to add to the statistic of the target, at this utilisation.
        utilisation: the part of the capacity that was used when the tail was measured.
    """

    scale: float = 1.0
    tail: float = 0.0
    utilisation: float = 0.5

    def tail_at(self, utilisation: float) -> float:
        """Return the seconds to add at another utilisation: less at a lower one.

        What waits after a stall is worked off by what is left of the capacity, so that a stall of the same length
        delays as many more requests as utilisation / (1 - utilisation) is larger. A higher rate is not judged by that:
        a trial shows it.
        """
        return self.tail * min(1.0, _growth(utilisation) / _growth(self.utilisation)) if self.tail > 0 else self.tail


def _first(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Return from where on a condition holds, between two positive bounds, within a thousandth of their ratio."""
    for _ in range(10):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if holds(middle) else (middle, high)
    return math.sqrt(low * high)


def _growth(utilisation: float) -> float:
    bounded = min(max(utilisation, 0.01), _MOST_UTILISATION)
    return bounded / (1 - bounded)


class Predictor:
    """Predictions for the settings of one archive on one machine.

    Args:
        profiles: with different numbers of threads; at least one.
        target: the target.
        engine: ``builtin``, ``ray`` or ``torchserve``.
        cores: of the machine, or of all machines of a cluster.
        memory: bytes that the server may use; None: no limit.
        queue_size: requests that may wait on the server.
    """

    def __init__(
        self,
        profiles: Sequence[Profile],
        target: Target,
        *,
        engine: str = "builtin",
        cores: float = 1,
        memory: int | None = None,
        queue_size: int = 100,
    ) -> None:
        self.target = target
        self.memory_limit = memory
        self.services: Mapping[tuple[int, bool], ServiceModel] = {
            (profile.threads, profile.gpu): fit(profile.times) for profile in profiles
        }
        self.corrections: dict[tuple[int, int, int, int, bool], Correction] = {}
        self.loop, self.client, self.latency_offset = _LOOP[engine], _CLIENT, 0.0
        self.efficiency = 1.0  # the part of the cores, and of the event loop's core, that requests can use
        self._engine, self._cores, self._queue_size = engine, cores, queue_size
        self.step_shares = (0.0, 0.0)  # of the time of a request, before and after the model; from the first trial
        self._near: dict[tuple[int, int, int, int, bool], list[Trial]] = {}  # trials near the capacity, by layout
        self._timed_at = 0.0  # the rate at which the two times were measured
        self._worker_memory = max(profile.memory for profile in profiles)
        self._measured_memory: dict[int, int] = {}  # by the number of workers
        self._cache: dict[tuple[object, ...], Prediction] = {}
        self._latencies: dict[tuple[object, ...], float] = {}

    def system(self, setting: Setting) -> System:
        """Return the simulated server of a setting."""
        correction = self._correction(setting)
        before, after = self.step_shares
        service = self.service(setting).scaled(correction.scale)
        whole = service
        stages: list[Stage | None] = [None, None]
        moved = 0.0
        for index, (share, workers) in enumerate(((before, setting.preprocess), (after, setting.postprocess))):
            if workers:
                moved += share
                stages[index] = Stage(workers=workers, service=whole.scaled(share))
        return System(
            service=service.scaled(max(0.01, 1 - moved)),
            workers=setting.workers,
            batch_size=setting.batch_size,
            delay=setting.delay_ms / 1000 if self._engine == "torchserve" else None,
            cores=self._cores * self.efficiency,
            loop=self.loop / self.efficiency,
            latency=self.latency_offset,
            client=self.client,
            queue_size=self._queue_size,
            preprocess=stages[0],
            postprocess=stages[1],
        )

    def knows(self, setting: Setting) -> bool:
        """Return whether a setting can be predicted: the time of the steps in its stages is known."""
        before, after = self.step_shares
        return (before > 0 or not setting.preprocess) and (after > 0 or not setting.postprocess)

    def service(self, setting: Setting) -> ServiceModel:
        """Return the profile of the setting's threads, or of the nearest number of threads."""
        known = [threads for threads, gpu in self.services if gpu == setting.gpu]
        threads = min(
            known, key=lambda threads: (max(threads, setting.threads) / min(threads, setting.threads), threads)
        )
        return self.services[threads, setting.gpu]

    def memory(self, setting: Setting) -> int:
        """Return the memory of the server with its workers, in bytes."""
        known, wanted = self._measured_memory, setting.processes
        if not known:
            return self._worker_memory * wanted
        nearest = min(known, key=lambda processes: abs(processes - wanted))
        others = [processes for processes in known if processes != nearest]
        each = self._worker_memory  # too much where workers share memory, which only trials show
        if others:
            other = max(others, key=lambda processes: abs(processes - nearest))
            each = max(0, (known[other] - known[nearest]) // (other - nearest))
        return max(0, known[nearest] + each * (wanted - nearest))

    def latency(self, setting: Setting, rate: float) -> float:
        """Return the statistic of the target at a rate, in seconds."""
        key = self._key(setting, rate, True)
        if key not in self._latencies:
            self._latencies[key] = self._statistic(setting, rate, simulate(self.system(setting), rate, requests=_FINE))
        return self._latencies[key]

    def at_rate(self, setting: Setting, rate: float, *, fine: bool = True) -> Prediction:
        """Predict a setting at a given rate."""
        known = self._cached(setting, rate, fine)
        return self._with_memory(known or self._store(setting, rate, fine, self._at_rate(setting, rate, fine)))

    def highest(self, setting: Setting, *, fine: bool = True) -> Prediction:
        """Predict the highest rate at which a setting keeps the target; its rate is 0 if there is none."""
        known = self._cached(setting, None, fine)
        return self._with_memory(known or self._store(setting, None, fine, self._highest(setting, fine)))

    def calibrate(self, trial: Trial) -> None:
        """Take the server's and the client's own time of a request from a trial, then the rest from its latency."""
        self._take_times(trial)
        self.step_shares = trial.before_share, trial.after_share
        self.latency_offset = 0.0
        if trial.median is not None and not trial.saturated:
            simulated = simulate(self.system(trial.setting), trial.rate, requests=_FINE).percentile(50)
            self.latency_offset = min(max(0.0, trial.median - simulated), 0.002)
        self.refit(trial, always=True)

    def refit(self, trial: Trial, *, always: bool = False) -> bool:
        """Correct the predictions of settings with the same workers and threads, if the trial's was wrong.

        Returns:
            Whether they were corrected.
        """
        if trial.memory:
            self._measured_memory[trial.setting.processes] = trial.memory
        unsaturated = trial.latency is not None and not trial.saturated
        near = unsaturated and trial.rate > _NEAR_CAPACITY * capacity(self.system(trial.setting))
        if near:
            self._near.setdefault(trial.setting.layout, []).append(trial)
        miss = trial.miss
        if not always and miss is not None and abs(miss) <= REFIT and trial.failed == 0:
            return False
        requests = max(500, min(trial.requests, _FINE))
        if trial.latency is None or trial.median is None or trial.saturated:
            self._saturate(trial)
            return True
        if trial.rate > self._timed_at:
            self._take_times(trial)
        if trial.rate > _KEPT_UP * capacity(self.system(trial.setting)):
            # An overloaded server answered fewer than it can: what it keeps up with is below its capacity.
            shown = trial.rate / (_KEPT_UP * capacity(self.system(trial.setting)))
            self.efficiency = min(1.0, self.efficiency * shown)
        before = self._tail(trial.setting, trial.rate)
        correction = self._fitted([(trial, trial.median)], 50.0, 0.0, requests)
        if trial.rate > _NEAR_CAPACITY * capacity(self.system(trial.setting)):
            # There, a little more time is much more latency: it explains the whole of it.
            tail = min(max(0.0, before), 0.5 * trial.latency)
            # There, latency differs much from one measurement to the next: all that are near are fitted together.
            others = [each for each in self._near.get(trial.setting.layout, []) if each is not trial]
            wanted = [
                (each, max(each.latency - tail, each.latency / 2))
                for each in (trial, *others[-_MOST_FITTED:])
                if each.latency is not None
            ]
            if self._common_share(trial.setting) > _COMMON:
                self._fit_efficiency(wanted, requests)
            correction = self._fitted(wanted, self.target.percent, tail, requests)
        else:
            simulated = self._simulated(trial, self.target.percent, requests)
            correction = replace(correction, tail=trial.latency - simulated)
        utilisation = trial.rate / capacity(self.system(trial.setting))
        self.corrections[trial.setting.layout] = replace(correction, utilisation=utilisation)
        return True

    def _take_times(self, trial: Trial) -> None:
        """Take the server's and the client's own time of a request from a trial.

        Both fall with the rate, because several requests are handled at a time: those of the highest rate hold where
        the limits are.
        """
        self._timed_at = trial.rate
        if trial.loop is not None:
            self.loop = max(5e-6, trial.loop)
        if trial.client:
            self.client = trial.client

    def _fitted(
        self, wanted: Sequence[tuple[Trial, float]], percent: float | None, tail: float, requests: int
    ) -> Correction:
        """Return the correction with which simulated statistics are the wanted ones, and use it from now on.

        Args:
            wanted: trials of the same workers and threads, and the seconds of each; the simulated ones are as much
                above as below them, in logarithms.
            percent: the percentile; None: the mean.
            tail: of the correction.
            requests: that are simulated.
        """
        layout = wanted[0][0].setting.layout

        def slower(scale: float) -> bool:
            self.corrections[layout] = Correction(scale=scale, tail=tail)
            return self._too_slow(wanted, percent, requests)

        scale = _first(slower, 1 / _MOST_SCALE, _MOST_SCALE)
        self.corrections[layout] = Correction(scale=scale, tail=tail)
        return self.corrections[layout]

    def _too_slow(self, wanted: Sequence[tuple[Trial, float]], percent: float | None, requests: int) -> bool:
        """Return whether simulated statistics are above the wanted ones, in the sum of their logarithms."""
        if len(wanted) == 1:
            ((trial, seconds),) = wanted
            return self._simulated(trial, percent, requests, bound=seconds) > seconds
        ratios = (self._simulated(trial, percent, requests) / seconds for trial, seconds in wanted)
        return sum(math.log(min(max(ratio, 1 / _MOST_ERROR), _MOST_ERROR)) for ratio in ratios) > 0

    def _saturate(self, trial: Trial) -> None:
        """Make the throughput of a trial the capacity of its setting.

        The times of batches are those of its workers and threads alone. The cores that server and clients need are
        common to all settings; the larger their part of a request is, the more the trial says about them.
        """
        shown = max(0.01 * trial.rate, min(trial.rate, trial.throughput))
        self.corrections[trial.setting.layout] = Correction()
        limit = capacity(self.system(trial.setting))
        if limit > shown:
            common = self._common_share(trial.setting)
            self.efficiency = max(_LEAST_EFFICIENCY, self.efficiency * (shown / limit) ** common)
            limit = capacity(self.system(trial.setting))
        self.corrections[trial.setting.layout] = Correction(scale=max(1.0, limit / shown))

    def _common_share(self, setting: Setting) -> float:
        """Return which part of the time that bounds a setting's capacity the server and the clients use."""
        system = self.system(setting)
        return 1 - capacity(system) / capacity(replace(system, loop=0.0, client=0.0))

    def _fit_efficiency(self, wanted: Sequence[tuple[Trial, float]], requests: int) -> None:
        """Set the efficiency with which simulated statistics are the wanted ones, with the scale as it is."""

        def fast_enough(efficiency: float) -> bool:
            self.efficiency = efficiency
            return not self._too_slow(wanted, self.target.percent, requests)

        self.efficiency = _first(fast_enough, _LEAST_EFFICIENCY, 1.0)

    def _simulated(self, trial: Trial, percent: float | None, requests: int, bound: float | None = None) -> float:
        """Return a statistic of a trial's setting and rate as they are simulated now, without the tail.

        Args:
            trial: the trial.
            percent: the percentile; None: the mean.
            requests: that are simulated.
            bound: seconds; a percentile above it is not exact, since the simulation ends early. None: none.
        """
        late = None if percent is None or bound is None else late_limit(percent, bound, requests)
        return simulate(self.system(trial.setting), trial.rate, requests=requests, late=late).statistic(percent)

    def _correction(self, setting: Setting) -> Correction:
        if own := self.corrections.get(setting.layout):
            return own
        if not self.corrections:
            return Correction()
        # The best that was seen: a setting that looks worse than it is would never be measured.
        shortest = min(self.corrections.values(), key=lambda known: known.tail / _growth(known.utilisation))
        return Correction(
            scale=min(known.scale for known in self.corrections.values()),
            tail=max(0.0, shortest.tail),
            utilisation=shortest.utilisation,
        )

    def _tail(self, setting: Setting, rate: float) -> float:
        """Return the seconds to add to a setting's simulated statistic at a rate."""
        return self._correction(setting).tail_at(rate / capacity(self.system(setting)))

    def _statistic(self, setting: Setting, rate: float, outcome: Outcome) -> float:
        value = outcome.statistic(self.target.percent)
        return max(outcome.percentile(50), value + self._tail(setting, rate))

    def _at_rate(self, setting: Setting, rate: float, fine: bool) -> Prediction:
        system = self.system(setting)
        limit = capacity(system)
        outcome = simulate(system, rate, requests=_FINE if fine else _COARSE)
        latency = self._statistic(setting, rate, outcome)
        bound = Bound.NONE
        if rate >= limit:
            bound, latency = self._saturated(system), math.inf
        elif outcome.rejected:
            bound = Bound.QUEUE
        elif latency >= self.target.seconds:
            bound = Bound.LATENCY
        return self._prediction(setting, rate, latency, limit, outcome, bound)

    def _highest(self, setting: Setting, fine: bool) -> Prediction:
        system = self.system(setting)
        limit = capacity(system)
        requests, precision = (_FINE, 0.01) if fine else (_COARSE, 0.06)
        correction = self._correction(setting)
        highest = highest_rate(
            system,
            self.target.percent,
            lambda rate: self.target.seconds - correction.tail_at(rate / limit),
            requests=requests,
            precision=precision,
            near=self.highest(setting, fine=False).rate if fine else 0.0,
        )
        rate = highest.rate
        outcome = highest.outcome or simulate(system, limit / 64, requests=requests)
        bound = Bound.LATENCY
        if rate > 0.95 * usable_capacity(system):
            bound = self._saturated(system)
        elif highest.rejects:
            bound = Bound.QUEUE
        latency = self._statistic(setting, rate or limit / 64, outcome)
        return self._prediction(setting, rate, latency, limit, outcome, bound)

    def _prediction(
        self, setting: Setting, rate: float, latency: float, limit: float, outcome: Outcome, bound: Bound
    ) -> Prediction:
        return Prediction(
            setting=setting,
            rate=rate,
            latency=latency,
            capacity=limit,
            cores=min(outcome.cores, self._cores),
            memory=0,
            mean_batch=outcome.mean_batch,
            bound=bound,
        )

    def _with_memory(self, prediction: Prediction) -> Prediction:
        """Return a prediction with the memory that is known by now."""
        memory = self.memory(prediction.setting)
        exceeded = self.memory_limit is not None and memory > self.memory_limit
        return replace(prediction, memory=memory, bound=Bound.MEMORY if exceeded else prediction.bound)

    def _saturated(self, system: System) -> Bound:
        """Return what limits the capacity."""
        limit = capacity(system)
        if system.loop and 1 / system.loop <= 1.01 * limit:
            return Bound.LOOP
        more_cores = capacity(replace(system, cores=2 * system.cores))
        return Bound.CORES if more_cores > 1.01 * limit else Bound.WORKERS

    def _key(self, setting: Setting, rate: float | None, fine: bool) -> tuple[object, ...]:
        server = self.loop, self.client, self.latency_offset, self.efficiency
        return setting, rate, fine, self._correction(setting), server

    def _cached(self, setting: Setting, rate: float | None, fine: bool) -> Prediction | None:
        return self._cache.get(self._key(setting, rate, fine))

    def _store(self, setting: Setting, rate: float | None, fine: bool, prediction: Prediction) -> Prediction:
        return self._cache.setdefault(self._key(setting, rate, fine), prediction)
