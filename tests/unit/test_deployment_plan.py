"""torchmar.deployment.plan turns a difference into steps in which no request is lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from torchmar.deployment import actions, desired
from torchmar.deployment.actual import LiveModel
from torchmar.deployment.plan import Plan
from torchmar.deployment.plan import plan as make_plan
from torchmar.deployment.store_index import StoredArchive, StoreIndex
from torchmar.errors import TorchmarError
from torchmar.management import ModelVersion, WorkerState

STORE = Path("store")
GIB = 2**30


def version(name: str, number: str, workers: int = 1, **changes: Any) -> ModelVersion:
    """Return a version as a server with TorchServe's own defaults describes it."""
    states = tuple(WorkerState(id=str(index), status="READY", pid=index) for index in range(workers))
    planned = ModelVersion(
        name=name,
        version=number,
        url=f"{name}-{number}.mar",
        min_workers=workers,
        max_workers=workers,
        batch_size=1,
        max_batch_delay=100,
        response_timeout=120,
        workers=states,
    )
    return replace(planned, **changes)


def live(*versions: ModelVersion, default: str | None = None) -> dict[str, LiveModel]:
    models: dict[str, LiveModel] = {}
    for name in dict.fromkeys(version.name for version in versions):
        versions_of_model = {version.version: version for version in versions if version.name == name}
        models[name] = LiveModel(
            name, default if default in versions_of_model else next(iter(versions_of_model)), versions_of_model
        )
    return models


def stored(name: str, number: str, config: Mapping[str, Any] | None = None, content: str = "same") -> StoredArchive:
    return StoredArchive(STORE / f"{name}-{number}.mar", name, number, config or {}, config is not None, content)


def plan(text: str, deployed: Mapping[str, LiveModel], *archives: StoredArchive, gpus: tuple[int, ...] = ()) -> Plan:
    deployment = desired.parse(text)
    index = StoreIndex(STORE, {archive.path.name: archive for archive in archives})
    chosen = {
        (name, number): index.archives.get(f"{name}-{number}.mar")
        for name, model in deployment.models.items()
        for number in model.versions
    }
    return make_plan(deployment, deployed, index, chosen, gpus)


def steps(planned: Plan) -> list[str]:
    return [f"{actions.verb(action)} {action.text}" for action in planned.actions]


def signs(planned: Plan) -> list[str]:
    return [f"{change.sign} {change.what}" for change in planned.changes]


ONE = 'models: {m: {default: "1.0", drain_seconds: 3, versions: {"1.0": {min_workers: 1}}}}'
TWO = 'models: {m: {default: "2.0", drain_seconds: 3, versions: {"2.0": {min_workers: 1}}}}'


def test_a_server_that_is_as_it_should_be_needs_nothing() -> None:
    planned = plan(ONE, live(version("m", "1.0")), stored("m", "1.0"))
    assert (planned.changes, planned.actions) == ((), ())


def test_a_new_model_is_registered_and_checked() -> None:
    planned = plan(ONE, {}, stored("m", "1.0"))
    assert steps(planned) == ["register m 1.0, 1 worker", "check m 1.0"]
    assert signs(planned) == ["+ m 1.0"]


def test_the_default_of_a_new_model_is_registered_first_since_the_first_one_gets_the_traffic() -> None:
    text = 'models: {m: {default: "2.0", versions: {"1.0": {}, "2.0": {}}}}'
    planned = plan(text, {}, stored("m", "1.0"), stored("m", "2.0"))
    assert steps(planned)[0] == "register m 2.0, 1 worker"
    assert not [action for action in planned.actions if isinstance(action, actions.Switch)]


def test_a_new_version_is_up_and_checked_before_it_is_the_default_and_the_old_one_is_kept() -> None:
    planned = plan(TWO, live(version("m", "1.0")), stored("m", "2.0"))
    assert steps(planned) == ["register m 2.0, 1 worker", "check m 2.0", "switch m 1.0 to 2.0"]


