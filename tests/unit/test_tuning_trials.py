"""Trials, and the record that is kept after each of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from torchmar.errors import TorchmarError
from torchmar.tuning.cluster_room import ClusterRoom
from torchmar.tuning.profile import Profile
from torchmar.tuning.service_model import BatchTimes
from torchmar.tuning.space import Setting, Space
from torchmar.tuning.target import parse_target
from torchmar.tuning.trials import Record, RecordFile, Trial, Verdict

QUESTION = {"name": "made", "version": "1.0", "target": "p99<50ms", "rate": None}
TRIAL = Trial(
    setting=Setting(workers=2, threads=1, batch_size=8),
    rate=100.0,
    seconds=5.0,
    requests=500,
    latency=0.04,
    median=0.01,
    throughput=99.0,
    failed=0.0,
    predicted=0.05,
    disturbances=("other programs used 1.0 of 2 cores",),
)
PROFILE = Profile(
    threads=1,
    gpu=False,
    times=(BatchTimes(size=1, seconds=(0.1, 0.2), cpu_seconds=0.1), BatchTimes(size=4, seconds=(0.3,))),
    memory=1 << 20,
    load_seconds=1.5,
)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "new", QUESTION)
    assert file.load() == Record(question=QUESTION)
    record = Record(
        question=QUESTION,
        profiles=[PROFILE],
        trials=[TRIAL, replace(TRIAL, latency=None)],
        choose_threads=False,
        cluster=ClusterRoom(replicas=((1, 8), (4, 1)), cores=8.0, nodes=3),
    )
    file.save(record)
    assert RecordFile(tmp_path / "new", QUESTION).load() == record
    assert [path.name for path in file.path.parent.iterdir()] == [file.path.name]


def test_another_question_has_another_record(tmp_path: Path) -> None:
    RecordFile(tmp_path, QUESTION).save(Record(question=QUESTION, trials=[TRIAL]))
    assert RecordFile(tmp_path, {**QUESTION, "rate": 10.0}).load().trials == []


@pytest.mark.parametrize("text", ["", "[]", '{"schema": "torchmar-tuning/1"}', '{"schema": "other/1"}'])
def test_a_damaged_record_is_begun_anew(tmp_path: Path, text: str) -> None:
    file = RecordFile(tmp_path, QUESTION)
    file.path.write_text(text)
    assert file.load() == Record(question=QUESTION)


def test_a_record_of_another_version_of_the_format_is_not_read(tmp_path: Path) -> None:
    file = RecordFile(tmp_path, QUESTION)
    file.save(Record(question=QUESTION, trials=[TRIAL]))
    file.path.write_text(json.dumps({**json.loads(file.path.read_text()), "schema": "torchmar-tuning/0"}))
    assert file.load().trials == []


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TorchmarError, match="cannot be written"):
        RecordFile(tmp_path / "file" / "folder", QUESTION).save(Record(question=QUESTION))


def test_a_trial_keeps_the_target_if_latency_and_failures_do() -> None:
    target = parse_target("p99<50ms")
    assert TRIAL.keeps(target)
    assert not TRIAL.keeps(parse_target("p99<40ms"))
    assert not replace(TRIAL, failed=0.01).keeps(target)
    assert not replace(TRIAL, latency=None).keeps(target)
    assert TRIAL.miss == pytest.approx(0.25)
    assert not TRIAL.saturated
    assert replace(TRIAL, throughput=80.0).saturated


@pytest.mark.parametrize(
    ("answered", "late", "verdict"),
    [
        (2_000, 20, Verdict.KEPT),
        (2_000, 21, Verdict.MISSED),
        (72, 0, Verdict.UNPROVEN),
        (72, 1, Verdict.UNPROVEN),
        (72, 6, Verdict.MISSED),  # one late request in a hundred makes six of 72 hardly ever
        (500, 0, Verdict.KEPT),  # five beyond the percentile, and yet none late: so few are not chance
    ],
)
def test_few_requests_show_a_percentile_only_if_their_share_within_the_target_does(
    answered: int, late: int, verdict: Verdict
) -> None:
    target = parse_target("p99<50ms")
    trial = replace(TRIAL, answered=answered, within=answered - late)
    assert trial.verdict(target) is verdict
    assert trial.keeps(target) is (verdict is not Verdict.MISSED)


def test_several_trials_of_a_setting_show_more_than_one() -> None:
    target = parse_target("p99<50ms")
    trial = replace(TRIAL, answered=200, within=200)
    assert trial.verdict(target) is Verdict.UNPROVEN
    assert trial.verdict(target, trial, trial) is Verdict.KEPT
    alone, together = trial.share_within(), trial.share_within(trial, trial)
    assert alone
    assert together
    assert 0.97 < alone < 0.99 < together
    assert TRIAL.share_within() is None


def test_the_grid_has_each_setting_once_and_uses_no_more_threads_than_cores() -> None:
    for cores in (1, 2, 6, 64):
        settings = list(Space(cores=cores, delays_ms=(1, 5)).settings())
        assert len(settings) == len(set(settings))
        assert max(setting.workers for setting in settings) <= 2 * max(cores, 1)
        assert all(setting.threads <= max(1, cores // setting.workers) for setting in settings)
        assert {setting.delay_ms for setting in settings if setting.batch_size == 1} == {1}


def test_stages_and_gpus_are_in_the_grid_only_where_there_are_any() -> None:
    assert not any(setting.preprocess or setting.gpu for setting in Space(cores=4).settings())
    assert any(setting.preprocess for setting in Space(cores=4, stages=True).settings())
    assert any(setting.gpu for setting in Space(cores=4, gpus=1).settings())


def test_threads_that_cannot_be_configured_are_the_share_of_the_cores() -> None:
    settings = Space(cores=8, choose_threads=False).settings()
    assert {(setting.workers, setting.threads) for setting in settings} >= {(1, 8), (2, 4), (8, 1), (16, 1)}
    assert all(
        setting.threads == max(1, 8 // setting.workers) for setting in Space(cores=8, choose_threads=False).settings()
    )
