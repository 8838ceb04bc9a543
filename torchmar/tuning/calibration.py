"""Correct the simulated servers of settings by measured trials."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from torchmar.tuning.simulation import capacity, late_limit, simulate
from torchmar.tuning.space import Setting
from torchmar.tuning.system_model import FINE_REQUESTS, Correction, SystemModel
from torchmar.tuning.target import Target
from torchmar.tuning.trials import Trial

_REFIT = 0.2  # relative error of a prediction above which the model is corrected
_MOST_SCALE = 4.0
_NEAR_CAPACITY = 0.75  # share of the capacity
_LEAST_EFFICIENCY = 0.4
_COMMON = 0.5  # share of a request's time: a larger part of it is the explanation of a trial's result
_MOST_FITTED = 4  # other trials near the capacity in one fit
_MOST_ERROR = 8.0  # multiple of the measured latency; a larger error counts as this one
_KEPT_UP = 0.97  # largest share of the capacity at which a server keeps up


class Calibration:
    """The correction of a model with trials.

    Args:
        model: model to change.
        target: target whose statistic the trials have measured.
    """

    def __init__(self, model: SystemModel, target: Target) -> None:
        self._model, self._target = model, target
        self._near: dict[tuple[int, int, int, int, bool], list[Trial]] = {}  # trials near the capacity, by layout
        self._timed_at = 0.0  # the rate at which the server's and the client's times were measured

    def calibrate(self, trial: Trial) -> None:
        """Derive the server's and the client's own time of a request from a trial, then the rest from its latency."""
        self._take_times(trial)
        self._model.step_shares = trial.before_share, trial.after_share
        self._model.latency_offset = 0.0
        if trial.median is not None and not trial.saturated:
            simulated = simulate(self._model.system(trial.setting), trial.rate, requests=FINE_REQUESTS).percentile(50)
            self._model.latency_offset = min(max(0.0, trial.median - simulated), 0.002)
        self.refit(trial, always=True)

    def refit(self, trial: Trial, *, always: bool = False) -> bool:
        """Correct the predictions of settings with the same workers and threads, if that of the trial was wrong.

        Returns:
            Whether predictions were corrected.
        """
        if trial.memory:
            self._model.measured_memory[trial.setting.processes] = trial.memory
        unsaturated = trial.latency is not None and not trial.saturated
        near = unsaturated and trial.rate > _NEAR_CAPACITY * capacity(self._model.system(trial.setting))
        if near:
            self._near.setdefault(trial.setting.layout, []).append(trial)
        miss = trial.miss
        if not always and miss is not None and abs(miss) <= _REFIT and trial.failed == 0:
            return False
        requests = max(500, min(trial.requests, FINE_REQUESTS))
        if trial.latency is None or trial.median is None or trial.saturated:
            self._saturate(trial)
            return True
        if trial.rate > self._timed_at:
            self._take_times(trial)
        if trial.rate > _KEPT_UP * capacity(self._model.system(trial.setting)):
            # An overloaded server answered fewer requests than it can: the rate at which it keeps up is below its
            # capacity.
            ratio = trial.rate / (_KEPT_UP * capacity(self._model.system(trial.setting)))
            self._model.efficiency = min(1.0, self._model.efficiency * ratio)
        before = self._model.tail(trial.setting, trial.rate)
        correction = self._fitted([(trial, trial.median)], 50.0, 0.0, requests)
        if trial.rate > _NEAR_CAPACITY * capacity(self._model.system(trial.setting)):
            # In this case, a little more time causes much more latency, and explains it completely.
            tail = min(max(0.0, before), 0.5 * trial.latency)
            # In this case, latency differs much between measurements: all trials near the capacity are fitted together.
            others = [near_trial for near_trial in self._near.get(trial.setting.layout, []) if near_trial is not trial]
            targets = [
                (near_trial, max(near_trial.latency - tail, near_trial.latency / 2))
                for near_trial in (trial, *others[-_MOST_FITTED:])
                if near_trial.latency is not None
            ]
            if self._common_share(trial.setting) > _COMMON:
                self._fit_efficiency(targets, requests)
            correction = self._fitted(targets, self._target.percent, tail, requests)
        else:
            simulated = self._simulated(trial, self._target.percent, requests)
            correction = replace(correction, tail=trial.latency - simulated)
        utilisation = trial.rate / capacity(self._model.system(trial.setting))
        self._model.corrections[trial.setting.layout] = replace(correction, utilisation=utilisation)
        return True

    def _take_times(self, trial: Trial) -> None:
        """Derive the server's and the client's own time of a request from a trial.

        Both decrease with the rate, because several requests are handled at a time: the times at the highest rate apply
        near the limits.
        """
        self._timed_at = trial.rate
        if trial.loop is not None:
            self._model.loop = max(5e-6, trial.loop)
        if trial.client:
            self._model.client = trial.client

    def _fitted(
        self, targets: Sequence[tuple[Trial, float]], percent: float | None, tail: float, requests: int
    ) -> Correction:
        """Return the correction that makes simulated statistics equal the wanted ones, and use it from now on.

        Args:
            targets: trials of the same workers and threads, with the seconds of each; the simulated ones are as far
                above as below them, in logarithms.
            percent: the percentile; None: the mean.
            tail: tail of the correction.
            requests: number of requests to simulate.
        """
        layout = targets[0][0].setting.layout

        def slower(scale: float) -> bool:
            self._model.corrections[layout] = Correction(scale=scale, tail=tail)
            return self._too_slow(targets, percent, requests)

        scale = _first(slower, 1 / _MOST_SCALE, _MOST_SCALE)
        self._model.corrections[layout] = Correction(scale=scale, tail=tail)
        return self._model.corrections[layout]

    def _too_slow(self, targets: Sequence[tuple[Trial, float]], percent: float | None, requests: int) -> bool:
        """Return whether simulated statistics are above the targets, in the sum of their logarithms."""
        if len(targets) == 1:
            ((trial, seconds),) = targets
            return self._simulated(trial, percent, requests, bound=seconds) > seconds
        ratios = (self._simulated(trial, percent, requests) / seconds for trial, seconds in targets)
        return sum(math.log(min(max(ratio, 1 / _MOST_ERROR), _MOST_ERROR)) for ratio in ratios) > 0

    def _saturate(self, trial: Trial) -> None:
        """Make the throughput of a trial the capacity of its setting.

        The times of batches apply only to its workers and threads. The cores that server and clients need are
        common to all settings; the larger their part of a request is, the more the trial shows about them.
        """
        throughput = max(0.01 * trial.rate, min(trial.rate, trial.throughput))
        self._model.corrections[trial.setting.layout] = Correction()
        limit = capacity(self._model.system(trial.setting))
        if limit > throughput:
            common = self._common_share(trial.setting)
            self._model.efficiency = max(_LEAST_EFFICIENCY, self._model.efficiency * (throughput / limit) ** common)
            limit = capacity(self._model.system(trial.setting))
        self._model.corrections[trial.setting.layout] = Correction(scale=max(1.0, limit / throughput))

    def _common_share(self, setting: Setting) -> float:
        """Return the part of server and clients in the time that limits a setting's capacity."""
        system = self._model.system(setting)
        return 1 - capacity(system) / capacity(replace(system, loop=0.0, client=0.0))

    def _fit_efficiency(self, targets: Sequence[tuple[Trial, float]], requests: int) -> None:
        """Set the efficiency that makes simulated statistics equal the targets, with an unchanged scale."""

        def fast_enough(efficiency: float) -> bool:
            self._model.efficiency = efficiency
            return not self._too_slow(targets, self._target.percent, requests)

        self._model.efficiency = _first(fast_enough, _LEAST_EFFICIENCY, 1.0)

    def _simulated(self, trial: Trial, percent: float | None, requests: int, bound: float | None = None) -> float:
        """Return a statistic of a trial's setting and rate in the current simulation, without the tail.

        Args:
            trial: the trial.
            percent: the percentile; None: the mean.
            requests: number of requests to simulate.
            bound: limit in seconds; a percentile above it is not exact, because the simulation ends early. None: no
                limit.
        """
        late = None if percent is None or bound is None else late_limit(percent, bound, requests)
        return simulate(self._model.system(trial.setting), trial.rate, requests=requests, late=late).statistic(percent)


def _first(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Return the start of the range in which a condition holds, between two positive limits, within a thousandth."""
    for _ in range(10):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if holds(middle) else (middle, high)
    return math.sqrt(low * high)
