"""What is made of a tuning: reasons, picture, evidence, and the recipe."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.support.simulated_server import CONVOLUTIONS, DECODING, MIB, tuned
from torchmar import recipe, server_config
from torchmar.errors import TorchmarError
from torchmar.tuning import evidence, front_picture
from torchmar.tuning.cluster_room import ClusterRoom
from torchmar.tuning.completed import Tuning
from torchmar.tuning.explanation import explain, pareto_front
from torchmar.tuning.finalists import Measured
from torchmar.tuning.prediction import Bound
from torchmar.tuning.recipe_writing import settings_of, write
from torchmar.tuning.space import Setting, Space
from torchmar.tuning.target import Objective, Question, parse_target
from torchmar.tuning.trials import Verdict

SPACE = Space(cores=2, batch_sizes=(1, 16))
RECIPE = """\
name: made # a name
version: "1.0"
handler: image_classifier
config:
  minWorkers: 4 # too many
  maxWorkers: 4
"""


@pytest.fixture(scope="module")
def tuning() -> Tuning:
    question = Question(target=parse_target("p99<200ms"), objective=Objective.LATENCY, rate=60, memory=320 * MIB)
    return tuned(DECODING, question, SPACE)


def test_reasons_name_regions_memory_choice_errors_and_noise(tuning: Tuning) -> None:
    reasons = explain(tuning)
    text = " ".join(reasons)
    assert "4 workers with 1 thread, batch size 1 to 16: more memory than allowed" in text
    assert "the target is kept, but p99 is" in text
    assert "Predictions of p99 missed the measurements by" in text
    assert "The chosen setting, measured " in text
    assert reasons[-1].startswith("The search ended because")


def test_a_setting_that_may_be_as_good_is_named(tuning: Tuning) -> None:
    chosen = tuning.result.chosen
    assert chosen
    other = Measured(setting=Setting(workers=7, threads=1, batch_size=16), latencies=(0.0201, 0.0199))
    again = replace(tuning, result=replace(tuning.result, equal=(other,)))
    (reason,) = [reason for reason in explain(again) if "no more than noise" in reason]
    assert "7 workers, 1 thread each, batch size 16: 20.0 ms in the mean of 2" in reason
    assert json.loads(evidence.text(again))["equal"][0]["latencies"] == [0.0201, 0.0199]


def test_a_target_that_the_trials_do_not_show_is_not_called_kept(tuning: Tuning) -> None:
    best = tuning.result.best
    assert best
    few = replace(best, answered=72, within=72)
    record = replace(tuning.record, trials=[few])
    result = replace(tuning.result, best=few, verdict=Verdict.UNPROVEN, within=few.share_within())
    again = replace(tuning, record=record, result=result)
    (reason,) = [reason for reason in explain(again) if "not shown" in reason]
    assert reason.startswith("p99 needs 1,000 requests, so that 10 are beyond it; trials had as few as 72.")
    assert "with 95% confidence, 94.9% of its requests are within the target" in reason
    together = replace(again, result=replace(result, verdict=Verdict.KEPT))
    assert any("together show that it keeps p99 < 200 ms" in reason for reason in explain(together))
    document = json.loads(evidence.text(again))
    assert (document["verdict"], document["trials"][0]["verdict"]) == ("not shown", "not shown")


def test_the_highest_rate_has_its_sensitivity_and_unsteady_profiles_are_named() -> None:
    question = Question(target=parse_target("p99<100ms"), objective=Objective.THROUGHPUT)
    tuning = tuned(CONVOLUTIONS, question, Space(cores=2, batch_sizes=(16,)))
    tuning.record.profiles[0] = replace(tuning.record.profiles[0], drift=0.3)
    text = " ".join(explain(tuning))
    assert "With 5% fewer requests, p99 is predicted to be " in text
    assert "Batches took 30% longer at the end of the profiles than at their begin" in text
    # What was measured goes before what is predicted.
    best = tuning.result.best
    assert best
    tuning.record.trials.append(replace(best, rate=1.03 * best.rate, latency=0.2, answered=0))
    (reason,) = [reason for reason in explain(tuning) if reason.startswith("With 5% fewer")]
    assert reason.endswith("; with 3% more, the target was missed: leave room.")


@pytest.mark.parametrize(
    ("sizes", "text"),
    [((1, 2, 4, 8), "1 to 8"), ((1, 4, 8), "1 and 4 to 8"), ((1, 4, 16), "1, 4 and 16"), ((2,), "2")],
)
def test_a_region_does_not_name_sizes_that_are_not_in_it(tuning: Tuning, sizes: tuple[int, ...], text: str) -> None:
    """The chosen batch size between two others, for example, is not said to be rejected."""
    first = tuning.result.predictions[0]
    grid = [replace(first, setting=Setting(workers=9, threads=1, batch_size=size)) for size in (1, 2, 4, 8, 16)]
    members = [replace(each, bound=Bound.WORKERS, latency=9.0) for each in grid if each.setting.batch_size in sizes]
    others = [replace(each, bound=Bound.MEMORY) for each in grid if each.setting.batch_size not in sizes]
    again = replace(tuning, result=replace(tuning.result, predictions=(*members, *others)))
    assert any(
        reason.startswith(f"9 workers with 1 thread, batch size {text}: the workers") for reason in explain(again)
    )


def test_a_setting_that_did_more_than_was_predicted_is_not_called_saturated() -> None:
    question = Question(target=parse_target("p99<100ms"), objective=Objective.THROUGHPUT)
    tuning = tuned(CONVOLUTIONS, question, Space(cores=2, batch_sizes=(1, 16)))
    best = tuning.result.best
    assert best
    rate = best.rate * 0.9
    other = max((each for each in tuning.result.predictions if each.rate < rate), key=lambda each: each.rate)
    tuning.record.trials.append(replace(best, setting=other.setting, rate=rate))
    (reason,) = [reason for reason in explain(tuning) if "as measured" in reason]
    assert f"the target is kept at {rate:,.0f} requests/s (90% of the best), as measured" in reason
    # A rate that it kept once, and missed when it was measured again, is none that it keeps.
    again = replace(best, setting=other.setting, rate=rate, latency=0.2, answered=0, purpose="repeat")
    tuning.record.trials.append(again)
    assert not any("as measured" in reason for reason in explain(tuning))


def test_the_front_has_what_no_other_exceeds(tuning: Tuning) -> None:
    predictions = tuning.result.predictions
    front = pareto_front(predictions, throughput=False)
    assert front
    for each in front:
        better = [
            other
            for other in predictions
            if other.capacity > each.capacity and other.latency < each.latency and other.memory < each.memory
        ]
        assert not better
    assert [each.capacity for each in front] == sorted(each.capacity for each in front)


@pytest.mark.parametrize("objective", [Objective.THROUGHPUT, Objective.LATENCY])
def test_the_picture_has_target_trials_and_the_chosen_setting(objective: Objective, tuning: Tuning) -> None:
    if objective is Objective.THROUGHPUT:
        question = Question(target=parse_target("p99<100ms"), objective=objective)
        tuning = tuned(CONVOLUTIONS, question, Space(cores=2, batch_sizes=(16,)))
    text = front_picture.draw(tuning)
    ElementTree.fromstring(text)
    assert "measured" in text
    assert "chosen" in text
    assert str(tuning.question.target).replace("<", "&lt;") in text


def test_evidence_is_json_with_curves_trials_and_reasons(tuning: Tuning) -> None:
    document = json.loads(evidence.text(tuning))
    assert document["schema"] == "torchmar-tuning/1"
    assert [curve["threads"] for curve in document["curves"]] == [1, 2]
    assert document["curves"][0]["per_request"] == pytest.approx(0.009)
    assert len(document["trials"]) == len(tuning.record.trials)
    assert document["chosen"]["setting"]["workers"] >= 1
    assert document["target"] == {"statistic": "p99", "seconds": 0.2}
    assert len(document["predictions"]) == len(tuning.result.predictions)


def test_the_recipe_gets_the_setting_and_the_evidence(tuning: Tuning, tmp_path: Path) -> None:
    (tmp_path / "archive.yaml").write_text(RECIPE)
    assert tuning.result.best
    setting = tuning.result.best.setting
    written = write(tuning, tmp_path)
    assert sorted(file.name for file in written) == ["archive.yaml", "tuning.json"]
    content, _ = recipe.read(tmp_path)
    assert isinstance(content.config, server_config.ServerConfig)
    assert (content.config.minWorkers, content.config.maxWorkers) == (setting.workers, setting.workers)
    assert content.config.batchSize == setting.batch_size
    assert content.files == {"tuning.json": "tuning.json"}
    assert "# too many" in (tmp_path / "archive.yaml").read_text()
    before = (tmp_path / "archive.yaml").read_text()
    write(tuning, tmp_path)
    assert (tmp_path / "archive.yaml").read_text() == before


def test_a_configuration_in_a_file_of_its_own_is_edited_there(tuning: Tuning, tmp_path: Path) -> None:
    (tmp_path / "archive.yaml").write_text('name: made\nversion: "1.0"\nhandler: image_classifier\nconfig: own.yaml\n')
    (tmp_path / "own.yaml").write_text("# mine\nbatchSize: 99 # requests\n")
    assert tuning.result.best
    write(tuning, tmp_path)
    text = (tmp_path / "own.yaml").read_text()
    assert text.startswith(f"# mine\nbatchSize: {tuning.result.best.setting.batch_size} # requests\n")
    assert f"minWorkers: {tuning.result.best.setting.workers}\n" in text


def test_threads_stages_and_delay_are_written_where_they_are_part_of_the_result(tuning: Tuning) -> None:
    share = settings_of(Setting(workers=1, threads=2, batch_size=4), tuning)
    assert ("handler", "threads") not in share
    fewer = settings_of(Setting(workers=1, threads=1, batch_size=4, delay_ms=5), tuning)
    assert fewer["handler", "threads"] == 1
    assert fewer["maxBatchDelay",] == 5
    staged = settings_of(Setting(workers=1, threads=1, batch_size=4, preprocess=1), tuning)
    assert staged["stages",] == {"preprocess": 1, "inference": 1}


def test_on_a_cluster_the_threads_are_the_cpus_of_a_replica(tuning: Tuning) -> None:
    room = ClusterRoom(replicas=((1, 8), (4, 1)), cores=8.0, nodes=3)
    on_ray = replace(tuning, engine="ray", record=replace(tuning.record, cluster=room))
    written = settings_of(Setting(workers=2, threads=4, batch_size=4), on_ray)
    assert written["torchmar", "replica", "cpus"] == 4
    assert ("handler", "threads") not in written
    reasons = " ".join(explain(on_ray))
    assert "room for these replicas: 8 with 1 CPU, or 1 with 4 CPUs each" in reasons
    assert "autoscaling, stages and GPUs are not searched" in reasons


def test_nothing_is_written_without_a_setting(tuning: Tuning, tmp_path: Path) -> None:
    (tmp_path / "archive.yaml").write_text(RECIPE)
    with pytest.raises(TorchmarError, match="no setting keeps the target"):
        write(replace(tuning, result=replace(tuning.result, best=None)), tmp_path)
    assert (tmp_path / "archive.yaml").read_text() == RECIPE
