"""torchmar.server.models.registry registers a version completely or not at all, and loses no request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.registry_harness import RegistryHarness, read
from tests.support.slow_archives import BROKEN, SLOW, SLOW_TO_LOAD, pack
from torchmar.archive import Archive
from torchmar.server.api_error import ApiError
from torchmar.server.models import serving_config
from torchmar.server.models.archive_cache import ArchiveCache
from torchmar.server.models.registration import MAX_WORKERS, Registration
from torchmar.worker.process import forking

FOUND_NONE = "Model not found: "


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryHarness]:
    with RegistryHarness(tmp_path_factory.mktemp("registry")) as harness:
        pack(harness.store, "made")
        pack(harness.store, "made", version="2.0")
        pack(harness.store, "broken", BROKEN)
        pack(harness.store, "broken", BROKEN, version="2.0")
        pack(harness.store, "made", BROKEN, version="3.0")
        pack(harness.store, "slow", SLOW)
        pack(harness.store, "tired", SLOW_TO_LOAD)
        yield harness


@pytest.fixture(autouse=True)
def empty(harness: RegistryHarness) -> Iterator[None]:
    yield
    for model in list(harness.registry.models.values()):
        for version in sorted(model.versions, key=lambda version: version == model.default):
            harness.run(harness.registry.unregister(model.name, version))
    harness.run(harness.until(lambda: not harness.workers()))


def test_a_registration_that_fails_leaves_nothing_behind(harness: RegistryHarness) -> None:
    for workers in (1, 3):
        status, message = harness.error_of(
            harness.registry.register(Registration("broken-1.0.mar", initial_workers=workers))
        )
        assert (status, message.endswith("No module named 'no_such_module'")) == (500, True)
        assert harness.registry.models == {}
        harness.run(harness.until(lambda: not harness.workers()))


def test_bytecode_is_written_into_copies_of_archives_and_not_into_folders_of_users(harness: RegistryHarness) -> None:
    pack(harness.store, "m")
    with Archive(harness.store / "m-1.0.mar") as packed:
        packed.extract(harness.store / "users")
    for url, name in (("m-1.0.mar", "copied"), ("users", "in-place")):
        harness.register(url, workers=1, model_name=name)
        folder = harness.registry.find(name).archive.folder
        assert (folder == harness.store / "users") == (name == "in-place")
        assert bool(list(folder.rglob("*.pyc"))) == (name == "copied")


def test_a_failed_version_leaves_the_others_alone(harness: RegistryHarness) -> None:
    harness.register("made-1.0.mar", 1)
    status, _ = harness.error_of(harness.registry.register(Registration("made-3.0.mar", initial_workers=1)))
    assert status == 500
    assert list(harness.registry.models["made"].versions) == ["1.0"]
    assert harness.run(harness.ask("made")).status == 200


def test_of_several_registrations_of_a_version_exactly_one_is_done(harness: RegistryHarness) -> None:
    registration = Registration("tired-1.0.mar", initial_workers=1)

    async def all_at_once() -> list[Any]:
        return await asyncio.gather(
            *(harness.registry.register(registration) for _ in range(5)), return_exceptions=True
        )

    done = harness.run(all_at_once())
    errors = [result for result in done if isinstance(result, ApiError)]
    assert [result.status for result in errors] == [409] * 4
    assert errors[0].message == "Model version 1.0 is already registered for model tired"
    assert harness.run(harness.ask("tired")).status == 200


def test_a_version_that_is_removed_while_it_loads_has_not_been_registered(harness: RegistryHarness) -> None:
    async def both() -> ApiError:
        registering = asyncio.ensure_future(harness.registry.register(Registration("tired-1.0.mar", initial_workers=1)))
        await harness.until(lambda: "tired" in harness.registry.models)
        await harness.registry.unregister("tired")
        with pytest.raises(ApiError) as caught:
            await registering
        return caught.value

    error = harness.run(both())
    assert (error.status, error.message) == (500, "Failed to start workers for model tired version: 1.0")
    assert harness.registry.models == {}


def test_running_and_queued_requests_are_answered_before_a_version_is_removed(harness: RegistryHarness) -> None:
    harness.register("slow-1.0.mar", 1)
    replies = [harness.ask("slow") for _ in range(2)]
    harness.run(harness.registry.unregister("slow"))
    assert [reply.result().status for reply in replies] == [200, 200]
    harness.run(harness.until(lambda: not harness.workers()))
    with pytest.raises(ApiError, match=FOUND_NONE):
        harness.registry.find("slow")


def test_requests_that_no_worker_can_answer_fail_at_once(harness: RegistryHarness) -> None:
    harness.register("broken-1.0.mar", 1, synchronous=False)
    reply = harness.ask("broken")
    harness.run(harness.registry.unregister("broken"))
    assert reply.result().status == 503


def test_a_version_is_removed_once(harness: RegistryHarness) -> None:
    harness.register("slow-1.0.mar", 1)
    harness.ask("slow")

    async def twice() -> list[Any]:
        return await asyncio.gather(*(harness.registry.unregister("slow") for _ in range(2)), return_exceptions=True)

    first, second = harness.run(twice())
    assert first is None
    assert second.status == 404


def test_a_version_can_be_registered_again_while_its_predecessor_drains(harness: RegistryHarness) -> None:
    harness.register("slow-1.0.mar", 1)
    reply = harness.ask("slow")

    async def again() -> None:
        removing = asyncio.ensure_future(harness.registry.unregister("slow"))
        await harness.until(lambda: "slow" not in harness.registry.models)
        await harness.registry.register(Registration("slow-1.0.mar", initial_workers=1))
        await removing

    harness.run(again())
    assert reply.result().status == 200
    assert harness.run(harness.ask("slow")).status == 200


def test_scaling_to_zero_answers_queued_requests_and_rejects_new_ones(harness: RegistryHarness) -> None:
    harness.register("slow-1.0.mar", 1)
    replies = [harness.ask("slow") for _ in range(2)]

    async def scale() -> None:
        scaling = asyncio.ensure_future(harness.registry.scale("slow", None, 0, 0))
        await asyncio.sleep(0)
        with pytest.raises(ApiError, match="has no worker") as caught:
            harness.ask("slow")
        assert caught.value.status == 503
        await scaling

    harness.run(scale())
    assert [reply.result().status for reply in replies] == [200, 200]
    assert harness.registry.find("slow").pool.workers() == []


def test_scaling_down_a_version_that_starts_ends_every_wait_for_it(harness: RegistryHarness) -> None:
    harness.register("tired-1.0.mar")

    async def both() -> None:
        up = asyncio.ensure_future(harness.registry.scale("tired", None, 2, 2))
        await harness.until(lambda: harness.registry.find("tired").pool.workers())
        await harness.registry.scale("tired", None, 0, 0)
        await asyncio.wait([up])

    harness.run(both())
    assert harness.registry.find("tired").pool.workers() == []


def test_a_scaling_that_fails_has_the_reason(harness: RegistryHarness) -> None:
    harness.register("broken-1.0.mar")
    status, message = harness.error_of(harness.registry.scale("broken", "1.0", 1, 1))
    assert status == 500
    assert message.startswith("Failed to start workers for model broken version: 1.0: ModuleNotFoundError")


def test_the_first_version_is_the_default_until_another_is_made_that(harness: RegistryHarness) -> None:
    harness.register("made-1.0.mar")
    harness.register("made-2.0.mar")
    assert harness.registry.find("made").version == "1.0"
    harness.registry.set_default("made", "2.0")  # none has workers: nothing is taken from anybody
    assert harness.registry.find("made").version == "2.0"
    assert harness.error_of(harness.registry.unregister("made")) == (
        403,
        "Cannot remove default version for model made",
    )


def test_a_version_without_workers_does_not_replace_one_that_has_workers(harness: RegistryHarness) -> None:
    harness.register("made-1.0.mar", 1)
    harness.register("made-2.0.mar")
    harness.register("made-3.0.mar", 1, synchronous=False)
    harness.run(harness.until(lambda: harness.registry.find("made", "3.0").pool.failure))
    for version, why in (("2.0", "has no workers"), ("3.0", "has workers that do not load")):
        with pytest.raises(ApiError, match=why) as caught:
            harness.registry.set_default("made", version)
        assert caught.value.status == 409
    harness.run(harness.registry.scale("made", "2.0", 1, 1))
    harness.registry.set_default("made", "2.0")
    assert harness.registry.find("made").version == "2.0"


def test_more_workers_than_a_machine_can_have_are_rejected(harness: RegistryHarness) -> None:
    count = MAX_WORKERS + 1
    assert harness.error_of(harness.registry.register(Registration("made-1.0.mar", initial_workers=count)))[0] == 400
    harness.register("made-1.0.mar")
    assert harness.error_of(harness.registry.scale("made", None, count, count))[0] == 400


def resolved(
    harness: RegistryHarness,
    folder: Path,
    config: dict[str, Any],
    keys: dict[str, str] | None = None,
    **parameters: Any,
) -> serving_config.ServingConfig:
    """Return the serving configuration of an archive."""
    folder.mkdir(exist_ok=True)
    (folder / "store").mkdir(exist_ok=True)
    pack(folder / "store", "m", config=config)
    settings = read(folder, **(keys or {}))

    async def resolve() -> serving_config.ServingConfig:
        sources = ArchiveCache(settings, folder / "archives")
        by_server = parameters.pop("by_server", False)
        registration = Registration("m-1.0.mar", **parameters)
        source = await sources.fetch(registration.url)
        try:
            return serving_config.resolve(registration, source, settings, by_server=by_server)
        finally:
            sources.release(source)

    return harness.run(resolve())


WHOLE = {"batchSize": 3, "maxBatchDelay": 7, "responseTimeout": 33, "startupTimeout": 44}
OWN_KEYS = {"batchSize": 6, "maxBatchDelay": 8, "responseTimeout": 9, "startupTimeout": 10, "minWorkers": 2}
OWN = json.dumps({"m": {"1.0": {**OWN_KEYS, "maxWorkers": 4}}})
PARAMETERS = {"batch_size": 11, "max_batch_delay": 12, "response_timeout": 13, "startup_timeout": 14}
DEFAULTS = {"default_response_timeout": "50", "default_startup_timeout": "51", "default_workers_per_model": "5"}


@pytest.mark.parametrize(
    ("config", "keys", "parameters", "wanted"),
    [
        ({}, {}, {}, (1, 100, 120, 120)),
        ({}, DEFAULTS, {}, (1, 100, 50, 51)),
        ({}, DEFAULTS, PARAMETERS, (11, 12, 13, 14)),
        ({}, {"models": OWN}, {}, (6, 8, 9, 10)),
        ({}, {"models": OWN}, PARAMETERS, (11, 12, 9, 10)),
        (WHOLE, {"models": OWN}, {}, (3, 7, 33, 44)),
        (WHOLE, {"models": OWN}, PARAMETERS, (11, 12, 33, 44)),
        (
            {"batchSize": 0, "maxBatchDelay": True, "responseTimeout": "9", "startupTimeout": -1},
            {},
            {},
            (1, 100, 120, 120),
        ),
    ],
)
def test_configuration_sources_have_a_priority(
    harness: RegistryHarness,
    tmp_path: Path,
    config: dict[str, Any],
    keys: dict[str, str],
    parameters: dict[str, int],
    wanted: Any,
) -> None:
    pool = resolved(harness, tmp_path, {"own": 1, **config}, keys, **parameters).pool
    assert (pool.batch_size, pool.max_batch_delay, pool.response_timeout, pool.startup_timeout) == wanted


@pytest.mark.parametrize(
    ("config", "keys", "parameters", "wanted"),
    [
        ({}, {}, {}, (0, 0)),
        ({}, DEFAULTS, {}, (5, 5)),
        ({}, DEFAULTS, {"initial_workers": 0}, (0, 0)),
        ({}, {"models": OWN}, {"initial_workers": 1}, (1, 1)),
        ({}, {"models": OWN}, {"by_server": True}, (2, 4)),
        ({"minWorkers": 1, "maxWorkers": 2}, {"models": OWN}, {"by_server": True}, (1, 2)),
        ({"minWorkers": 1, "maxWorkers": 2}, {}, {"initial_workers": 3}, (1, 2)),
        ({"minWorkers": 0, "maxWorkers": 2}, {}, {}, (1, 2)),
        ({"minWorkers": 3}, {}, {"initial_workers": 2}, (2, 2)),
        ({"minWorkers": 3, "maxWorkers": 1}, {}, {"initial_workers": 2}, (2, 2)),
        ({}, DEFAULTS, {"by_server": True}, (5, 5)),
        ({}, {"number_of_gpu": "2"}, {"by_server": True}, (2, 2)),
    ],
)
def test_workers_are_as_many_as_torchserve_starts(
    harness: RegistryHarness,
    tmp_path: Path,
    config: dict[str, Any],
    keys: dict[str, str],
    parameters: dict[str, Any],
    wanted: Any,
) -> None:
    serving = resolved(harness, tmp_path, {"own": 1, **config}, keys, **parameters)
    assert (serving.min_workers, serving.max_workers) == wanted


@pytest.mark.parametrize(
    ("config", "gpus", "devices", "kind", "device_ids"),
    [
        ({}, 0, (), "cpu", ()),
        ({}, 2, (0, 1), "gpu", ()),
        ({"deviceType": "cpu"}, 2, (), "cpu", ()),
        ({"deviceType": "gpu"}, 0, (), "cpu", ()),
        ({"deviceType": "GPU", "deviceIds": [1]}, 2, (1,), "gpu", (1,)),
        ({"deviceIds": [2, 0]}, 3, (2, 0), "gpu", (2, 0)),
        ({"deviceIds": [0, 5]}, 2, (0, 1), "gpu", ()),
        ({"deviceIds": "0"}, 2, (0, 1), "gpu", ()),
        ({"deviceType": "tpu"}, 1, (0,), "gpu", ()),
    ],
)
def test_workers_are_distributed_over_the_gpus_that_the_archive_names(
    harness: RegistryHarness,
    tmp_path: Path,
    config: dict[str, Any],
    gpus: int,
    devices: Any,
    kind: str,
    device_ids: Any,
) -> None:
    serving = resolved(harness, tmp_path, {"own": 1, **config}, {"number_of_gpu": str(gpus)})
    assert (serving.pool.devices, serving.device_type, serving.device_ids) == (devices, kind, device_ids)


@pytest.mark.parametrize(
    "config",
    [
        {"sequenceBatching": True},
        {"continuousBatching": True},
        {"parallelType": "tp"},
        {"torchrun": {"nproc-per-node": 2}},
        {"asyncCommunication": True},
    ],
    ids=lambda config: next(iter(config)),
)
def test_unsupported_configuration_is_reported_by_its_key(
    harness: RegistryHarness, tmp_path: Path, config: dict[str, Any]
) -> None:
    with pytest.raises(ApiError) as caught:
        resolved(harness, tmp_path, config)
    assert next(iter(config)) in caught.value.message
    assert "torchmar serve --engine torchserve runs it" in caught.value.message
    assert resolved(harness, tmp_path, dict.fromkeys(config, False)).min_workers == 0


def test_queues_tickets_and_patience_are_the_archives(harness: RegistryHarness, tmp_path: Path) -> None:
    config = {"jobQueueSize": 7, "useJobTicket": True, "maxRetryTimeoutInSec": 9, "clientTimeoutInMills": 1500}
    serving = resolved(harness, tmp_path, config)
    assert (serving.pool.queue_size, serving.pool.job_tickets, serving.pool.retry_seconds) == (7, True, 9)
    assert serving.client_timeout == 1.5


@pytest.mark.parametrize(
    ("section", "mode"),
    [
        ({"fork": True}, forking.ALLOWED),
        ({"fork": False}, forking.NEVER),
        ({"fork": "yes"}, forking.NEVER),
        ({}, forking.NEVER),
        (["fork"], forking.NEVER),
        ({"forks": True}, forking.NEVER),
    ],
)
def test_workers_are_forks_only_if_the_archive_declares_it(
    harness: RegistryHarness, tmp_path: Path, section: Any, mode: str
) -> None:
    serving = resolved(harness, tmp_path, {"torchmar": section})
    assert serving.pool.fork == mode
    assert ("model-config.yaml" in serving.pool.fork_reason) is (section in ({"fork": True}, {"fork": False}))
