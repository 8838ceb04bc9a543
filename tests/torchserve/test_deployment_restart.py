"""The state of a server is captured, and a server is started from it: torchmar.deployment.capture and startup."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.deployments import context_of
from tests.support.servers import KilledTorchServe, write_config
from torchmar import properties
from torchmar.connection import Endpoint
from torchmar.deployment import actual, desired, executor, planning, store_index
from torchmar.deployment.capture import capture
from torchmar.deployment.startup import startup
from torchmar.errors import TorchmarError

Make = Callable[..., Path]
WANTED = """
models:
  a:
    default: "1.0"
    drain_seconds: 1
    versions:
      "1.0": {min_workers: 1, max_workers: 2, batch_size: 4, max_batch_delay: 7, response_timeout: 33}
      "2.0": {min_workers: 0}
  b:
    drain_seconds: 1
    versions:
      "1.5": {min_workers: 1, batch_size: 3, startup_timeout: 44}
  c:
    versions:
      "0.1":
"""


def seen(server: Endpoint) -> dict[str, tuple[str, dict[str, list[int]]]]:
    """Return the compared properties of a server's models, once their workers are ready."""
    deadline = time.monotonic() + 60
    while True:
        models = actual.read(server)
        if all(
            version.ready == version.min_workers for model in models.values() for version in model.versions.values()
        ):
            break
        assert time.monotonic() < deadline
        time.sleep(0.1)
    keys = ("min_workers", "max_workers", "batch_size", "max_batch_delay", "response_timeout", "startup_timeout")
    return {
        name: (
            model.default,
            {version.version: [getattr(version, key) for key in keys] for version in model.versions.values()},
        )
        for name, model in models.items()
    }


def restarted(deployment: desired.Deployment, folder: Path, store: Path) -> object:
    """Start a server for a deployment, assert that nothing is left to do, and return its state."""
    live, archives = planning.archives(deployment, folder, store)
    file = folder / "again.properties"
    file.write_text(startup(deployment, archives, live, properties.read(folder / "config.properties").values))
    with KilledTorchServe(file, store, folder / "run") as server:
        seen_state = seen(server.server)
        assert planning.make(deployment, context_of(server)).actions == ()
    return seen_state


def test_a_drafted_deployment_needs_no_change_and_is_the_same_after_a_restart(tmp_path: Path, make: Make) -> None:
    store = tmp_path / "store"
    for name, version, config in (
        ("a", "1.0", {}),
        ("a", "2.0", {}),
        ("b", "1.5", {"batchSize": 8, "minWorkers": 2, "maxWorkers": 2}),
        ("c", "0.1", {"handler": {"some": "thing"}}),
    ):
        make(name=name, version=version, config=config, store=store)
    config = write_config(tmp_path)
    with KilledTorchServe(config, store, tmp_path / "run") as server:
        first = planning.make(desired.parse(WANTED), context_of(server))
        assert executor.apply(first, server.server).failure is None
        before = seen(server.server)
        live = actual.read(server.server)
        written = capture(live, store_index.read(store, live))
        captured = desired.parse(written)
        assert planning.make(captured, context_of(server)).actions == ()
    # The build of b is written as the version that it is of.
    assert list(captured.models["b"].versions) == ["1.5"]
    assert before["b"] == ("1.5+b1", {"1.5+b1": [1, 1, 3, 100, 120, 44]})

    for deployment in (desired.parse(WANTED), captured):
        assert restarted(deployment, tmp_path, store) == before
    # Without a version that has no workers other keys of the configuration do.
    default, versions = before["a"]
    before["a"] = (default, versions | {"2.0": [1, 1, 1, 100, 120, 120]})
    assert restarted(desired.parse(WANTED.replace("min_workers: 0", "min_workers: 1")), tmp_path, store) == before


def test_a_deployment_without_its_archives_names_apply_as_the_next_step(tmp_path: Path, make: Make) -> None:
    store = tmp_path / "store"
    make(name="a", config={"batchSize": 8}, store=store)
    deployment = desired.parse('models: {a: {versions: {"1.0": {batch_size: 2}}}}')
    live, archives = planning.archives(deployment, tmp_path, store)
    with pytest.raises(TorchmarError, match=r"no archive in .* gives a 1\.0 as the deployment says") as caught:
        startup(deployment, archives, live, {})
    assert caught.value.hint == "torchmar apply makes it"
