"""The promotion of a version to the default, if its samples and limits hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torchmar.connection import Endpoint
from torchmar.deployment import ab_comparison, actual, smoke_test
from torchmar.deployment.ab_comparison import Agreement, Comparison
from torchmar.deployment.actual import LiveModel
from torchmar.deployment.smoke_test import SmokeTest
from torchmar.errors import TorchmarError
from torchmar.management import ManagementClient

_TIMED = 200  # number of measured responses of each version


@dataclass(frozen=True)
class Bounds:
    """The limits within which a version is as good as the default one.

    Attributes:
        agreement: comparison of two responses.
        max_regression: the share by which the median latency may be larger.
        max_differences: the share of requests whose responses may differ.
        repeat: measured pairs of responses for each request; None: so many that there are 200 in total.
    """

    agreement: Agreement
    max_regression: float = 0.05
    max_differences: float = 0.0
    repeat: int | None = None


@dataclass(frozen=True)
class Promotion:
    """The result of a promotion.

    Attributes:
        before: the default version before it.
        smoke_test: the test of the version's samples.
        comparison: comparison with the default version; None if there was none.
    """

    before: str
    smoke_test: SmokeTest
    comparison: Comparison | None

    @property
    def passed(self) -> bool:
        """Whether the version is now the default."""
        return self.comparison is None or self.comparison.verdict == "pass"


def promote(
    server: Endpoint,
    name: str,
    version: str,
    *,
    model_store: Path | None = None,
    requests: Path | None = None,
    bounds: Bounds | None = None,
    on_step: Callable[[str], None] = lambda text: None,
) -> Promotion:
    """Send a version its samples, compare it with the default version, and make it the default if it passes.

    Args:
        server: the server.
        name: the model.
        version: a registered version with workers.
        model_store: the folder with its archive, which has the samples; None if it is not on this machine.
        requests: folder of requests for the comparison, in place of the samples.
        bounds: limits of the comparison; None: do not compare.
        on_step: called with a text at the start of each step.

    Raises:
        TorchmarError: the version does not exist, it is already the default, none of its workers answers, or a response
            is wrong.
    """
    with ManagementClient(server) as client:
        model = actual.read_model(client, name)
        _require_candidate(model, version)
        candidate = model.versions[version]
        archive = model_store / candidate.url if model_store and (model_store / candidate.url).exists() else None
        samples = smoke_test.probes(archive, None)
        compared = smoke_test.probes(None, requests) if requests else samples
        timeout = candidate.response_timeout + 5.0
        on_step(f"sending samples to {name} {version}")
        at_once = min(16, candidate.batch_size * len(candidate.workers))
        tested = smoke_test.run(
            server, name, version, samples, warmup_requests=20, at_once=at_once, max_latency=None, timeout=timeout
        )
        comparison = None
        if bounds:
            on_step(f"comparing {name} {model.default} and {version}")
            comparison = ab_comparison.compare(
                server,
                name,
                model.default,
                version,
                compared,
                bounds.agreement,
                repeat=bounds.repeat or max(3, -(-_TIMED // max(1, len(compared)))),
                max_regression=bounds.max_regression,
                max_differences=bounds.max_differences,
                timeout=timeout,
            )
        promotion = Promotion(model.default, tested, comparison)
        if promotion.passed:
            client.set_default(name, version)
        return promotion


def _require_candidate(model: LiveModel, version: str) -> None:
    """Raise TorchmarError unless a version is registered, has workers that answer, and is not the default."""
    if version not in model.versions:
        raise TorchmarError(
            f"{model.name} {version} is not registered; registered: {', '.join(model.versions)}",
            hint=f"torchmar register {model.name}-{version}.mar",
        )
    if version == model.default:
        raise TorchmarError(f"{model.name} {version} is the default already")
    if not model.versions[version].ready:
        raise TorchmarError(
            f"{model.name} {version} has no workers that answer",
            hint=f"torchmar scale {model.name} 1 --version {version}",
        )
