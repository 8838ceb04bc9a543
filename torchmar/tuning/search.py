"""The search: choose the settings to measure, and end when no other setting can be much better.

Every setting of the grid is predicted. The next trial measures the setting that would be the best if its prediction
were wrong by a usual error: 20 % for workers and threads that no trial has measured, a few percent for others. The
search ends when even with such an error no setting would be better than the best measured one. Therefore neighbours of
the best setting are measured as long as they could be better.

For the highest rate, a trial measures its setting at several rates, until its highest rate is known, or is certainly
lower than that of the best setting. The first of these rates is a little higher than that of the best setting: most
settings miss the target there, and are rejected after one short measurement.

A single stall of the machine can spoil a trial whose other requests were fast. Such a trial is repeated, and only the
second measurement counts.

For the lowest latency at a rate, the best few settings are measured again in turn, until their differences are more
than noise. Measured one after the other, they would also differ by changes of the machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torchmar.tuning.finalists import Measured, spread
from torchmar.tuning.measurements import SAME, Measurements, rounded, same
from torchmar.tuning.prediction import Bound, Prediction, Predictor
from torchmar.tuning.space import Setting, Space
from torchmar.tuning.target import Objective, Question
from torchmar.tuning.trials import Trial, Verdict

MOST_TRIALS = 10
REPEATABLE = 0.05  # relative difference of two measurements of a setting, above which they are called noisy
_UNMEASURED, _MEASURED = 0.2, 0.03  # usual relative errors of predictions
_PROBE = 0.5  # part of the predicted highest rate at which the server's own time is measured
_FLOOR = 0.1  # part of the predicted capacity at which latency is the time of a batch
_BEYOND = 1.03  # factor of the best rate at which another setting is first measured
_ALONE = 0.8  # part of the predicted highest rate for the first measurement, while no setting has met the target
_FINALISTS, _ROUNDS = 3, 3  # number of settings that are measured in turn, and measurements of each
_RESERVED = 3  # trials that are kept back for them
_CONFIRMING = 2  # trials that confirm the highest rate; the first may show that the best setting misses the target
_FINE = 8  # largest number of settings that are predicted finely before a trial


class Measure(Protocol):
    """A function that measures a setting."""

    def __call__(self, setting: Setting, rate: float, predicted: float, purpose: str) -> Trial: ...


@dataclass(frozen=True, kw_only=True)
class Result:
    """The end of a search.

    Attributes:
        best: a trial of the chosen setting; None: no measured setting meets the target.
        nearest: the trial closest to the target, if no setting meets it; None: there are no trials.
        chosen: all measurements of the chosen setting at the rate of ``best``; None: there is none.
        equal: other measured settings whose difference from the best may be noise, in a search for the lowest latency
            at a rate.
        verdict: verdict of the chosen setting's measurements on the target.
        within: share of its answers within the target, a lower bound with 95 % confidence; None: unknown.
        spread: relative standard deviation of a measurement, from repeated measurements.
        predictions: predictions of all settings, after all corrections.
        reason: reason for the end of the search.
        out_of_time: whether the search would continue with more time.
    """

    best: Trial | None
    nearest: Trial | None
    chosen: Measured | None
    equal: tuple[Measured, ...]
    spread: float
    predictions: tuple[Prediction, ...]
    reason: str
    verdict: Verdict = Verdict.MISSED
    within: float | None = None
    out_of_time: bool = False

    @property
    def noise(self) -> float | None:
        """The relative difference of the chosen setting's measurements; None: there is only one."""
        if self.chosen is None or len(self.chosen.latencies) < 2:
            return None
        return max(self.chosen.latencies) / min(self.chosen.latencies) - 1


