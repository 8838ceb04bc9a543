"""A simulated server with other times than those of the profile, and a tuning on it."""

from __future__ import annotations

import copy
import functools
import platform

from torchmar.load.results import Machine
from torchmar.tuning.completed import Tuning
from torchmar.tuning.prediction import Predictor
from torchmar.tuning.profile import Profile
from torchmar.tuning.search import Result, Search
from torchmar.tuning.service_model import BatchTimes
from torchmar.tuning.simulation import simulate
from torchmar.tuning.space import Setting, Space
from torchmar.tuning.system_model import Correction
from torchmar.tuning.target import Question, Target
from torchmar.tuning.trials import Record, Trial

MIB = 1 << 20
# Seconds of a batch: fixed, for each request; and the part of two cores that two threads use.
DECODING = (0.0005, 0.009, 1.1)
CONVOLUTIONS = (0.004, 0.003, 1.8)
TINY = (0.0003, 0.00005, 1.0)


def profiles(kind: tuple[float, float, float]) -> list[Profile]:
    fixed, per_request, gain = kind
    return [
        Profile(
            threads=threads,
            gpu=False,
            times=tuple(
                BatchTimes(
                    size=size,
                    seconds=tuple((fixed + per_request * size) / speed * noise for noise in (0.9, 1.0, 1.0, 1.1)),
                    cpu_seconds=fixed + per_request * size,
                )
                for size in (1, 4, 16, 64)
            ),
            memory=100 * MIB,
            load_seconds=1.0,
        )
        for threads, speed in ((1, 1.0), (2, gain))
    ]


class SimulatedServer:
    """A server whose batches take longer than those of the profile, with the number of workers."""

    def __init__(self, kind: tuple[float, float, float], target: Target, *, engine: str = "builtin") -> None:
        self.truth = Predictor(profiles(kind), target, engine=engine, cores=2)
        model = self.truth.model
        model.loop, model.client, model.latency_offset = 0.00012, 0.00005, 0.0003
        self.target = target
        self.measured: list[Trial] = []

    def correct(self, setting: Setting) -> None:
        self.truth.model.corrections[setting.layout] = Correction(scale=1.0 + 0.12 * setting.workers)

    def measure(self, setting: Setting, rate: float, predicted: float, purpose: str) -> Trial:
        self.correct(setting)
        requests = max(300, min(5_000, int(rate * 8)))
        outcome = simulate(self.truth.model.system(setting), rate, requests=requests, seed=len(self.measured) + 1)
        trial = Trial(
            setting=setting,
            rate=rate,
            seconds=outcome.seconds,
            requests=requests,
            latency=outcome.statistic(self.target.percent),
            median=outcome.percentile(50),
            throughput=(requests - outcome.rejected) / outcome.seconds,
            failed=outcome.rejected / requests,
            predicted=predicted,
            loop=self.truth.model.loop,
            client=self.truth.model.client,
            memory=(50 + 80 * setting.processes) * MIB,
            purpose=purpose,
        )
        self.measured.append(trial)
        return trial

    def best_rate(self, space: Space) -> float:
        for setting in space.settings():
            self.correct(setting)
        # Only settings near the best are simulated precisely.
        ordered = sorted(space.settings(), key=lambda setting: self.truth.highest(setting, fine=False).rate)
        return max(self.truth.highest(setting).rate for setting in ordered[-4:])

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


def tuned(kind: tuple[float, float, float], question: Question, space: Space) -> Tuning:
    """Return a tuning on the simulated server, which is searched once; tests may change it."""
    return copy.deepcopy(_tuned(kind, question, space))


@functools.cache
def _tuned(kind: tuple[float, float, float], question: Question, space: Space) -> Tuning:
    engine = "torchserve" if space.delays_ms != (0,) else "builtin"
    server = SimulatedServer(kind, question.target, engine=engine)
    predictor = Predictor(profiles(kind), question.target, engine=engine, cores=2, memory=question.memory)
    result = Search(predictor, space, question, server.measure).run()
    machine = Machine(processor="simulated", cores=2, flags=(), system="", python=platform.python_version())
    return Tuning(
        name="made",
        version="1.0",
        engine="torchserve" if engine == "torchserve" else "builtin",
        machine=machine,
        torch="2",
        question=question,
        space=space,
        requests=1,
        record=Record(
            question={"archive": "0" * 64}, profiles=profiles(kind), trials=server.measured, reason=result.reason
        ),
        result=result,
        seconds=1.0,
        predictor=predictor,
    )
