"""The search against servers that are simulated with other times than those of the profile."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest

from tests.support.simulated_server import CONVOLUTIONS, DECODING, MIB, TINY, SimulatedServer, profiles, search
from torchmar.tuning.prediction import Bound, Predictor
from torchmar.tuning.search import MOST_TRIALS, Result, Search
from torchmar.tuning.space import Setting, Space
from torchmar.tuning.target import Objective, Question, parse_target
from torchmar.tuning.trials import Trial, numbers

SPACE = Space(cores=2, batch_sizes=(1, 16))
SMALL = Space(cores=2, batch_sizes=(16,))


@functools.cache
def searched(
    kind: tuple[float, float, float], target: str, rate: float | None = None, space: Space = SPACE
) -> tuple[SimulatedServer, Question, Result]:
    """Search for the highest rate, or for the lowest latency at a rate; each search takes a second."""
    objective = Objective.THROUGHPUT if rate is None else Objective.LATENCY
    question = Question(target=parse_target(target), objective=objective, rate=rate)
    server = SimulatedServer(kind, question.target)
    return server, question, search(server, space, question, kind)


@pytest.mark.parametrize(
    ("kind", "target"),
    [(DECODING, "p99<100ms"), (CONVOLUTIONS, "p95<50ms"), (TINY, "p99<5ms")],
)
def test_the_highest_rate_is_near_that_of_the_whole_grid(kind: tuple[float, float, float], target: str) -> None:
    server, question, result = searched(kind, target)
    assert max(numbers(server.measured, question.objective)) <= MOST_TRIALS
    assert result.best
    assert result.best.rate >= 0.95 * server.best_rate(SPACE)
    assert result.best.keeps(question.target)


def test_most_settings_are_rejected_by_one_measurement_beyond_the_best() -> None:
    server, _, result = searched(TINY, "p99<5ms")
    assert result.best
    rejected = [trial for trial in server.measured if trial.setting.layout != result.best.setting.layout]
    counts = Counter(trial.setting for trial in rejected if trial.purpose == "search" and trial.rate > 7_500)
    assert sum(count == 1 for count in counts.values()) >= 3


def test_the_highest_rate_is_measured_again_and_lowered_if_it_misses_the_target_then() -> None:
    question = Question(target=parse_target("p95<50ms"), objective=Objective.THROUGHPUT)
    server = SimulatedServer(CONVOLUTIONS, question.target)
    repeated: list[float] = []

    def measure(setting: Setting, rate: float, predicted: float, purpose: str) -> Trial:
        trial = server.measure(setting, rate, predicted, purpose)
        if purpose == "repeat" and not repeated:
            server.measured[-1] = trial = replace(trial, latency=0.06)
        if purpose == "repeat":
            repeated.append(rate)
        return trial

    predictor = Predictor(profiles(CONVOLUTIONS), question.target, cores=2)
    result = Search(predictor, SMALL, question, measure).run()
    assert result.best
    assert len(repeated) == 2
    assert 0.9 * repeated[0] < result.best.rate == repeated[1] < repeated[0]


@pytest.mark.parametrize(("kind", "rate"), [(DECODING, 60), (CONVOLUTIONS, 150), (TINY, 2_000)])
def test_the_lowest_latency_is_near_that_of_the_whole_grid(kind: tuple[float, float, float], rate: float) -> None:
    server, _, result = searched(kind, "p99<200ms", rate)
    assert len(server.measured) <= MOST_TRIALS
    assert result.best
    server.correct(result.best.setting)
    assert server.truth.at_rate(result.best.setting, rate).latency <= 1.1 * server.best_latency(SPACE, rate)


def test_the_cheapest_has_no_worker_too_many() -> None:
    question = Question(target=parse_target("p99<100ms"), objective=Objective.COST, rate=60)
    server = SimulatedServer(DECODING, question.target)
    result = search(server, SPACE, question, DECODING)
    assert result.best
    assert result.best.setting.workers == 1
    faster = search(server, SPACE, replace(question, rate=120), DECODING)
    assert faster.best
    assert faster.best.setting.workers == 2


def test_delays_of_torchserve_are_part_of_the_grid() -> None:
    space = Space(cores=1, batch_sizes=(16,), delays_ms=(1, 20))
    question = Question(target=parse_target("p99<100ms"), objective=Objective.THROUGHPUT)
    server = SimulatedServer(CONVOLUTIONS, question.target, engine="torchserve")
    result = search(server, space, question, CONVOLUTIONS)
    assert result.best
    assert result.best.rate >= 0.85 * server.best_rate(space)


def test_memory_excludes_settings() -> None:
    question = Question(target=parse_target("p99<100ms"), objective=Objective.THROUGHPUT, memory=150 * MIB)
    server = SimulatedServer(DECODING, question.target)
    result = search(server, Space(cores=2, batch_sizes=(8,)), question, DECODING)
    assert result.best
    assert result.best.setting.workers == 1
    assert {p.bound for p in result.predictions if p.setting.workers >= 2} == {Bound.MEMORY}


def test_an_unreachable_target_has_no_best_setting_but_a_nearest() -> None:
    question = Question(target=parse_target("p99<5ms"), objective=Objective.THROUGHPUT)
    server = SimulatedServer(DECODING, question.target)
    result = search(server, SPACE, question, DECODING)
    assert result.best is None
    assert result.nearest
    assert result.nearest.latency
    assert 0.009 < result.nearest.latency < 0.05
    assert len(server.measured) <= 4  # what is hopeless is not measured


def test_an_interrupted_search_measures_only_what_is_left() -> None:
    whole, question, expected = searched(CONVOLUTIONS, "p95<50ms", space=SMALL)
    half = whole.measured[: len(whole.measured) // 2]
    again = SimulatedServer(CONVOLUTIONS, question.target)
    again.measured = list(half)  # the seeds of the noise
    predictor = Predictor(profiles(CONVOLUTIONS), question.target, cores=2)
    result = Search(predictor, SMALL, question, again.measure, trials=half).run()
    assert again.measured == whole.measured
    assert result.best == expected.best


def test_a_trial_that_a_stall_has_spoiled_is_measured_again() -> None:
    _, question, quiet = searched(CONVOLUTIONS, "p95<50ms", space=SMALL)
    assert quiet.best
    best = quiet.best.setting
    server = SimulatedServer(CONVOLUTIONS, question.target)

    def measure(setting: Setting, rate: float, predicted: float, purpose: str) -> Trial:
        first = all(trial.setting != setting or trial.purpose == "probe" for trial in server.measured)
        trial = server.measure(setting, rate, predicted, purpose)
        if setting == best and first and purpose == "search":
            assert trial.latency
            server.measured[-1] = trial = replace(trial, latency=trial.latency + 1.0)
        return trial

    predictor = Predictor(profiles(CONVOLUTIONS), question.target, cores=2)
    result = Search(predictor, SMALL, question, measure).run()
    stalled, after = next((first, second) for first, second in pairwise(server.measured) if second.purpose == "again")
    assert (stalled.setting, stalled.rate) == (after.setting, after.rate)
    assert result.best
    assert result.best.setting == quiet.best.setting
    assert result.best.rate >= 0.9 * quiet.best.rate


def test_the_search_ends_with_the_time() -> None:
    question = Question(target=parse_target("p99<50ms"), objective=Objective.THROUGHPUT)
    server = SimulatedServer(CONVOLUTIONS, question.target)
    predictor = Predictor(profiles(CONVOLUTIONS), question.target, cores=2)
    now = 0.0

    def measure(setting: Setting, rate: float, predicted: float, purpose: str) -> Trial:
        nonlocal now
        now += 10.0
        return server.measure(setting, rate, predicted, purpose)

    result = Search(predictor, SPACE, question, measure, seconds=45, trial_seconds=10, clock=lambda: now).run()
    assert [trial.purpose for trial in server.measured] == ["probe", "search", "search", "search", "repeat"]
    assert result.best
    assert result.out_of_time
    assert "time" in result.reason


def test_long_trials_leave_time_to_measure_the_best_settings_again() -> None:
    question = Question(target=parse_target("p99<500ms"), objective=Objective.LATENCY, rate=20)
    server = SimulatedServer(DECODING, question.target)
    now = 0.0

    def measure(setting: Setting, rate: float, predicted: float, purpose: str) -> Trial:
        nonlocal now
        now += 10.0
        return server.measure(setting, rate, predicted, purpose)

    predictor = Predictor(profiles(DECODING), question.target, cores=2)
    space = Space(cores=2, batch_sizes=(1,))
    Search(predictor, space, question, measure, seconds=45, trial_seconds=10, clock=lambda: now).run()
    assert len(server.measured) == 5
    assert [trial.purpose for trial in server.measured[-2:]] == ["repeat", "repeat"]


def test_the_chosen_setting_is_measured_twice() -> None:
    _, _, result = searched(DECODING, "p99<200ms", 60)
    assert result.best
    assert result.chosen
    assert result.chosen.setting == result.best.setting
    assert len(result.chosen.latencies) >= 2
    assert result.noise is not None
    assert math.isfinite(result.noise)


def noisy(kind: tuple[float, float, float], factor: Callable[[int, Setting], float]) -> tuple[list[Trial], Result]:
    """Search for the lowest latency at a rate where measurements are wrong by a factor, by their number."""
    question = Question(target=parse_target("p99<500ms"), objective=Objective.LATENCY, rate=20)
    server = SimulatedServer(kind, question.target)
    trials: list[Trial] = []

    def measure(setting: Setting, rate: float, predicted: float, purpose: str) -> Trial:
        trial = server.measure(setting, rate, predicted, purpose)
        assert trial.latency
        assert trial.median
        error = factor(len(trials), setting)
        trials.append(replace(trial, latency=error * trial.latency, median=error * trial.median))
        return trials[-1]

    predictor = Predictor(profiles(kind), question.target, cores=2)
    return trials, Search(predictor, Space(cores=2, batch_sizes=(1, 8)), question, measure).run()


def test_settings_that_noise_cannot_separate_are_measured_in_turn_and_named() -> None:
    random = Random(3)
    trials, result = noisy(DECODING, lambda number, setting: math.exp(random.gauss(0, 0.2)))
    assert result.best
    assert result.chosen
    assert result.equal
    turns = [trial.setting for trial in trials if trial.purpose == "repeat"]
    assert len(set(turns)) > 1
    assert all(first != second for first, second in pairwise(turns))
    assert result.spread > 0.1
    assert len(trials) <= MOST_TRIALS
    mean = min(each.mean for each in (result.chosen, *result.equal))
    assert result.chosen.mean <= 1.05 * mean


def test_a_machine_that_becomes_slower_does_not_change_the_choice() -> None:
    _, steady = noisy(CONVOLUTIONS, lambda number, setting: 1.0)
    _, slower = noisy(CONVOLUTIONS, lambda number, setting: 1.03**number)
    assert steady.best
    assert slower.best
    assert slower.best.setting == steady.best.setting
