"""The state of another server at one moment, read by its management, inference and metrics APIs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from torchmar import metrics
from torchmar.connection import Endpoint
from torchmar.engines import worker_log
from torchmar.engines.state import VersionState
from torchmar.errors import NotFoundError, ServerError, TorchmarError
from torchmar.inference import InferenceClient
from torchmar.management import ManagementClient, ModelVersion
from torchmar.metrics import Reading

SECONDS = 10.0  # timeout of a call
_MOST_DESCRIBED = 20  # number of models described in one reading: each takes two calls
_UNHEALTHY = 500


@dataclass(frozen=True, kw_only=True)
class Target:
    """The addresses and folders of a server that the console shows.

    Attributes:
        endpoint: its addresses and tokens.
        metrics: address of its metrics API; empty: it has none.
        folder: its run folder; None: it is not on this machine.
        model_store: its model store; None: it is not on this machine.
    """

    endpoint: Endpoint
    metrics: str = ""
    folder: Path | None = None
    model_store: Path | None = None


@dataclass(frozen=True)
class Model:
    """A model: its default version, and all versions."""

    default: str
    versions: tuple[VersionState, ...]


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The state of a server at one moment.

    Attributes:
        time: time of the reading, in seconds since 1970.
        health: ``Healthy``, ``Partial Healthy`` or ``Unhealthy``.
        models: models by name; if there are many, some descriptions are from earlier readings.
        metrics: metrics; None: the server does not report them.
        without_metrics: reason why it does not.
    """

    time: float
    health: str
    models: Mapping[str, Model]
    metrics: Reading | None
    without_metrics: str


class Reader:
    """Reads a server. Blocking; one call at a time.

    Args:
        target: the server.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._management = ManagementClient(target.endpoint, timeout=SECONDS)
        self._inference = InferenceClient(target.endpoint, timeout=SECONDS)
        self._models: dict[str, Model] = {}
        self._urls: dict[str, str] = {}
        self._described: dict[str, float] = {}  # time of each description, by `time.monotonic`

    def close(self) -> None:
        """Close the connections."""
        self._management.close()
        self._inference.close()

    def forget(self, name: str) -> None:
        """Describe a model again at the next reading."""
        self._described.pop(name, None)

    def read(self) -> Snapshot:
        """Read the server.

        Raises:
            TorchmarError: the management API does not answer, or rejects the call.
        """
        urls = {model.name: model.url for model in self._management.models()}
        for name in self._due(urls):
            try:
                self._models[name] = self._describe(name)
                self._described[name] = time.monotonic()
            except NotFoundError:  # it was unregistered in between
                urls.pop(name)
        self._urls = urls
        self._models = {name: self._models[name] for name in urls}
        reading, reason = self._metrics()
        return Snapshot(
            time=time.time(),
            health=self._health(),
            models=self._with_failures(),
            metrics=reading,
            without_metrics=reason,
        )

    def _due(self, urls: Mapping[str, str]) -> list[str]:
        """Return the models to describe: changed ones, then those with the oldest descriptions."""
        now = time.monotonic()
        changed = [name for name, url in urls.items() if name not in self._models or self._urls.get(name) != url]
        others = sorted(urls.keys() - set(changed), key=lambda name: self._described.get(name, -now))
        return [*changed, *others[: max(0, _MOST_DESCRIBED - len(changed))]]

    def _describe(self, name: str) -> Model:
        default = self._management.describe(name)[0].version
        versions = self._management.describe(name, "all")
        return Model(default, tuple(_state(version, default) for version in versions))

    def _with_failures(self) -> dict[str, Model]:
        """Return the models, with the last failures of their workers from the log."""
        short = [version.model for version in self._versions() if version.model.ready < version.model.min_workers]
        if not short or self._target.folder is None:
            return dict(self._models)
        failures = worker_log.failures(self._target.folder)
        models = dict(self._models)
        for model in short:
            of = models[model.name]
            versions = tuple(
                VersionState(state.model, state.default, state.memory, failures.get((model.name, model.version)))
                if state.model is model
                else state
                for state in of.versions
            )
            models[model.name] = Model(of.default, versions)
        return models

    def _versions(self) -> Iterator[VersionState]:
        for model in self._models.values():
            yield from model.versions

    def _health(self) -> str:
        try:
            return self._inference.ping()
        except ServerError as error:
            return "Unhealthy" if error.status == _UNHEALTHY else "Partial Healthy"
        except TorchmarError:
            return "Unhealthy"

    def _metrics(self) -> tuple[Reading | None, str]:
        if not self._target.metrics:
            return None, "The address of the metrics API is not known; --metrics names it."
        try:
            reading = metrics.read(self._target.metrics, self._target.endpoint)
        except TorchmarError as error:
            return None, f"{error.message}{f'; {error.hint}' if error.hint else ''}"
        if not any(sample.name.startswith(("ts_", "Requests")) for sample in reading.samples):
            return None, f"{self._target.metrics} has no metrics of TorchServe."
        return reading, ""


def _state(version: ModelVersion, default: str) -> VersionState:
    workers = (*version.workers, *(worker for stage in version.stages.values() for worker in stage))
    memory = sum(worker.memory_usage for worker in workers)
    return VersionState(version, version.version == default, memory, None)


def beside(management: str, distance: int) -> str:
    """Return the address of an API whose port is so much above the management API's; empty if that has no port."""
    parts = urlsplit(management)
    if not parts.hostname or not parts.port:
        return ""
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return urlunsplit((parts.scheme, f"{host}:{parts.port + distance}", "", "", ""))
