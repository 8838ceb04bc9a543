"""The measurements of a search: settings that meet the target, the best of them, and those that may be equally good."""

from __future__ import annotations

import math

from torchmar.tuning import finalists, limits
from torchmar.tuning.finalists import Measured
from torchmar.tuning.space import Setting
from torchmar.tuning.system_model import SystemModel
from torchmar.tuning.target import Objective, Question
from torchmar.tuning.trials import Trial, Verdict, numbers

SAME = 0.01  # relative difference of rates or latencies below which the cheaper setting counts as better
_STALLED = 2.0  # factor of the prediction above which a stall may explain a statistic, if the other requests were fast


class Measurements:
    """The trials of a search so far.

    Args:
        question: goal of the search.
        model: estimates the memory of servers whose memory was not measured.

    Attributes:
        trials: all trials.
        standing: the trials that count, see `torchmar.tuning.limits.standing`.
    """

    def __init__(self, question: Question, model: SystemModel) -> None:
        self.trials: list[Trial] = []
        self.standing: list[Trial] = []
        self._question, self._model = question, model

    def add(self, trial: Trial) -> None:
        """Add a trial."""
        self.trials.append(trial)
        self.standing = limits.standing(self.trials, self._question.target)

    def best(self) -> Trial | None:
        """Return the trial of the best setting that met the target in all its measurements; None: there is none."""
        trials = [trial for trial in self._kept() if trial.purpose != "repeat"]
        if self._question.objective is Objective.LATENCY:
            setting = next((finalist.setting for finalist in self.finalists()), None)
            trials = [trial for trial in trials if trial.setting == setting]
            return max(trials, key=lambda trial: trial.purpose != "probe", default=None)
        return min(trials, key=self.cost, default=None)

    def _kept(self) -> list[Trial]:
        """Return the trials, at the rate in question, of settings that met the target in all their measurements."""
        return [
            trial
            for trial in self.trials
            if self._keeps(trial)
            and not self._failed_at(trial.setting, trial.rate)
            and trial.verdict(self._question.target, *self.others(trial)) is not Verdict.MISSED
        ]

    def others(self, trial: Trial) -> list[Trial]:
        """Return the other measurements of a trial's setting at its rate."""
        return [other for other in self.standing if other is not trial and same(other, trial)]

    def by_rate(self) -> dict[tuple[Setting, float], Measured]:
        """Return the latencies of trials by setting and rate; the probe of a cold server only if it is alone."""
        trials: dict[tuple[Setting, float], list[tuple[Trial, float]]] = {}
        for trial in self.standing:
            if trial.latency is not None:
                trials.setdefault((trial.setting, trial.rate), []).append((trial, trial.latency))
        measured = {}
        for key, pairs in trials.items():
            warm = [latency for trial, latency in pairs if trial.purpose != "probe"]
            measured[key] = Measured(setting=key[0], latencies=tuple(warm or [latency for _, latency in pairs]))
        return measured

    def finalists(self) -> list[Measured]:
        """Return the choice, then the settings that may be equally good; for the lowest latency only."""
        if self._question.objective is not Objective.LATENCY:
            return []
        kept_keys = {(trial.setting, trial.rate) for trial in self._kept()}
        return finalists.finalists([measured for key, measured in self.by_rate().items() if key in kept_keys])

    def _keeps(self, trial: Trial) -> bool:
        """Return whether a trial shows that a setting meets the target and the limits at the rate in question."""
        if not trial.keeps(self._question.target):
            return False
        if self._question.rate is not None and trial.rate < 0.99 * self._question.rate:
            return False
        memory = trial.memory if trial.memory is not None else self._model.memory(trial.setting)
        return self._question.memory is None or memory <= self._question.memory

    def _failed_at(self, setting: Setting, rate: float) -> bool:
        """Return whether a setting missed the target at this rate, or at a lower one."""
        target = self._question.target
        return any(
            trial.setting == setting and trial.rate <= rate and not trial.keeps(target) for trial in self.standing
        )

    def cost(self, trial: Trial) -> tuple[float, ...]:
        """Return a key by which trials are compared; the smallest is the best."""
        setting = trial.setting
        size = (setting.processes, setting.batch_size, setting.threads)
        if self._question.objective is Objective.THROUGHPUT:
            return -rounded(trial.rate), *size
        assert trial.latency is not None
        memory = trial.memory if trial.memory is not None else self._model.memory(setting)
        return memory, trial.latency, *size

    def count(self) -> int:
        """Return the number of trials so far."""
        return max(numbers(self.trials, self._question.objective), default=0)

    def doubtful(self, trial: Trial) -> bool:
        """Return whether to repeat a trial because a single stall may explain its result."""
        if trial.latency is None or trial.median is None or trial.saturated or trial.purpose == "probe":
            return False
        stalled = trial.latency > _STALLED * trial.predicted and trial.median < trial.predicted
        return (
            stalled and not trial.keeps(self._question.target) and sum(same(trial, other) for other in self.trials) == 1
        )

    def limit(self, setting: Setting) -> limits.Limit:
        """Return the measured limit of a setting's highest rate."""
        return limits.limit(self.standing, setting, self._question.target)

    def knows_layout(self, setting: Setting) -> bool:
        """Return whether a setting with the same workers and threads was measured."""
        return any(trial.setting.layout == setting.layout for trial in self.trials)

    def nearest(self) -> Trial | None:
        """Return the trial with the statistic closest to the target."""
        answered = [trial for trial in self.trials if trial.latency is not None]
        return min(answered, key=lambda trial: (trial.failed > 0.5, trial.latency or math.inf), default=None)


def same(first: Trial, second: Trial) -> bool:
    """Return whether two trials are of one setting at one rate."""
    return (first.setting, first.rate) == (second.setting, second.rate)


def rounded(value: float) -> float:
    """Return a value rounded to steps of `SAME`, so that nearly equal values become equal."""
    return round(math.log(value) / math.log1p(SAME)) if value > 0 else -math.inf
