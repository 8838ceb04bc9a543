"""Make a version the default when its samples and bounds hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torchmar.connection import Endpoint
from torchmar.deployment import ab_comparison, actual, smoke_test
from torchmar.deployment.ab_comparison import Agreement, Evidence
from torchmar.deployment.actual import LiveModel
from torchmar.deployment.smoke_test import SmokeTest
from torchmar.errors import TorchmarError
from torchmar.management import ManagementClient

_ANSWERS = 200  # timed ones, of each version


@dataclass(frozen=True)
class Bounds:
    """What counts as good as the default version.

    Attributes:
        agree: whether two answers are the same.
        max_regression: by what share its median answer may be slower.
        max_differences: what share of the requests may be answered otherwise.
        repeat: pairs of timed answers for each request; None: as many as make 200.
    """

    agree: Agreement
    max_regression: float = 0.05
    max_differences: float = 0.0
    repeat: int | None = None


@dataclass(frozen=True)
class Promotion:
    """What became of a version: it answered its samples; ``found`` is None if it was compared with nothing."""

    before: str
    tried: SmokeTest
    found: Evidence | None

    @property
    def passed(self) -> bool:
        """Whether it is the default now."""
        return self.found is None or self.found.verdict == "pass"


def promote(
    server: Endpoint,
    name: str,
    version: str,
    *,
    model_store: Path | None = None,
    requests: Path | None = None,
    bounds: Bounds | None = None,
    watch: Callable[[str], None] = lambda what: None,
) -> Promotion:
    """Ask a version its samples, compare it with the default one, and make it that if it passes.

    Args:
        server: where both are.
        name: the model.
        version: registered, with workers.
        model_store: where its archive may lie, which has the samples.
        requests: a folder of requests to compare by, in place of the samples.
        bounds: how it compares; None: with nothing.
        watch: called with a text when a step begins.

    Raises:
        TorchmarError: there is no such version, it is the default already, no worker answers, or a response is wrong.
    """
    with ManagementClient(server) as client:
        model = actual.read_model(client, name)
        _refuse(model, version)
        there = model.versions[version]
        archive = model_store / there.url if model_store and (model_store / there.url).exists() else None
        asked = smoke_test.questions(archive, None)
        recorded = smoke_test.questions(None, requests) if requests else asked
        timeout = there.response_timeout + 5.0
        watch(f"asking {name} {version} its samples")
        at_once = min(16, there.batch_size * len(there.workers))
        tried = smoke_test.hold(
            server, name, version, asked, warmup_requests=20, at_once=at_once, max_latency=None, timeout=timeout
        )
        found = None
        if bounds:
            watch(f"asking {name} {model.default} and {version} in turn")
            found = ab_comparison.compare(
                server,
                name,
                model.default,
                version,
                recorded,
                bounds.agree,
                repeat=bounds.repeat or max(3, -(-_ANSWERS // max(1, len(recorded)))),
                max_regression=bounds.max_regression,
                max_differences=bounds.max_differences,
                timeout=timeout,
            )
        made = Promotion(model.default, tried, found)
        if made.passed:
            client.set_default(name, version)
        return made


def _refuse(model: LiveModel, version: str) -> None:
    if version not in model.versions:
        raise TorchmarError(
            f"{model.name} {version} is not registered; {', '.join(model.versions)} are",
            hint=f"torchmar register {model.name}-{version}.mar",
        )
    if version == model.default:
        raise TorchmarError(f"{model.name} {version} is the default already")
    if not model.versions[version].ready:
        raise TorchmarError(
            f"{model.name} {version} has no workers that answer",
            hint=f"torchmar scale {model.name} 1 --version {version}",
        )
