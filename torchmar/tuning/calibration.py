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

_REFIT = 0.2  # relative error of a prediction beyond which the model is corrected
_MOST_SCALE = 4.0
_NEAR_CAPACITY = 0.75  # of the capacity
_LEAST_EFFICIENCY = 0.4
_COMMON = 0.5  # of the time of a request; what takes more of it than this explains what a trial shows
_MOST_FITTED = 4  # other trials near the capacity that are fitted with one
_MOST_ERROR = 8.0  # times the measured latency; a larger error counts as this one
_KEPT_UP = 0.97  # of the capacity, at the most, is a rate that a server keeps up with


class Calibration:
    """The correction of a model by trials.

    Args:
        model: is changed.
        target: whose statistic the trials have measured.
    """

    def __init__(self, model: SystemModel, target: Target) -> None:
        self._model, self._target = model, target
        self._near: dict[tuple[int, int, int, int, bool], list[Trial]] = {}  # trials near the capacity, by layout
        self._timed_at = 0.0  # the rate at which server's and client's times were measured

    def calibrate(self, trial: Trial) -> None:
        """Take the server's and the client's own time of a request from a trial, then the rest from its latency."""
        self._take_times(trial)
        self._model.step_shares = trial.before_share, trial.after_share
        self._model.latency_offset = 0.0
        if trial.median is not None and not trial.saturated:
            simulated = simulate(self._model.system(trial.setting), trial.rate, requests=FINE_REQUESTS).percentile(50)
            self._model.latency_offset = min(max(0.0, trial.median - simulated), 0.002)
        self.refit(trial, always=True)

    def refit(self, trial: Trial, *, always: bool = False) -> bool:
        """Correct the predictions of settings with the same workers and threads, if the trial's was wrong.

        Returns:
            Whether they were corrected.
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
            # An overloaded server answered fewer than it can: what it keeps up with is below its capacity.
            shown = trial.rate / (_KEPT_UP * capacity(self._model.system(trial.setting)))
            self._model.efficiency = min(1.0, self._model.efficiency * shown)
        before = self._model.tail(trial.setting, trial.rate)
        correction = self._fitted([(trial, trial.median)], 50.0, 0.0, requests)
        if trial.rate > _NEAR_CAPACITY * capacity(self._model.system(trial.setting)):
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
            correction = self._fitted(wanted, self._target.percent, tail, requests)
        else:
            simulated = self._simulated(trial, self._target.percent, requests)
            correction = replace(correction, tail=trial.latency - simulated)
        utilisation = trial.rate / capacity(self._model.system(trial.setting))
        self._model.corrections[trial.setting.layout] = replace(correction, utilisation=utilisation)
        return True

    def _take_times(self, trial: Trial) -> None:
        """Take the server's and the client's own time of a request from a trial.

        Both fall with the rate, because several requests are handled at a time: those of the highest rate hold where
        the limits are.
        """
        self._timed_at = trial.rate
        if trial.loop is not None:
            self._model.loop = max(5e-6, trial.loop)
        if trial.client:
            self._model.client = trial.client

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
            self._model.corrections[layout] = Correction(scale=scale, tail=tail)
            return self._too_slow(wanted, percent, requests)

        scale = _first(slower, 1 / _MOST_SCALE, _MOST_SCALE)
        self._model.corrections[layout] = Correction(scale=scale, tail=tail)
        return self._model.corrections[layout]

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
        self._model.corrections[trial.setting.layout] = Correction()
        limit = capacity(self._model.system(trial.setting))
        if limit > shown:
            common = self._common_share(trial.setting)
            self._model.efficiency = max(_LEAST_EFFICIENCY, self._model.efficiency * (shown / limit) ** common)
            limit = capacity(self._model.system(trial.setting))
        self._model.corrections[trial.setting.layout] = Correction(scale=max(1.0, limit / shown))

    def _common_share(self, setting: Setting) -> float:
        """Return which part of the time that bounds a setting's capacity the server and the clients use."""
        system = self._model.system(setting)
        return 1 - capacity(system) / capacity(replace(system, loop=0.0, client=0.0))

    def _fit_efficiency(self, wanted: Sequence[tuple[Trial, float]], requests: int) -> None:
        """Set the efficiency with which simulated statistics are the wanted ones, with the scale as it is."""

        def fast_enough(efficiency: float) -> bool:
            self._model.efficiency = efficiency
            return not self._too_slow(wanted, self._target.percent, requests)

        self._model.efficiency = _first(fast_enough, _LEAST_EFFICIENCY, 1.0)

    def _simulated(self, trial: Trial, percent: float | None, requests: int, bound: float | None = None) -> float:
        """Return a statistic of a trial's setting and rate as they are simulated now, without the tail.

        Args:
            trial: the trial.
            percent: the percentile; None: the mean.
            requests: that are simulated.
            bound: seconds; a percentile above it is not exact, since the simulation ends early. None: none.
        """
        late = None if percent is None or bound is None else late_limit(percent, bound, requests)
        return simulate(self._model.system(trial.setting), trial.rate, requests=requests, late=late).statistic(percent)


def _first(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Return from where on a condition holds, between two positive bounds, within a thousandth of their ratio."""
    for _ in range(10):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if holds(middle) else (middle, high)
    return math.sqrt(low * high)
