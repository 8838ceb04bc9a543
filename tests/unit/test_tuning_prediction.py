"""Predictions, corrected by trials."""

from __future__ import annotations

from dataclasses import replace

from tests.support.simulated_server import TINY, SimulatedServer, profiles
from torchmar.tuning.prediction import Predictor
from torchmar.tuning.space import Setting
from torchmar.tuning.target import parse_target

SETTING = Setting(workers=1, threads=1, batch_size=16)


def test_the_servers_time_of_a_request_is_that_of_the_highest_rate() -> None:
    target = parse_target("p99<5ms")
    server = SimulatedServer(TINY, target)
    predictor = Predictor(profiles(TINY), target, cores=2)
    predictor.calibrate(replace(server.measure(SETTING, 2_000, 0.001, "probe"), loop=0.0003))
    assert predictor.model.loop == 0.0003
    wrong = replace(server.measure(SETTING, 5_000, 0.009, "search"), loop=0.0001)
    assert predictor.refit(wrong)
    assert predictor.model.loop == 0.0001
    assert predictor.refit(replace(wrong, rate=3_000, loop=0.0002))
    assert predictor.model.loop == 0.0001


def test_near_the_capacity_the_last_trials_are_fitted_together() -> None:
    target = parse_target("p99<5ms")
    server = SimulatedServer(TINY, target)
    predictor = Predictor(profiles(TINY), target, cores=2)
    predictor.calibrate(server.measure(SETTING, 4_000, 0.001, "probe"))
    trial = replace(server.measure(SETTING, 7_000, 0.001, "search"), median=0.001)
    for latency in (0.004, 0.009):
        predictor.refit(replace(trial, latency=latency, predicted=0.001))
    assert 0.005 < predictor.latency(SETTING, 7_000) < 0.0075
