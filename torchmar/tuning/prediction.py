"""Predict the highest rate of a setting within the target, or its latency at a given rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from torchmar.tuning.calibration import Calibration
from torchmar.tuning.highest_rate import highest_rate
from torchmar.tuning.profile import Profile
from torchmar.tuning.simulation import Outcome, System, capacity, simulate, usable_capacity
from torchmar.tuning.space import Setting
from torchmar.tuning.system_model import FINE_REQUESTS, SystemModel
from torchmar.tuning.target import Target
from torchmar.tuning.trials import Trial

_COARSE_REQUESTS = 600  # requests that are simulated to compare settings


class Bound(Enum):
    """The limit that a setting reaches first; the value is its name in reports."""

    NONE = "keeps the target"
    LATENCY = "latency target"
    WORKERS = "workers saturated"
    CORES = "cores saturated"
    LOOP = "event loop saturated"
    QUEUE = "queue full"
    MEMORY = "memory"


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The expected behaviour of a setting.

    Attributes:
        setting: predicted setting.
        rate: given rate; without a given rate, the highest rate at which the target is met.
        latency: the statistic of the target at this rate, in seconds.
        capacity: rate above which the queue grows without end.
        cores: number of busy cores at this rate.
        memory: bytes of the server with its workers.
        mean_batch: mean number of requests in a batch at this rate.
        bound: limit that it reaches: the reason why the target is missed at the given rate, or why the highest rate is
            not higher.
    """

    setting: Setting
    rate: float
    latency: float
    capacity: float
    cores: float
    memory: int
    mean_batch: float
    bound: Bound


class Predictor:
    """Predictions for the settings of one archive on one machine.

    Args:
        profiles: profiles with different numbers of threads; at least one.
        target: target of the tuning.
        engine: ``builtin``, ``ray`` or ``torchserve``.
        cores: number of cores of the machine, or of all machines of a cluster.
        memory: limit of the server's memory in bytes; None: no limit.
        queue_size: largest number of requests that wait on the server.

    Attributes:
        model: simulated servers, corrected by trials.
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
        self.model = SystemModel(profiles, engine=engine, cores=cores, queue_size=queue_size)
        self._calibration = Calibration(self.model, target)
        self._cache: dict[tuple[object, ...], Prediction] = {}
        self._latencies: dict[tuple[object, ...], float] = {}

    def latency(self, setting: Setting, rate: float) -> float:
        """Return the statistic of the target at a rate, in seconds."""
        key = self._key(setting, rate, True)
        if key not in self._latencies:
            outcome = simulate(self.model.system(setting), rate, requests=FINE_REQUESTS)
            self._latencies[key] = self._statistic(setting, rate, outcome)
        return self._latencies[key]

    def at_rate(self, setting: Setting, rate: float, *, fine: bool = True) -> Prediction:
        """Predict a setting at a given rate."""
        cached = self._cached(setting, rate, fine)
        return self._with_memory(cached or self._store(setting, rate, fine, self._at_rate(setting, rate, fine)))

    def highest(self, setting: Setting, *, fine: bool = True) -> Prediction:
        """Predict the highest rate at which a setting meets the target; the rate 0 means that there is none."""
        cached = self._cached(setting, None, fine)
        return self._with_memory(cached or self._store(setting, None, fine, self._highest(setting, fine)))

    def calibrate(self, trial: Trial) -> None:
        """Correct the predictions of all settings with the first trial; see `Calibration.calibrate`."""
        self._calibration.calibrate(trial)

    def refit(self, trial: Trial) -> bool:
        """Correct predictions with a further trial, if the prediction for it was wrong; see `Calibration.refit`."""
        return self._calibration.refit(trial)

    def _statistic(self, setting: Setting, rate: float, outcome: Outcome) -> float:
        value = outcome.statistic(self.target.percent)
        return max(outcome.percentile(50), value + self.model.tail(setting, rate))

    def _at_rate(self, setting: Setting, rate: float, fine: bool) -> Prediction:
        system = self.model.system(setting)
        limit = capacity(system)
        outcome = simulate(system, rate, requests=FINE_REQUESTS if fine else _COARSE_REQUESTS)
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
        system = self.model.system(setting)
        limit = capacity(system)
        requests, precision = (FINE_REQUESTS, 0.01) if fine else (_COARSE_REQUESTS, 0.06)
        correction = self.model.correction(setting)
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
            cores=min(outcome.cores, self.model.cores),
            memory=0,
            mean_batch=outcome.mean_batch,
            bound=bound,
        )

    def _with_memory(self, prediction: Prediction) -> Prediction:
        """Return a prediction with the memory as known now."""
        memory = self.model.memory(prediction.setting)
        exceeded = self.memory_limit is not None and memory > self.memory_limit
        return replace(prediction, memory=memory, bound=Bound.MEMORY if exceeded else prediction.bound)

    def _saturated(self, system: System) -> Bound:
        """Return the limit of the capacity."""
        limit = capacity(system)
        if system.loop and 1 / system.loop <= 1.01 * limit:
            return Bound.LOOP
        more_cores = capacity(replace(system, cores=2 * system.cores))
        return Bound.CORES if more_cores > 1.01 * limit else Bound.WORKERS

    def _key(self, setting: Setting, rate: float | None, fine: bool) -> tuple[object, ...]:
        return setting, rate, fine, self.model.state(setting)

    def _cached(self, setting: Setting, rate: float | None, fine: bool) -> Prediction | None:
        return self._cache.get(self._key(setting, rate, fine))

    def _store(self, setting: Setting, rate: float | None, fine: bool, prediction: Prediction) -> Prediction:
        return self._cache.setdefault(self._key(setting, rate, fine), prediction)
