"""The reasons for a chosen setting: why others were excluded, the weight of the choice, the errors of predictions."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from statistics import median

from torchmar.load.statistics import LEAST_BEYOND
from torchmar.tuning.completed import Tuning
from torchmar.tuning.finalists import Measured
from torchmar.tuning.limits import Limit, limit, standing
from torchmar.tuning.prediction import Bound, Prediction
from torchmar.tuning.profile import DRIFT
from torchmar.tuning.search import REPEATABLE
from torchmar.tuning.space import Setting
from torchmar.tuning.target import Objective, milliseconds
from torchmar.tuning.trials import Trial, Verdict

_REGIONS = 6  # number of regions in the explanation
_NEAR = 0.05  # relative difference from the best setting up to which a setting counts as equally good
_ROUNDING = 0.005  # a rate that is 5.4 % higher is shown as 5 %


def explain(tuning: Tuning) -> list[str]:
    """Return the reasons for the result, each a sentence."""
    reasons = (_unproven, _rejected, _equal, _near_limit, _sensitivity, _cluster, _profiles, _accuracy, _noise)
    return [*(text for reason in reasons for text in reason(tuning)), _end(tuning)]


def pareto_front(predictions: Sequence[Prediction], *, throughput: bool) -> list[Prediction]:
    """Return the predictions that no other exceeds in rate, latency and memory at once, by their rate.

    Args:
        predictions: predictions of the settings.
        throughput: whether the rates are the highest rates within the target, and not all equal; otherwise capacities
            are compared.
    """

    def rate(prediction: Prediction) -> float:
        return prediction.rate if throughput else prediction.capacity

    usable = [prediction for prediction in predictions if prediction.rate > 0 and math.isfinite(prediction.latency)]
    front: list[Prediction] = []
    for prediction in sorted(
        usable, key=lambda prediction: (-rate(prediction), prediction.latency, prediction.memory, prediction.setting)
    ):
        if not any(
            (throughput or other.latency <= prediction.latency) and other.memory <= prediction.memory for other in front
        ):
            front.append(prediction)
    return sorted(front, key=rate)


def _unproven(tuning: Tuning) -> Iterator[str]:
    """Yield the facts about a target for whose percentile the trials had too few requests."""
    target, result = tuning.question.target, tuning.result
    short = [trial for trial in tuning.record.trials if trial.verdict(target) is Verdict.UNPROVEN]
    if not short and tuning.compared == target:
        return
    fewest = min((trial.answered for trial in tuning.record.trials if trial.answered), default=0)
    text = f"{target.name} needs {target.least_requests:,} requests, so that {LEAST_BEYOND} are beyond it"
    text += f"; trials had as few as {fewest:,}"
    if tuning.compared != target:
        text += f", so that settings were compared by {tuning.compared.name}"
    if result.best and result.verdict is Verdict.UNPROVEN and result.within is not None:
        seconds = target.least_requests / result.best.rate
        yield (
            f"{text}. Whether the chosen setting keeps {target} is not shown: with 95% confidence, {result.within:.1%} "
            f"of its requests are within the target. --trial {math.ceil(1.1 * seconds)}s with a longer --budget shows "
            "it."
        )
    elif result.best and result.verdict is Verdict.KEPT:
        yield f"{text}. All measurements of the chosen setting together show that it keeps {target}."
    else:
        yield f"{text}."


def _near_limit(tuning: Tuning) -> Iterator[str]:
    """Yield how the latency of the chosen setting changes with the rate, from its measurements."""
    best, chosen = tuning.result.best, tuning.result.chosen
    if best is None or chosen is None or tuning.question.objective is not Objective.THROUGHPUT:
        return
    target = tuning.question.target
    reached = _limit(best.setting, tuning)
    latency = tuning.predictor.latency(best.setting, best.rate)
    less, more = (
        tuning.predictor.latency(best.setting, best.rate * factor) * chosen.mean / latency
        for factor in (1 - _NEAR, 1 + _NEAR)
    )
    text = f"With {_NEAR:.0%} fewer requests, {target.name} is predicted to be {milliseconds(less)}"
    if reached.missed < (1 + _NEAR + _ROUNDING) * best.rate:
        yield f"{text}; with {reached.missed / best.rate - 1:.0%} more, the target was missed: leave room."
        return
    text += f", with {_NEAR:.0%} more "
    text += f"{milliseconds(more)}" if math.isfinite(more) else "the server to be saturated"
    yield text + (": leave room." if more >= target.seconds else ".")


def _profiles(tuning: Tuning) -> Iterator[str]:
    """Yield a sentence if the machine became slower or faster while batches were timed."""
    drift = max((profile.drift for profile in tuning.record.profiles), key=abs, default=0.0)
    if abs(drift) > DRIFT:
        change = "longer" if drift > 0 else "less"
        yield (
            f"Batches took {abs(drift):.0%} {change} at the end of the profiles than at their begin: the machine was "
            "not steady."
        )


def _rejected(tuning: Tuning) -> Iterator[str]:
    """Yield a sentence for each region: settings with the same workers and threads that reach the same limit."""
    best = tuning.result.best
    if best is None:
        return
    groups: dict[tuple[object, Bound], list[Prediction]] = {}
    for prediction in tuning.result.predictions:
        if prediction.setting != best.setting and not _as_good(prediction, tuning):
            groups.setdefault((prediction.setting.layout, prediction.bound), []).append(prediction)
    regions = sorted(groups.values(), key=lambda members: min(_rank(prediction, tuning) for prediction in members))
    for members in regions[:_REGIONS]:
        yield _sentence(members, tuning)
    if further := [prediction for members in regions[_REGIONS:] for prediction in members]:
        yield f"{len(further)} further settings are predicted to be worse than these."


def _sentence(members: Sequence[Prediction], tuning: Tuning) -> str:
    """Return the reason why the settings of a region were rejected."""
    best, question, bound = tuning.result.best, tuning.question, members[0].bound
    assert best
    region = _region([member.setting for member in members], tuning)
    if bound is Bound.MEMORY:
        least = min(member.memory for member in members)
        return f"{region}: more memory than allowed ({least / 2**20:,.0f} MiB or more)."
    if question.objective is Objective.THROUGHPUT:
        highest = max(member.rate for member in members)
        settings = {member.setting for member in members}
        kept_rate = max(_limit(setting, tuning).kept for setting in settings)
        if kept_rate > highest:  # the prediction was too low
            return f"{region}: the target is kept at {_rate(kept_rate)} ({_share(kept_rate, best.rate)}), as measured."
        if not highest:
            return f"{region}: {_LIMITS[bound]} at every rate."
        return f"{region}: {_LIMITS[bound]} above {_rate(highest)} ({_share(highest, best.rate)})."
    if bound is Bound.NONE:
        lowest = min(member.latency for member in members)
        least = min(member.memory for member in members)
        if question.objective is Objective.COST:
            return f"{region}: the target is kept, with more memory ({least / 2**20:,.0f} MiB or more)."
        return f"{region}: the target is kept, but {tuning.compared.name} is {milliseconds(lowest)} or more."
    return f"{region}: {_LIMITS[bound]} at {_rate(best.rate)}."


def _limit(setting: Setting, tuning: Tuning) -> Limit:
    """Return the measured limits of the highest rate at which a setting meets the target."""
    target = tuning.question.target
    return limit(standing(tuning.record.trials, target), setting, target)


def _rank(prediction: Prediction, tuning: Tuning) -> float:
    """Return a sort key, smallest for the best of the rejected settings."""
    if tuning.question.objective is Objective.THROUGHPUT:
        return -prediction.rate
    return float(prediction.memory) if tuning.question.objective is Objective.COST else prediction.latency


_LIMITS = {
    Bound.NONE: "nothing is exceeded",
    Bound.LATENCY: "the latency target is missed",
    Bound.WORKERS: "the workers are saturated",
    Bound.CORES: "the cores are saturated",
    Bound.LOOP: "the server's event loop is saturated",
    Bound.QUEUE: "the queue is full (jobQueueSize)",
    Bound.MEMORY: "there is too little memory",
}


def _as_good(prediction: Prediction, tuning: Tuning) -> bool:
    best = tuning.result.best
    assert best
    if prediction.bound is Bound.MEMORY:
        return False
    if tuning.question.objective is Objective.THROUGHPUT:
        return prediction.rate >= (1 - _NEAR) * best.rate
    if tuning.question.objective is Objective.COST:
        return False
    assert tuning.result.chosen
    return prediction.latency <= (1 + _near(tuning)) * tuning.result.chosen.mean


def _near(tuning: Tuning) -> float:
    """Return the relative difference up to which settings count as equally good: at least that of two measurements."""
    return max(_NEAR, tuning.result.spread) if tuning.question.objective is Objective.LATENCY else _NEAR


def _equal(tuning: Tuning) -> Iterator[str]:
    """Yield the measured settings whose difference from the chosen one may be noise."""
    name, result = tuning.compared.name, tuning.result
    if not result.equal or result.chosen is None:
        return
    others = "; ".join(f"{measured.setting}: {_mean(measured)}" for measured in result.equal)
    yield (
        f"Measured in turn, it has {name} {_mean(result.chosen)}. What differs from it by no more than noise, so that "
        f"it may be as good or better: {others}. The choice is the simplest of those near the lowest."
    )


def _mean(measured: Measured) -> str:
    times = len(measured.latencies)
    return milliseconds(measured.mean) + (f" in the mean of {times}" if times > 1 else " in one measurement")


def _sensitivity(tuning: Tuning) -> Iterator[str]:
    best = tuning.result.best
    if best is None or tuning.question.objective is Objective.COST:
        return
    near = _near(tuning)
    shown_settings = {best.setting, *(measured.setting for measured in tuning.result.equal)}
    good = [prediction.setting for prediction in tuning.result.predictions if _as_good(prediction, tuning)]
    others = [setting for setting in good if setting not in shown_settings]
    if others:
        yield f"Within {near:.0%} of it, as predicted: {_region(others, tuning)}; the choice among them matters little."
    else:
        yield f"No other setting of the grid is predicted within {near:.0%} of it: the choice matters."


def _region(settings: Sequence[Setting], tuning: Tuning) -> str:
    """Return the values of each dimension: ``3 to 4 workers with 1 thread, batch size 1 and 8 to 128``."""

    def values(name: str) -> str:
        grid = sorted({getattr(prediction.setting, name) for prediction in tuning.result.predictions})
        return _runs({getattr(setting, name) for setting in settings}, grid)

    workers, threads = values("workers"), values("threads")
    text = f"{workers} worker{'' if workers == '1' else 's'} with {threads} thread{'' if threads == '1' else 's'}"
    if any(setting.preprocess for setting in settings):
        text += f" and {values('preprocess')} that preprocess"
    text += f", batch size {values('batch_size')}"
    if any(setting.delay_ms for setting in settings):
        text += f", delay {values('delay_ms')} ms"
    return text + (", on the GPU" if all(setting.gpu for setting in settings) else "")


def _runs(values: Collection[int], grid: Sequence[int]) -> str:
    """Return values of a grid as text, with consecutive values as a range: ``1, 2 and 16 to 128``."""
    groups: list[list[int]] = []
    for place, value in enumerate(grid):
        if value not in values:
            continue
        if groups and place and grid[place - 1] == groups[-1][-1]:
            groups[-1].append(value)
        else:
            groups.append([value])
    texts = [f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in groups]
    return " and ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))


def _cluster(tuning: Tuning) -> Iterator[str]:
    if room := tuning.record.cluster:
        fitting = [f"{number} with {threads} CPU{'s' * (threads != 1)}" for threads, number in room.replicas]
        yield (
            f"The cluster has room for these replicas: {', or '.join(fitting)} each. Their number is fixed: "
            "autoscaling, stages and GPUs are not searched, and batches were timed on this machine, not on each node."
        )


def _accuracy(tuning: Tuning) -> Iterator[str]:
    misses = [abs(trial.miss) for trial in _compared(tuning.record.trials) if trial.miss is not None]
    if misses:
        yield (
            f"Predictions of {tuning.compared.name} missed the measurements by {median(misses):.0%} in the "
            f"median, and by {max(misses):.0%} at the most; the first trial, which measures the server itself, is not "
            "counted."
        )


def _compared(trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.purpose != "probe"]


def _noise(tuning: Tuning) -> Iterator[str]:
    result = tuning.result
    if result.noise is not None and result.chosen is not None:
        verdict = "repeatable" if result.noise <= REPEATABLE else "noisy: a difference of this size says nothing"
        times = {2: "twice", 3: "three times"}.get(number := len(result.chosen.latencies), f"{number} times")
        yield f"The chosen setting, measured {times}, differed by {result.noise:.0%}: {verdict}."
    elif tuning.result.best:
        yield "The chosen setting was measured once only."
    disturbed = [trial for trial in tuning.record.trials if trial.disturbances]
    if disturbed:
        yield (
            f"{len(disturbed)} of {len(tuning.record.trials)} measurements were disturbed (*), so that their figures "
            f"are not only the server's ({disturbed[-1].disturbances[0]})."
        )


def _end(tuning: Tuning) -> str:
    return f"The search ended because {tuning.result.reason}."


def _rate(value: float) -> str:
    return f"{value:,.0f} requests/s" if value >= 10 else f"{value:.2g} requests/s"


def _share(value: float, best: float) -> str:
    return f"{value / best:.0%} of the best" if best else "none"
