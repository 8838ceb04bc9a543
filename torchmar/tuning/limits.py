"""The highest rate at which a setting meets the target, found by measurements at several rates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torchmar.tuning.space import Setting
from torchmar.tuning.target import Target
from torchmar.tuning.trials import Trial

MOST_RATES = 8  # largest number of rates at which a setting is measured
_PRECISION = 1.05  # factor between the bounds of a limit that is precise enough
_LEAST_STEP, _MOST_STEP = 1.05, 1.6  # smallest and largest factor of the next higher rate
_ROOMY_STEP, _ROOMY = 1.15, 0.6  # smallest factor while the statistic is below this part of the target
_DOWN = 0.8  # smallest factor of the next lower rate


@dataclass(frozen=True, kw_only=True)
class Limit:
    """Bounds of the highest rate of a setting, from its measurements.

    Attributes:
        kept: highest rate at which the setting met the target, in requests per second; 0: there is none.
        missed: lowest rate at which it missed the target; infinite: there is none.
        rates: number of measured rates.
        share: statistic at the rate ``kept``, as a part of the target.
        marginal: whether another measurement at the lowest missed rate met the target.
    """

    kept: float
    missed: float
    rates: int
    share: float = 1.0
    marginal: bool = False

    @property
    def known(self) -> bool:
        """Whether further measurements would hardly change the bounds."""
        return self.rates >= MOST_RATES or (self.kept > 0 and self.missed <= _PRECISION * self.kept)

    def next_rate(self, predicted: float) -> float:
        """Return the rate to measure next: the predicted one, unless measurements exclude it.

        Args:
            predicted: predicted highest rate.
        """
        if self.marginal:
            return max(self.missed / _PRECISION, math.sqrt(self.kept * self.missed))
        if not self.kept:
            return min(predicted, _DOWN * self.missed)
        if math.isinf(self.missed):
            least = _ROOMY_STEP if self.share < _ROOMY else _LEAST_STEP
            return min(max(predicted, least * self.kept), _MOST_STEP * self.kept)
        nearest = math.sqrt(_PRECISION)  # a rate that is closer to a measured one gives no new information
        if nearest * self.kept < predicted < self.missed / nearest:
            return predicted
        return math.sqrt(self.kept * self.missed)


def standing(trials: Sequence[Trial], target: Target) -> list[Trial]:
    """Return the trials that count: without those that a second measurement has shown to be spoiled by a stall."""
    return [
        trial
        for index, trial in enumerate(trials)
        if trial.keeps(target)
        or not any(
            (later.setting, later.rate, later.purpose) == (trial.setting, trial.rate, "again")
            for later in trials[index + 1 :]
        )
    ]


def limit(trials: Iterable[Trial], setting: Setting, target: Target) -> Limit:
    """Return the limit that trials of a setting show; a rate is missed if any trial at it or at a lower rate was.

    Args:
        trials: trials that count, see `standing`, also of other settings.
        setting: the setting.
        target: the target.
    """
    trials = [trial for trial in trials if trial.setting == setting]
    missed = min((trial.rate for trial in trials if not trial.keeps(target)), default=math.inf)
    kept_trials = [trial for trial in trials if trial.keeps(target)]
    highest = max((trial.rate for trial in kept_trials if trial.rate < missed), default=0.0)
    statistics = [trial.latency for trial in kept_trials if trial.rate == highest and trial.latency is not None]
    return Limit(
        kept=highest,
        missed=missed,
        rates=len({trial.rate for trial in trials}),
        share=max(statistics, default=target.seconds) / target.seconds,
        marginal=any(trial.rate == missed for trial in kept_trials),
    )
