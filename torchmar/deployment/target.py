"""The target of one version: the file's values, else the archive's, else the current ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torchmar.deployment.desired import VersionState
from torchmar.deployment.store_index import SECTION, StoredArchive
from torchmar.management import ModelVersion

# Our name, the server's in a configuration, and its default.
SETTINGS = {
    "batch_size": ("batchSize", 1),
    "max_batch_delay": ("maxBatchDelay", 100),
    "response_timeout": ("responseTimeout", 120),
    "startup_timeout": ("startupTimeout", 120),
}
_TIMEOUTS = ("response_timeout", "startup_timeout")


@dataclass(frozen=True)
class Target:
    """Workers and settings of one version.

    Attributes:
        settings: by name; None leaves one to the server.
        said: the names of those that the file or the archive says; the others are as they are.
        devices: the GPU of each worker; None leaves them to the server.
    """

    min_workers: int
    max_workers: int
    settings: Mapping[str, int | None]
    said: frozenset[str]
    devices: tuple[int, ...] | None = None
    worker_memory: int = field(default=0, compare=False)

    @classmethod
    def of(
        cls, state: VersionState, stored: StoredArchive | None, live: ModelVersion | None, at_least: int = 0
    ) -> Target:
        """Return the target of a version, given its archive and the build of it that is there, if any.

        It has ``at_least`` so many workers where neither the file nor the archive says how many.
        """
        settings: dict[str, int | None] = {}
        document = set()
        for name, (key, _) in SETTINGS.items():
            value = getattr(state, name)
            if value is None and stored:
                value = stored.number(key)
            if value is not None:
                document.add(name)
            elif live:
                value = getattr(live, name)
            settings[name] = value
        low, high = state.min_workers, state.max_workers
        archive_low, archive_high = _own_workers(stored)
        if low is None and archive_low:
            low, high = archive_low, archive_high
        if low is not None:
            document.add("min_workers")
        elif live and live.min_workers >= at_least:
            low, high = live.min_workers, live.max_workers
        elif live:
            low = at_least
            document.add("min_workers")
        low = 1 if low is None else low
        return cls(low, max(low, high or 0), settings, frozenset(document), None, state.worker_memory or 0)

    def differences(self, live: ModelVersion) -> Iterator[tuple[str, str, str]]:
        """Yield setting, present value and wanted value of what cannot be changed in place."""
        for name in SETTINGS:
            if name in self.said and getattr(live, name) != self.settings[name]:
                yield name, str(getattr(live, name)), str(self.settings[name])
        if self.devices is not None and spread(live.device_ids, self.min_workers) != self.devices:
            yield "devices", _listed(live.device_ids), _listed(self.devices)

    def comes_of(self, stored: StoredArchive) -> bool:
        """Tell whether registering an archive as it is gives the target: its configuration goes before all else."""
        low, high = _own_workers(stored)
        if low and (low, high) != (self.min_workers, self.max_workers):
            return False
        for name, (key, default) in SETTINGS.items():
            own = stored.number(key)
            if own is None and stored.configured and name in _TIMEOUTS:
                own = default  # a configuration without it is one with the default
            wanted = self.settings[name]
            if wanted is not None and own is not None and own != wanted:
                return False
        return self.devices is None or tuple(stored.config.get("deviceIds") or ()) == self.devices

    def is_what(self, stored: StoredArchive) -> bool:
        """Tell whether the target is what an archive says by itself, with TorchServe's defaults for the rest."""
        own = {name: stored.number(key) or default for name, (key, default) in SETTINGS.items()}
        return self.comes_of(stored) and all(self.settings[name] in (None, own[name]) for name in SETTINGS)

    def config(self, stored: StoredArchive) -> dict[str, Any]:
        """Return the changes to an archive's configuration that make it the target; None removes a key."""
        some = self.min_workers > 0
        changes: dict[str, Any] = {
            "minWorkers": self.min_workers if some else None,
            "maxWorkers": self.max_workers if some else None,
            # TorchServe reads 0 as nothing said, and then takes what registration says.
            **{key: self.settings[name] or None for name, (key, _) in SETTINGS.items()},
        }
        if self.devices is not None:
            changes |= {"deviceIds": list(self.devices), "deviceType": "gpu"}
        if self.worker_memory:
            section = stored.config.get(SECTION)
            changes[SECTION] = {**(section if isinstance(section, dict) else {}), "workerMemory": self.worker_memory}
        return changes


def spread(devices: tuple[int, ...], workers: int) -> tuple[int, ...]:
    """Return the GPU of each worker as TorchServe deals a configuration's ``deviceIds`` out: one after the other."""
    return tuple(devices[index % len(devices)] for index in range(workers)) if devices else ()


def _own_workers(stored: StoredArchive | None) -> tuple[int, int]:
    """Return minimum and maximum of an archive; TorchServe takes both or neither."""
    low = stored.number("minWorkers") if stored else None
    high = stored.number("maxWorkers") if stored else None
    return (low, high) if low and high and high >= low else (0, 0)


def _listed(devices: tuple[int, ...]) -> str:
    return ", ".join(map(str, devices)) or "the server's choice"
