"""The target of one version: the deployment's values, otherwise the archive's, otherwise the current ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torchmar.deployment.desired import VersionState
from torchmar.deployment.store_index import SECTION, StoredArchive
from torchmar.management import ModelVersion

# For each name in deployment.yaml: the key in an archive's configuration, and TorchServe's default.
SETTINGS = {
    "batch_size": ("batchSize", 1),
    "max_batch_delay": ("maxBatchDelay", 100),
    "response_timeout": ("responseTimeout", 120),
    "startup_timeout": ("startupTimeout", 120),
}
_TIMEOUTS = ("response_timeout", "startup_timeout")


@dataclass(frozen=True)
class Target:
    """The workers and settings of a version.

    Attributes:
        settings: values by name; None: the server chooses.
        explicit: names of the settings in the deployment or the archive; the others keep their values.
        devices: the GPU of each worker; None: the server chooses.
        worker_memory: GPU memory of one worker in bytes; 0 if unknown.
    """

    min_workers: int
    max_workers: int
    settings: Mapping[str, int | None]
    explicit: frozenset[str]
    devices: tuple[int, ...] | None = None
    worker_memory: int = field(default=0, compare=False)

    @classmethod
    def of(
        cls, state: VersionState, stored: StoredArchive | None, live: ModelVersion | None, at_least: int = 0
    ) -> Target:
        """Return the target of a version.

        Args:
            state: entry of the version in the deployment.
            stored: archive of the version, if it can be read.
            live: registered build of the version, if there is one.
            at_least: least number of workers if neither the deployment nor the archive has a number.
        """
        settings: dict[str, int | None] = {}
        explicit = set()
        for name, (key, _) in SETTINGS.items():
            value = getattr(state, name)
            if value is None and stored:
                value = stored.number(key)
            if value is not None:
                explicit.add(name)
            elif live:
                value = getattr(live, name)
            settings[name] = value
        low, high = state.min_workers, state.max_workers
        archive_low, archive_high = _own_workers(stored)
        if low is None and archive_low:
            low, high = archive_low, archive_high
        if low is not None:
            explicit.add("min_workers")
        elif live and live.min_workers >= at_least:
            low, high = live.min_workers, live.max_workers
        elif live:
            low = at_least
            explicit.add("min_workers")
        low = 1 if low is None else low
        return cls(low, max(low, high or 0), settings, frozenset(explicit), None, state.worker_memory or 0)

    def differences(self, live: ModelVersion) -> Iterator[tuple[str, str, str]]:
        """Yield name, current and desired value of each setting that only a new build can change."""
        for name in SETTINGS:
            if name in self.explicit and getattr(live, name) != self.settings[name]:
                yield name, str(getattr(live, name)), str(self.settings[name])
        if self.devices is not None and spread(live.device_ids, self.min_workers) != self.devices:
            yield "devices", _listed(live.device_ids), _listed(self.devices)

    def satisfied_by(self, stored: StoredArchive) -> bool:
        """Return whether registering an archive gives the target; its configuration overrides the registration."""
        low, high = _own_workers(stored)
        if low and (low, high) != (self.min_workers, self.max_workers):
            return False
        for name, (key, default) in SETTINGS.items():
            own_value = stored.number(key)
            if own_value is None and stored.configured and name in _TIMEOUTS:
                own_value = default  # TorchServe uses the default for a timeout that the configuration lacks
            value = self.settings[name]
            if value is not None and own_value is not None and own_value != value:
                return False
        return self.devices is None or tuple(stored.config.get("deviceIds") or ()) == self.devices

    def equals_defaults_of(self, stored: StoredArchive) -> bool:
        """Return whether the target equals an archive's own configuration, completed by TorchServe's defaults."""
        defaults = {name: stored.number(key) or default for name, (key, default) in SETTINGS.items()}
        return self.satisfied_by(stored) and all(self.settings[name] in (None, defaults[name]) for name in SETTINGS)

    def config(self, stored: StoredArchive) -> dict[str, Any]:
        """Return the changes to an archive's configuration that give the target; None removes a key."""
        has_workers = self.min_workers > 0
        changes: dict[str, Any] = {
            "minWorkers": self.min_workers if has_workers else None,
            "maxWorkers": self.max_workers if has_workers else None,
            # TorchServe treats 0 as a missing key, and then uses the value of the registration.
            **{key: self.settings[name] or None for name, (key, _) in SETTINGS.items()},
        }
        if self.devices is not None:
            changes |= {"deviceIds": list(self.devices), "deviceType": "gpu"}
        if self.worker_memory:
            section = stored.config.get(SECTION)
            changes[SECTION] = {**(section if isinstance(section, dict) else {}), "workerMemory": self.worker_memory}
        return changes


def spread(devices: tuple[int, ...], workers: int) -> tuple[int, ...]:
    """Return the GPU of each worker: TorchServe assigns a configuration's ``deviceIds`` in turn."""
    return tuple(devices[index % len(devices)] for index in range(workers)) if devices else ()


def _own_workers(stored: StoredArchive | None) -> tuple[int, int]:
    """Return an archive's least and largest number of workers; TorchServe uses both or neither."""
    low = stored.number("minWorkers") if stored else None
    high = stored.number("maxWorkers") if stored else None
    return (low, high) if low and high and high >= low else (0, 0)


def _listed(devices: tuple[int, ...]) -> str:
    return ", ".join(map(str, devices)) or "the server's choice"