def test_only_the_newest_versions_are_kept_up_to_the_number_in_the_file() -> None:
    deployed = live(version("m", "1.9"), version("m", "1.10"), version("m", "1.2"), version("m", "2.0"), default="2.0")
    planned = plan(TWO, deployed, stored("m", "2.0"))
    assert steps(planned) == ["drain m 1.9, m 1.2, 3 s", "remove m 1.9", "remove m 1.2"]
    assert signs(planned) == ["- m 1.9", "- m 1.2"]
    none = plan(TWO.replace("drain_seconds: 3", "drain_seconds: 3, keep: 0"), deployed, stored("m", "2.0"))
    assert steps(none)[1:] == ["remove m 1.10", "remove m 1.9", "remove m 1.2"]


def test_the_version_that_was_the_default_is_kept_before_a_newer_one() -> None:
    deployed = live(version("m", "1.0"), version("m", "3.0"), default="1.0")
    planned = plan(TWO, deployed, stored("m", "2.0"))
    assert steps(planned)[-1] == "remove m 3.0"


def test_a_kept_version_gives_up_workers_only_when_it_has_been_drained() -> None:
    text = TWO.replace("drain_seconds: 3", "drain_seconds: 3, kept_workers: 1")
    planned = plan(text, live(version("m", "1.0", 3)), stored("m", "2.0"))
    assert steps(planned)[2:] == ["switch m 1.0 to 2.0", "drain m 1.0, 3 s", "scale-down m 1.0, 3 to 1 worker"]


def test_more_workers_are_started_in_place() -> None:
    planned = plan(ONE.replace("min_workers: 1", "min_workers: 3"), live(version("m", "1.0")), stored("m", "1.0"))
    assert steps(planned) == ["scale-up m 1.0, 1 to 3 workers"]
    assert planned.changes[0].lines == ("workers 1 -> 3",)


PARKED = ONE.replace("min_workers: 1", "min_workers: 0")


def test_a_model_whose_versions_have_no_workers_is_parked_in_place() -> None:
    assert plan(PARKED, live(version("m", "1.0", 0)), stored("m", "1.0")).actions == ()
    planned = plan(PARKED, live(version("m", "1.0", 2)), stored("m", "1.0"))
    assert steps(planned) == ["drain m 1.0, 3 s", "scale-down m 1.0, 2 to 0 workers"]
    assert steps(plan(PARKED, {}, stored("m", "1.0"))) == ["register m 1.0, 0 workers"]


def test_a_parked_model_shows_that_it_is_right_when_it_gets_workers() -> None:
    planned = plan(ONE, live(version("m", "1.0", 0)), stored("m", "1.0"))
    assert steps(planned) == ["scale-up m 1.0, 0 to 1 worker", "check m 1.0"]


def test_the_default_of_a_parked_model_changes_without_workers() -> None:
    both = live(version("m", "1.0", 0), version("m", "2.0", 0))
    planned = plan(PARKED.replace("1.0", "2.0"), both, stored("m", "2.0"))
    assert steps(planned) == ["switch m 1.0 to 2.0"]


def test_fewer_workers_of_a_version_with_traffic_are_another_build() -> None:
    planned = plan(ONE, live(version("m", "1.0", 3)), stored("m", "1.0"))
    assert steps(planned) == [
        "derive m-1.0+b2.mar from m-1.0.mar",
        "register m 1.0+b2, 1 worker",
        "check m 1.0+b2",
        "switch m 1.0 to 1.0+b2",
        "drain m 1.0, 3 s",
        "remove m 1.0",
    ]
    assert signs(planned) == ["~ m 1.0 -> 1.0+b2", "- m 1.0"]
    assert "workers 3 -> 1" in planned.changes[0].lines


def test_fewer_workers_of_a_version_without_traffic_are_taken_in_place() -> None:
    text = (
        'models: {m: {default: "2.0", drain_seconds: 3, versions: {"1.0": {min_workers: 1}, "2.0": {min_workers: 1}}}}'
    )
    deployed = live(version("m", "1.0", 3), version("m", "2.0"), default="2.0")
    planned = plan(text, deployed, stored("m", "1.0"), stored("m", "2.0"))
    assert steps(planned) == ["drain m 1.0, 3 s", "scale-down m 1.0, 3 to 1 worker"]


