"""The highest rate at which a setting keeps the target, closed in on by measurements at several rates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torchmar.tuning.space import Setting
from torchmar.tuning.target import Target
from torchmar.tuning.trials import Trial

MOST_RATES = 8  # at which a setting is measured
_PRECISION = 1.05  # of the limit
_LEAST_STEP, _MOST_STEP = 1.05, 1.6  # factor of the next higher rate
_ROOMY_STEP, _ROOMY = 1.15, 0.6  # the least one, while the statistic is below this part of the target
_DOWN = 0.8  # factor of the next lower rate, at the most


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The highest rate of a setting, as far as its measurements show it.

    Attributes:
        kept: the highest rate at which it kept the target, in requests per second; 0: it kept it at none.
        missed: the lowest at which it missed it; infinite: it missed it at none.
        rates: the number of rates at which it was measured.
        share: the part of the target that the statistic has at the rate ``kept``.
        marginal: whether it kept the target at the lowest missed rate, too, in another measurement.
    """

    kept: float
    missed: float
    rates: int
    share: float = 1.0
    marginal: bool = False

    @property
    def known(self) -> bool:
        """Whether further measurements would say little more."""
        return self.rates >= MOST_RATES or (self.kept > 0 and self.missed <= _PRECISION * self.kept)

    def next_rate(self, predicted: float) -> float:
        """Return the rate at which to measure next: that of the prediction, as far as measurements do not exclude it.

        Args:
            predicted: the highest rate.
        """
        if self.marginal:
            return max(self.missed / _PRECISION, math.sqrt(self.kept * self.missed))
        if not self.kept:
            return min(predicted, _DOWN * self.missed)
        if math.isinf(self.missed):
            least = _ROOMY_STEP if self.share < _ROOMY else _LEAST_STEP
            return min(max(predicted, least * self.kept), _MOST_STEP * self.kept)
        nearest = math.sqrt(_PRECISION)  # a rate that is nearer to a measured one shows no more
        if nearest * self.kept < predicted < self.missed / nearest:
            return predicted
        return math.sqrt(self.kept * self.missed)


def standing(trials: Sequence[Trial], target: Target) -> list[Trial]:
    """Return the trials without those of which a second measurement showed that a stall had spoiled them."""
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
    """Return what the trials of a setting show; a rate counts as missed if any trial at it, or below, missed it.

    Args:
        trials: that count, see `standing`; also those of other settings.
        setting: the setting.
        target: the target.
    """
    trials = [trial for trial in trials if trial.setting == setting]
    missed = min((trial.rate for trial in trials if not trial.keeps(target)), default=math.inf)
    kept = [trial for trial in trials if trial.keeps(target)]
    highest = max((trial.rate for trial in kept if trial.rate < missed), default=0.0)
    statistics = [trial.latency for trial in kept if trial.rate == highest and trial.latency is not None]
    return Limit(
        kept=highest,
        missed=missed,
        rates=len({trial.rate for trial in trials}),
        share=max(statistics, default=target.seconds) / target.seconds,
        marginal=any(trial.rate == missed for trial in kept),
    )