class Search:
    """A search for the best setting.

    Args:
        predictor: predictions for one archive on one machine.
        space: the settings.
        question: goal of the search.
        measure: measures a setting at a rate.
        trials: trials of an interrupted search.
        most_trials: largest number of trials, with those of the interrupted search.
        seconds: time for measurements; the last measurement may end later by its own duration.
        trial_seconds: duration of a measurement, if all have the same.
        clock: returns seconds of a steady clock.
    """

    def __init__(
        self,
        predictor: Predictor,
        space: Space,
        question: Question,
        measure: Measure,
        *,
        trials: Sequence[Trial] = (),
        most_trials: int = MOST_TRIALS,
        seconds: float = math.inf,
        trial_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.predictor, self.question = predictor, question
        self._measured = Measurements(question, predictor.model)
        self._settings = list(space.settings())
        self._measure, self._most = measure, most_trials
        self._clock, self._deadline, self._trial_seconds = clock, clock() + seconds, trial_seconds
        for trial in trials:
            self._learn(trial)

    def run(self) -> Result:
        """Measure until no other setting can be much better, or the trials or the time are used up."""
        reason = "no other setting can be better by more than predictions are usually wrong"
        out_of_time = False
        while True:
            if self._time() <= 0:
                reason, out_of_time = "the time was used up", True
                break
            if not (proposal := self._again() or self._explore() or self._repetition() or self._next()):
                break
            setting, rate, predicted, purpose = proposal
            if self._measured.count() >= self._most and not self._continues(setting):
                reason = f"{self._most} trials were measured"
                break
            self._learn(self._measure(setting, rate, predicted, purpose))
        best, ranked, measured = self._measured.best(), self._measured.finalists(), self._measured.by_rate()
        settings = (setting for setting in self._settings if self.predictor.model.knows(setting))
        predictions = tuple(self.predict(setting, fine=False) for setting in settings)
        others = self._measured.others(best) if best else []
        return Result(
            best=best,
            verdict=best.verdict(self.question.target, *others) if best else Verdict.MISSED,
            within=best.share_within(*others) if best else None,
            nearest=self._measured.nearest(),
            chosen=ranked[0] if ranked else measured[best.setting, best.rate] if best else None,
            equal=tuple(ranked[1:]),
            spread=spread(list(measured.values())),
            predictions=predictions,
            reason=reason,
            out_of_time=out_of_time,
        )

    def predict(self, setting: Setting, *, fine: bool = True) -> Prediction:
        """Predict a setting at the given rate, or at its highest rate."""
        if self.question.rate is None:
            return self.predictor.highest(setting, fine=fine)
        return self.predictor.at_rate(setting, self.question.rate, fine=fine)

    def _time(self) -> float:
        """Return the remaining time in seconds."""
        return self._deadline - self._clock()

    def _continues(self, setting: Setting) -> bool:
        """Return whether a measurement of a setting belongs to the same trial as the previous one."""
        return self.question.objective is Objective.THROUGHPUT and self._measured.trials[-1].setting == setting

    def _learn(self, trial: Trial) -> None:
        self._measured.add(trial)
        if trial.purpose == "probe":
            self.predictor.calibrate(trial)
        elif not self._measured.doubtful(trial):
            self.predictor.refit(trial)

    def _again(self) -> tuple[Setting, float, float, str] | None:
        """Return the last trial for a second measurement, if it is doubtful."""
        if not self._measured.trials or not self._measured.doubtful(last := self._measured.trials[-1]):
            return None
        return last.setting, last.rate, last.predicted, "again"

    def _explore(self) -> tuple[Setting, float, float, str] | None:
        """Return a measurement that may find a better setting, while trials and time remain to repeat the best."""
        best = self._measured.best()
        if best and self._time() < self._reserved_time(best):
            return None
        if following := self._following():
            return following
        if best and self._most - self._measured.count() <= self._reserved_trials():
            return None
        return self._next() or self._floor()

    def _reserved_trials(self) -> int:
        """Return the number of trials that are kept back to measure the best settings again."""
        if self.question.objective is Objective.THROUGHPUT:
            return min(_CONFIRMING, max(1, self._most // 3))
        return min(_RESERVED, self._most // 3) if self.question.objective is Objective.LATENCY else 0

    def _reserved_time(self, best: Trial) -> float:
        """Return the time in seconds that is kept back for them."""
        if self.question.rate is None:
            return max(best.seconds, self._trial_seconds)
        return self._trial_seconds * (self._reserved_trials() + 0.5)

    def _following(self) -> tuple[Setting, float, float, str] | None:
        """Return the previous setting at its next rate; None: its highest rate is known, or lower than the best."""
        if self.question.rate is not None or not self._measured.trials:
            return None
        prediction = self.predict(self._measured.trials[-1].setting)
        rate = self._rate_for(prediction)
        if not rate:
            return None
        return prediction.setting, rate, self.predictor.latency(prediction.setting, rate), "search"

    def _next(self) -> tuple[Setting, float, float, str] | None:
        """Return setting, rate, predicted latency and purpose of the next trial; None: no trial is useful."""
        candidates = self._candidates()
        if not self._measured.trials:
            return self._probe(candidates)
        best = self._measured.best()
        proposal: tuple[Setting, float, float, str] | None = None
        promise = math.inf
        for prediction in candidates:
            rate = self._rate_for(prediction)
            if rate is None:
                continue
            optimistic = self._optimistic(prediction)
            if optimistic < promise and (best is None or self._better(optimistic, best)):
                promise = optimistic
                predicted = self.predictor.latency(prediction.setting, rate)
                proposal = prediction.setting, rate, predicted, "search"
        return proposal

    def _floor(self) -> tuple[Setting, float, float, str] | None:
        """Return a trial at a low rate, if no setting is predicted to meet the target: it shows the lowest latency."""
        if (
            self.question.rate is not None
            or self._measured.best()
            or any(trial.purpose == "floor" for trial in self._measured.trials)
        ):
            return None
        profiled = (setting for setting in self._settings if self.predictor.model.knows(setting))
        predictions = [self.predict(setting, fine=False) for setting in profiled]
        usable = [prediction for prediction in predictions if prediction.bound is not Bound.MEMORY]
        if not usable:
            return None
        fastest = min(usable, key=lambda prediction: (prediction.latency, prediction.setting))
        rate = max(1.0, _FLOOR * fastest.capacity)
        return fastest.setting, rate, self.predictor.latency(fastest.setting, rate), "floor"

    def _repetition(self) -> tuple[Setting, float, float, str] | None:
        """Return another measurement of the best setting, or of the finalists in turn; None: there are enough."""
        if self.question.objective is Objective.LATENCY:
            return self._turn(self._measured.finalists()[:_FINALISTS])
        best = self._measured.best()
        if best is None or any(trial.purpose == "repeat" and same(trial, best) for trial in self._measured.trials):
            return None
        return best.setting, best.rate, self.predictor.latency(best.setting, best.rate), "repeat"

    def _turn(self, ranked: Sequence[Measured]) -> tuple[Setting, float, float, str] | None:
        rounds = _ROUNDS if len(ranked) > 1 else 2
        setting = next((measured.setting for measured in sorted(ranked, key=_count) if _count(measured) < rounds), None)
        rate = self.question.rate
        if setting is None or rate is None:
            return None
        return setting, rate, self.predictor.latency(setting, rate), "repeat"

    def _candidates(self) -> list[Prediction]:
        """Return fine predictions of the settings that may be worth a trial."""
        coarse = [
            self.predict(setting, fine=False) for setting in self._settings if self.predictor.model.knows(setting)
        ]
        coarse = [prediction for prediction in coarse if prediction.bound is not Bound.MEMORY]
        worth = [prediction for prediction in coarse if self._rate_for(prediction) is not None]
        if self.question.rate is not None:
            # If no setting meets the target, the closest one shows what is possible.
            bound = self.question.target.seconds * (1 + _UNMEASURED)
            worth = [prediction for prediction in worth if prediction.latency <= bound] or worth
        # Of equally good settings, that with the fewest workers and the smallest batches.
        worth.sort(key=lambda prediction: (self._optimistic(prediction), prediction.setting))
        return [self.predict(prediction.setting) for prediction in worth[:_FINE]]

    def _probe(self, candidates: Sequence[Prediction]) -> tuple[Setting, float, float, str] | None:
        if not candidates:
            return None
        if self.question.objective is Objective.THROUGHPUT:
            candidate = max(candidates, key=lambda prediction: prediction.rate)
            rate = _PROBE * (candidate.rate or candidate.capacity)
        else:
            assert self.question.rate is not None
            candidate = min(candidates, key=self._predicted_cost)
            rate = min(self.question.rate, 0.9 * candidate.capacity)
        return candidate.setting, rate, self.predictor.latency(candidate.setting, rate), "probe"

    def _predicted_cost(self, prediction: Prediction) -> tuple[float, ...]:
        if self.question.objective is Objective.COST:
            return not self._fits(prediction), prediction.memory, prediction.latency
        return rounded(prediction.latency), prediction.setting.processes, prediction.setting.batch_size

    def _fits(self, prediction: Prediction) -> bool:
        return prediction.latency < self.question.target.seconds

    def _rate_for(self, prediction: Prediction) -> float | None:
        """Return the rate at which a setting should be measured next; None: its measurements are sufficient."""
        if self.question.rate is not None:
            # The first trial measures a cold server, which is enough if the latency need only be within the target.
            cost = self.question.objective is Objective.COST
            trials = [trial for trial in self._measured.standing if trial.setting == prediction.setting]
            warm = [trial for trial in trials if cost or trial.purpose != "probe"]
            measured = any(trial.rate >= 0.99 * self.question.rate for trial in warm)
            return None if measured else self.question.rate
        limit, best = self._measured.limit(prediction.setting), self._measured.best()
        best_rate = best.rate if best and best.setting != prediction.setting else 0.0
        if not limit.rates:
            return _BEYOND * best_rate or _ALONE * prediction.rate or None
        if limit.known or limit.missed < (_BEYOND + SAME) * best_rate:
            return None
        return limit.next_rate(prediction.rate) or None

    def _optimistic(self, prediction: Prediction) -> float:
        """Return the value that a setting would have with a usual error in its favour; the smallest is the best."""
        doubt = _MEASURED if self._measured.knows_layout(prediction.setting) else _UNMEASURED
        if self.question.objective is Objective.THROUGHPUT:
            return -min((1 + doubt) * prediction.rate, self._measured.limit(prediction.setting).missed)
        latency = prediction.latency * (1 - doubt)
        if self.question.objective is Objective.LATENCY:
            return latency
        return prediction.memory if latency < self.question.target.seconds else math.inf

    def _better(self, optimistic: float, best: Trial) -> bool:
        """Return whether a value would be better than that of a trial."""
        if self.question.objective is Objective.THROUGHPUT:
            return optimistic < -best.rate * (1 + SAME)
        if self.question.objective is Objective.LATENCY:
            return optimistic < min(finalist.mean for finalist in self._measured.finalists()) * (1 - SAME)
        return optimistic < self._measured.cost(best)[0] * (1 - SAME)


def _count(measured: Measured) -> int:
    return len(measured.latencies)