@pytest.mark.parametrize("key", ["batch_size", "max_batch_delay", "response_timeout", "startup_timeout"])
def test_a_setting_that_cannot_be_changed_makes_another_build(key: str) -> None:
    text = ONE.replace("min_workers: 1", f"min_workers: 1, {key}: 7")
    planned = plan(text, live(version("m", "1.0")), stored("m", "1.0"))
    derive = planned.actions[0]
    assert isinstance(derive, actions.Derive)
    assert derive.version == "1.0+b2"
    assert 7 in derive.config.values()
    assert {"minWorkers", "maxWorkers", "batchSize", "maxBatchDelay", "responseTimeout"} <= set(derive.config)
    assert not plan(text, live(version("m", "1.0+b2", **{key: 7})), stored("m", "1.0")).actions


def test_builds_are_counted_on_over_server_and_store() -> None:
    text = ONE.replace("min_workers: 1", "min_workers: 1, batch_size: 4")
    deployed = live(version("m", "1.0+b9"))
    planned = plan(text, deployed, stored("m", "1.0", {"batchSize": 1}), stored("m", "1.0+b11", {"batchSize": 2}))
    assert steps(planned)[0] == "derive m-1.0+b12.mar from m-1.0.mar"


def test_a_build_that_is_left_in_the_store_is_used_again_if_it_is_of_the_same_content() -> None:
    text = ONE.replace("min_workers: 1", "min_workers: 1, batch_size: 4")
    config = {"minWorkers": 1, "maxWorkers": 1, "batchSize": 4}
    left = stored("m", "1.0+b2", config)
    own = stored("m", "1.0", {"batchSize": 1})
    assert steps(plan(text, {}, own, left)) == ["register m 1.0+b2, 1 worker", "check m 1.0+b2"]
    other = replace(left, content="other weights")
    assert steps(plan(text, {}, own, other))[0] == "derive m-1.0+b3.mar from m-1.0.mar"


def test_the_archives_own_configuration_needs_no_build() -> None:
    deployed = live(version("m", "1.0+b2", batch_size=4))
    planned = plan(ONE.replace("min_workers: 1", "min_workers: 1, batch_size: 1"), deployed, stored("m", "1.0"))
    assert steps(planned)[0] == "register m 1.0, 1 worker"
    assert steps(planned)[-1] == "remove m 1.0+b2"


@pytest.mark.parametrize(
    ("config", "keys", "plain"),
    [
        (None, "batch_size: 8", True),
        ({"batchSize": 8}, "batch_size: 8", True),
        ({"batchSize": 4}, "batch_size: 8", False),
        ({"handler": {}}, "response_timeout: 60", False),  # a configuration without it means 120
        ({"handler": {}}, "response_timeout: 120", True),
        ({"minWorkers": 2, "maxWorkers": 2}, "min_workers: 1", False),
        ({"minWorkers": 2}, "min_workers: 1", True),  # TorchServe ignores one without the other
        ({"minWorkers": 1, "maxWorkers": 4}, "min_workers: 1, max_workers: 4", True),
        ({"maxBatchDelay": 0}, "max_batch_delay: 50", True),
        ({"deviceIds": [0]}, "devices: [1]", False),
    ],
)
def test_an_archive_is_registered_unchanged_only_if_its_configuration_is_the_desired_one(
    config: dict[str, Any] | None, keys: str, plain: bool
) -> None:
    text = f'models: {{m: {{versions: {{"1.0": {{{keys}}}}}}}}}'
    planned = plan(text, {}, stored("m", "1.0", config), gpus=(8 * GIB, 8 * GIB))
    assert isinstance(planned.actions[0], actions.Register) is plain


def test_missing_values_are_those_of_the_archive_or_of_the_server() -> None:
    text = 'models: {m: {versions: {"1.0": }}}'
    deployed = live(version("m", "1.0", 3, batch_size=4, max_batch_delay=7))
    assert not plan(text, deployed, stored("m", "1.0")).actions
    planned = plan(text, deployed, stored("m", "1.0", {"batchSize": 2, "minWorkers": 3, "maxWorkers": 3}))
    derive = planned.actions[0]
    assert isinstance(derive, actions.Derive)
    assert derive.config["batchSize"] == 2
    assert derive.config["maxBatchDelay"] == 7


