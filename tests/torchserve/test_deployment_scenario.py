"""Random operations on a server under load: not one request is lost, and every answer is right."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.support.deployments import context_of
from tests.support.open_loop import OpenLoop
from tests.support.paths import DIGITS, SAMPLES
from tests.support.servers import ENGINES, on_both_engines, write_config
from torchmar import archive, recipe
from torchmar.deployment import actual, desired, executor, planning
from torchmar.deployment.executor import Report
from torchmar.deployment.rollback import rollback
from torchmar.engines import EngineName
from torchmar.engines.engine import Engine
from torchmar.exchange import content_type

SEED = 20
OPERATIONS = 10  # on each engine
SEVEN = SAMPLES / "seven.png"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, digits: Path, engine: EngineName) -> Iterator[Engine]:
    """Run a server over two digits models of different weights, and one that is no digits model."""
    folder = tmp_path_factory.mktemp("scenario")
    store = folder / "model_store"
    here = shutil.copytree(DIGITS, folder / "digits")
    other = torch.jit.load(here / "digits.pt")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=1e-3)
    other.save(here / "other.pt")
    written, _ = recipe.read(here)
    samples = written.samples[:3]
    # The expectation of the zero is not met by the one.
    wrong = [samples[1].model_copy(update={"input": samples[0].input})]
    for version, changes in (
        ("1.0", {"samples": samples}),
        ("2.0", {"samples": samples, "weights": "other.pt"}),
        ("3.0", {"samples": wrong}),
    ):
        members = archive.collect_members(written.model_copy(update={"version": version, **changes}), here)
        archive.pack(members, store / f"digits-{version}.mar")
    with ENGINES[engine](write_config(folder), store, folder / "run") as running:
        yield running


def is_a_seven(body: bytes) -> bool:
    answer = json.loads(body)
    return max(answer, key=answer.get) == "7"


class Operator:
    """An operator who changes a deployment in random, plausible ways."""

    def __init__(self, server: Engine, drawn: random.Random) -> None:
        self.server, self.drawn = server, drawn
        settings = {"min_workers": 1, "batch_size": 8, "response_timeout": 30}
        self.model: dict[str, Any] = {
            "default": "1.0",
            "drain_seconds": 2,
            "warmup_requests": 5,
            "versions": {"1.0": settings},
        }
        self.done: list[str] = []

    def text(self, **changes: Any) -> str:
        return yaml.safe_dump({"models": {"digits": {**self.model, **changes}}})

    def apply(self, text: str) -> Report:
        planned = planning.make(desired.parse(text), context_of(self.server))
        return executor.apply(planned, self.server.server)

    def operate(self, count: int) -> None:
        """Do each of the operations once, and then others, the usual ones more often."""
        operations = (self.promote, self.roll_back, self.scale, self.batch, self.fail, self.meddle)
        weights = (12, 14, 4, 4, 3, 8)
        each = self.drawn.sample(operations, len(operations))
        for operation in [*each, *self.drawn.choices(operations, weights, k=count - len(each))]:
            self.done.append(operation.__name__)
            operation()
            report = self.apply(self.text())
            assert (report.failure, report.left) == (None, []), (self.done, report)

    @property
    def settings(self) -> dict[str, Any]:
        version_settings: dict[str, Any] = self.model["versions"][self.model["default"]]
        return version_settings

    def promote(self) -> None:
        """Write the other version in place of the one that is there; that one is kept."""
        other = "2.0" if self.model["default"] == "1.0" else "1.0"
        self.model |= {"default": other, "versions": {other: self.settings}}

    def roll_back(self) -> None:
        versions = actual.read_model(self.server.management, "digits").versions
        others = [version for version in versions if not version.startswith(self.model["default"])]
        if others:
            rollback(self.server.management, "digits", others[0])
            self.model |= {"default": others[0][:3], "versions": {others[0][:3]: self.settings}}

    def scale(self) -> None:
        self.settings["min_workers"] = self.drawn.choice([1, 2])

    def batch(self) -> None:
        self.settings["batch_size"] = self.drawn.choice([1, 4, 8])

    def fail(self) -> None:
        """Try a version with wrong answers: the server must not change."""
        before = actual.read(self.server.server)
        report = self.apply(self.text(default="3.0", versions={"3.0": self.settings}))
        assert report.failure is not None, self.done
        assert report.undone, self.done
        assert actual.read(self.server.server).keys() == before.keys()
        assert actual.read(self.server.server)["digits"].default == before["digits"].default

    def meddle(self) -> None:
        """Change the server by hand, behind the back of the deployment."""
        versions = actual.read_model(self.server.management, "digits").versions
        self.server.management.set_default("digits", self.drawn.choice(list(versions)))


@on_both_engines
def test_after_many_operations_the_server_is_in_the_desired_state_and_no_request_was_lost(server: Engine) -> None:
    operator = Operator(server, random.Random(SEED))
    assert operator.apply(operator.text()).failure is None
    body, kind = SEVEN.read_bytes(), content_type(SEVEN.name)
    with OpenLoop(server.server, "digits", 12, body, clients=64, content_type=kind, right=is_a_seven) as load:
        operator.operate(OPERATIONS)
    assert load.lost == {}, operator.done
    assert load.answered > 4 * OPERATIONS
    planned = planning.make(desired.parse(operator.text()), context_of(server))
    assert planned.actions == ()
    (only,) = actual.read(server.server).values()
    kept = [version for version in only.versions if version != only.default]
    assert len(kept) <= 1
    # No archive is left of builds that are gone.
    files = {file.name for file in server.model_store.iterdir()}
    assert files == {f"digits-{kept_version}.mar" for kept_version in ("1.0", "2.0", "3.0", *only.versions)}
