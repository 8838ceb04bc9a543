"""What trials teach the predictions about the machine."""

from __future__ import annotations

from dataclasses import replace

from tests.support.simulated_server import DECODING, SimulatedServer, profiles
from torchmar.tuning.prediction import Predictor
from torchmar.tuning.space import Setting
from torchmar.tuning.target import parse_target
from torchmar.tuning.trials import Trial

TARGET = parse_target("p99<100ms")
ONE, TWO = (Setting(workers=workers, threads=1, batch_size=16) for workers in (1, 2))


def predictor() -> Predictor:
    return Predictor(profiles(DECODING), TARGET, cores=2)


def probe() -> Trial:
    """Return a trial at half of the rate that two workers can answer, of a server whose cores are as the profile's."""
    return SimulatedServer(DECODING, TARGET).measure(TWO, 100, 0.02, "probe")


def test_cpu_time_that_batches_do_not_need_alone_lowers_the_capacity() -> None:
    alone, sharing = predictor(), predictor()
    trial = probe()
    batches = trial.rate * 0.0107  # CPU seconds of requests in workers, with the slower batches of this server
    alone.calibrate(replace(trial, cores=batches))
    sharing.calibrate(replace(trial, cores=1.5 * batches))
    assert sharing.efficiency < 0.75 < alone.efficiency
    assert sharing.highest(TWO).rate < 0.8 * alone.highest(TWO).rate
    # One worker does not need the cores that two lack.
    assert sharing.highest(ONE).rate > 0.9 * alone.highest(ONE).rate


def test_latency_that_no_batch_explains_is_a_queue_that_grew() -> None:
    known = predictor()
    known.calibrate(probe())
    trial = replace(probe(), purpose="search", rate=150.0, throughput=149.0, latency=3.0, median=1.5)
    known.refit(trial)
    assert known.corrections[TWO.layout].scale < 2
    assert known.highest(TWO).rate < 149