def test_models_that_are_not_listed_are_left_alone_or_pruned_the_default_version_last() -> None:
    deployed = live(version("m", "1.0"), version("x", "2.0"), version("x", "1.0"), default="2.0")
    kept = plan(ONE, deployed, stored("m", "1.0"))
    assert (kept.actions, signs(kept)) == ((), ["! x"])
    planned = plan(f"prune: true\n{ONE}", deployed, stored("m", "1.0"))
    assert steps(planned) == ["drain x 1.0, x 2.0, 120 s", "remove x 1.0", "remove x 2.0"]


def test_a_registered_version_without_workers_gets_them_before_it_is_checked_and_made_the_default() -> None:
    for text in (TWO, 'models: {m: {versions: {"2.0": }}}'):
        deployed = live(version("m", "1.0"), version("m", "2.0", 0), default="1.0")
        planned = plan(text, deployed, stored("m", "2.0"))
        assert steps(planned) == ["scale-up m 2.0, 0 to 1 worker", "check m 2.0", "switch m 1.0 to 2.0"]


def test_a_default_that_was_changed_by_hand_is_changed_back_after_a_check() -> None:
    text = 'models: {m: {default: "1.0", versions: {"1.0": {}, "2.0": {}}}}'
    deployed = live(version("m", "1.0"), version("m", "2.0"), default="2.0")
    planned = plan(text, deployed, stored("m", "1.0"), stored("m", "2.0"))
    assert steps(planned) == ["check m 1.0", "switch m 2.0 to 1.0"]
    assert planned.changes[0].lines == ("default 2.0 -> 1.0",)


def test_workers_that_do_not_answer_are_drift() -> None:
    dying = version("m", "1.0")
    dying = replace(dying, workers=(replace(dying.workers[0], status="UNLOADING"),))
    planned = plan(ONE, live(dying), stored("m", "1.0"))
    assert signs(planned) == ["! m 1.0"]
    assert not planned.actions


def test_new_versions_are_up_before_any_switch_and_old_ones_are_removed_after_all_of_them() -> None:
    text = """
models:
  a: {keep: 0, drain_seconds: 3, versions: {"2.0": {min_workers: 1}}}
  b: {keep: 0, drain_seconds: 9, versions: {"1.0": {min_workers: 1, batch_size: 4}}}
  c: {versions: {"1.0": {min_workers: 2}}}
"""
    deployed = live(version("a", "1.0"), version("b", "1.0"), version("c", "1.0"))
    planned = plan(text, deployed, stored("a", "2.0"), stored("b", "1.0"), stored("c", "1.0"))
    assert [actions.verb(action) for action in planned.actions] == [
        *(
            "register",
            "check",
            "derive",
            "register",
            "check",
            "scale-up",
            "switch",
            "switch",
            "drain",
            "remove",
            "remove",
        )
    ]
    assert "drain a 1.0, b 1.0, 9 s" in steps(planned)


def test_an_archive_outside_the_store_is_copied_there() -> None:
    deployment = desired.parse('models: {m: {versions: {"1.0": {archive: ../m-1.0.mar}}}}')
    outside = replace(stored("m", "1.0"), path=Path("../m-1.0.mar"))
    planned = make_plan(deployment, {}, StoreIndex(STORE, {}), {("m", "1.0"): outside})
    assert steps(planned)[0] == "copy ../m-1.0.mar to store/m-1.0.mar"


def test_an_impossible_plan_names_the_missing_resources() -> None:
    with pytest.raises(TorchmarError, match=r"no archive m-1\.0\.mar in store"):
        plan(ONE, {})
    with pytest.raises(TorchmarError, match="not here to derive another build"):
        plan(ONE.replace("min_workers: 1", "archive: 'https://x/m.mar', batch_size: 4"), live(version("m", "1.0")))
    wrong = desired.parse('models: {m: {versions: {"1.0": {archive: x.mar}}}}')
    with pytest.raises(TorchmarError, match=r"is version 1\.9, not 1\.0"):
        make_plan(wrong, {}, StoreIndex(STORE, {}), {("m", "1.0"): stored("m", "1.9")})
    with pytest.raises(TorchmarError, match="model store is not here"):
        make_plan(
            desired.parse(ONE.replace("min_workers: 1", "batch_size: 4")),
            {},
            StoreIndex(None, {}),
            {("m", "1.0"): stored("m", "1.0", {"batchSize": 1})},
        )


