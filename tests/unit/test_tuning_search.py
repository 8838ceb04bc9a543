"""The search against servers that are simulated with other times than those of the profile."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from torchmar.tuning.prediction import Bound, Correction, Predictor
from torchmar.tuning.profile import Profile
from torchmar.tuning.search import MOST_TRIALS, Question, Result, Search
from torchmar.tuning.service_model import BatchTimes
from torchmar.tuning.simulation import simulate
from torchmar.tuning.space import Setting, Space
from torchmar.tuning.target import Objective, Target, parse_target
from torchmar.tuning.trials import Trial

MIB = 1 << 20
# Seconds of a batch: fixed, for each request; and how many of two cores two threads use.
DECODING = (0.0005, 0.009, 1.1)
CONVOLUTIONS = (0.004, 0.003, 1.8)
TINY = (0.0003, 0.00005, 1.0)


def profiles(kind: tuple[float, float, float]) -> list[Profile]:
    fixed, each, gain = kind
    return [
        Profile(
            threads=threads,
            gpu=False,
            times=tuple(
                BatchTimes(
                    size=size,
                    seconds=tuple((fixed + each * size) / speed * noise for noise in (0.9, 1.0, 1.0, 1.1)),
                    cpu_seconds=fixed + each * size,
                )
                for size in (1, 4, 16, 64)
            ),
            memory=100 * MIB,
            load_seconds=1.0,
        )
        for threads, speed in ((1, 1.0), (2, gain))
    ]


class SimulatedServer:
    """A server whose batches take longer than those of the profile, the more workers there are."""

    def __init__(self, kind: tuple[float, float, float], target: Target, *, engine: str = "builtin") -> None:
        self.truth = Predictor(profiles(kind), target, engine=engine, cores=2)
        self.truth.loop, self.truth.client, self.truth.latency_offset = 0.00012, 0.00005, 0.0003
        self.target = target
        self.measured: list[Trial] = []

    def correct(self, setting: Setting) -> None:
        self.truth.corrections[setting.layout] = Correction(scale=1.0 + 0.12 * setting.workers)

    def measure(self, setting: Setting, rate: float, predicted: float, purpose: str) -> Trial:
        self.correct(setting)
        requests = max(300, min(10_000, int(rate * 8)))
        outcome = simulate(self.truth.system(setting), rate, requests=requests, seed=len(self.measured) + 1)
        percent = self.target.percent
        trial = Trial(
            setting=setting,
            rate=rate,
            seconds=outcome.seconds,
            requests=requests,
            latency=outcome.mean if percent is None else outcome.percentile(percent),
            median=outcome.percentile(50),
            throughput=(requests - outcome.rejected) / outcome.seconds,
            failed=outcome.rejected / requests,
            predicted=predicted,
            loop=self.truth.loop,
            client=self.truth.client,
            memory=(50 + 80 * setting.processes) * MIB,
            purpose=purpose,
        )
        self.measured.append(trial)
        return trial

    def best_rate(self, space: Space) -> float:
        rates = []
        for setting in space.settings():
            self.correct(setting)
            rates.append(self.truth.highest(setting).rate)
        return max(rates)

    def best_latency(self, space: Space, rate: float) -> float:
        latencies = []
        for setting in space.settings():
            self.correct(setting)
            latencies.append(self.truth.at_rate(setting, rate).latency)
        return min(latencies)


def search(server: SimulatedServer, space: Space, question: Question, kind: tuple[float, float, float]) -> Result:
    engine = "torchserve" if space.delays_ms != (0,) else "builtin"
    predictor = Predictor(profiles(kind), question.target, engine=engine, cores=2, memory=question.memory)
    return Search(predictor, space, question, server.measure).run()


SPACE = Space(cores=2, batch_sizes=(1, 4, 16, 64))


@pytest.mark.parametrize(
    ("kind", "target"),
    [(DECODING, "p99<100ms"), (CONVOLUTIONS, "p95<50ms"), (TINY, "p99<5ms")],
)
def test_the_highest_rate_is_near_that_of_the_whole_grid(kind: tuple[float, float, float], target: str) -> None:
    question = Question(target=parse_target(target), objective=Objective.THROUGHPUT)
    server = SimulatedServer(kind, question.target)
    result = search(server, SPACE, question, kind)
    assert len(server.measured) <= MOST_TRIALS
    assert result.best
    assert result.best.rate >= 0.85 * server.best_rate(SPACE)
    assert result.best.keeps(question.target)


@pytest.mark.parametrize(("kind", "rate"), [(DECODING, 60), (CONVOLUTIONS, 150), (TINY, 2_000)])
def test_the_lowest_latency_is_near_that_of_the_whole_grid(kind: tuple[float, float, float], rate: float) -> None:
    question = Question(target=parse_target("p99<200ms"), objective=Objective.LATENCY, rate=rate)
    server = SimulatedServer(kind, question.target)
    result = search(server, SPACE, question, kind)
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
    space = Space(cores=2, batch_sizes=(4, 16), delays_ms=(1, 20))
    question = Question(target=parse_target("p99<100ms"), objective=Objective.THROUGHPUT)
    server = SimulatedServer(CONVOLUTIONS, question.target, engine="torchserve")
    result = search(server, space, question, CONVOLUTIONS)
    assert result.best
    assert result.best.rate >= 0.85 * server.best_rate(space)


def test_memory_excludes_settings() -> None:
    question = Question(target=parse_target("p99<100ms"), objective=Objective.THROUGHPUT, memory=150 * MIB)
    server = SimulatedServer(DECODING, question.target)
    result = search(server, SPACE, question, DECODING)
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
    question = Question(target=parse_target("p99<50ms"), objective=Objective.THROUGHPUT)
    whole = SimulatedServer(CONVOLUTIONS, question.target)
    expected = search(whole, SPACE, question, CONVOLUTIONS)
    half = whole.measured[: len(whole.measured) // 2]
    again = SimulatedServer(CONVOLUTIONS, question.target)
    again.measured = list(half)  # the seeds of the noise
    predictor = Predictor(profiles(CONVOLUTIONS), question.target, cores=2)
    result = Search(predictor, SPACE, question, again.measure, trials=half).run()
    assert again.measured == whole.measured
    assert result.best == expected.best


def test_the_search_ends_with_the_time() -> None:
    question = Question(target=parse_target("p99<50ms"), objective=Objective.THROUGHPUT)
    server = SimulatedServer(CONVOLUTIONS, question.target)
    predictor = Predictor(profiles(CONVOLUTIONS), question.target, cores=2)
    moments = iter(range(1000))
    search = Search(predictor, SPACE, question, server.measure, seconds=3.5, clock=lambda: float(next(moments)))
    result = search.run()
    assert len(server.measured) == 3
    assert "time" in result.reason


def test_the_chosen_setting_is_measured_twice() -> None:
    question = Question(target=parse_target("p99<100ms"), objective=Objective.LATENCY, rate=60)
    server = SimulatedServer(DECODING, question.target)
    result = search(server, SPACE, question, DECODING)
    assert result.best
    assert result.repeat
    assert result.repeat.setting == result.best.setting
    assert result.noise is not None
    assert math.isfinite(result.noise)