GPU = 'models: {m: {drain_seconds: 3, versions: {"1.0": {min_workers: WORKERS, worker_memory: 30GiB}}}}'


def gpu_plan(workers: int, deployed: Mapping[str, LiveModel], *archives: StoredArchive) -> Plan:
    own = stored("m", "1.0")
    return plan(GPU.replace("WORKERS", str(workers)), deployed, own, *archives, gpus=(80 * GIB, 80 * GIB))


def test_each_worker_gets_its_gpu_through_the_configuration_of_a_build() -> None:
    planned = gpu_plan(3, {})
    derive = planned.actions[0]
    assert isinstance(derive, actions.Derive)
    assert derive.config["deviceIds"] == [0, 1, 0]
    assert derive.config["deployment"] == {"workerMemory": 30 * GIB}
    assert [(gpu.used, gpu.workers) for gpu in planned.gpus] == [
        (60 * GIB, (("m 1.0", 2),)),
        (30 * GIB, (("m 1.0", 1),)),
    ]
    done = live(version("m", "1.0+b1", 3, device_ids=(0, 1, 0)))
    assert not gpu_plan(3, done).actions


def test_workers_that_have_a_gpu_stay_there() -> None:
    assert not gpu_plan(2, live(version("m", "1.0+b1", 2, device_ids=(1, 0)))).actions
    more = gpu_plan(3, live(version("m", "1.0+b1", 2, device_ids=(1, 0))))
    assert steps(more) == ["scale-up m 1.0+b1, 2 to 3 workers"]


def test_old_and_new_version_both_have_to_fit_while_one_takes_the_place_of_the_other() -> None:
    text = GPU.replace("WORKERS", "3").replace("30GiB}", "30GiB, batch_size: 2}")
    deployed = live(version("m", "1.0+b1", 3, device_ids=(0, 1, 0)))
    with pytest.raises(TorchmarError) as caught:
        plan(text, deployed, stored("m", "1.0"), gpus=(80 * GIB, 80 * GIB))
    assert "GPU 0: 20.0 GiB of 80.0 GiB free; m 1.0+b1 2 x 30.0 GiB" in caught.value.message
    planned = plan(text, deployed, stored("m", "1.0"), gpus=(80 * GIB,) * 3)
    register = next(action for action in planned.actions if isinstance(action, actions.Register))
    assert sorted(register.devices or ()) == [1, 2, 2]


def test_the_memory_of_versions_that_are_no_longer_listed_is_known_from_their_archives() -> None:
    text = GPU.replace('"1.0"', '"2.0"').replace("WORKERS", "2")
    old = stored("m", "1.0+b1", {"deployment": {"workerMemory": 60 * GIB}})
    deployed = live(version("m", "1.0+b1", 1, device_ids=(0,)))
    planned = plan(text, deployed, stored("m", "2.0"), old, gpus=(80 * GIB, 80 * GIB))
    register = next(action for action in planned.actions if isinstance(action, actions.Register))
    assert register.devices == (1, 1)


def test_a_model_that_is_pinned_elsewhere_moves_as_another_build() -> None:
    text = 'models: {m: {drain_seconds: 3, versions: {"1.0": {min_workers: 1, devices: [1]}}}}'
    deployed = live(version("m", "1.0+b1", 1, device_ids=(0,)))
    planned = plan(text, deployed, stored("m", "1.0"), gpus=(80 * GIB, 80 * GIB))
    assert planned.changes[0].lines[0] == "devices 0 -> 1"
    assert "switch m 1.0+b1 to 1.0+b2" in steps(planned)


def test_the_document_has_everything_for_machines() -> None:
    document = gpu_plan(2, live(version("x", "1.0"))).document()
    assert [change["kind"] for change in document["changes"]] == ["add", "drift"]
    assert [step["step"] for step in document["steps"]] == ["derive", "register", "check"]
    assert document["gpus"][0] == {"size": 80 * GIB, "used": 30 * GIB, "workers": {"m 1.0": 1}}
