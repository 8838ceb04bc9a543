"""The models of another server, read once a second, with a history and events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from torchmar.errors import TorchmarError
from torchmar.remote_console import documents, load
from torchmar.remote_console.changes import changes
from torchmar.remote_console.logs import LogReader
from torchmar.remote_console.reader import Model, Reader, Snapshot, Target
from torchmar.remote_console.store import Store
from torchmar.server.api_error import ApiError
from torchmar.server.telemetry.events import Events
from torchmar.server.telemetry.history import History
from torchmar.server.telemetry.recent_logs import RecentLogs

_INTERVAL_S = 1.0


class RemoteModels:
    """A `torchmar.server.api.console.source.Source` of another server.

    Args:
        target: the server.
        reader: reads it.
        first: first snapshot of the server.

    Attributes:
        target: the server.
        store: archives of the server.
        history: load of the server.
        events: events of the models.
        recent_logs: log of the server.
        on_tick: called after each reading.
        on_lost: called with the reason in place of ``on_tick`` if the server does not answer.
    """

    def __init__(self, target: Target, reader: Reader, first: Snapshot) -> None:
        self.target, self.store = target, Store(target.model_store)
        self._reader, self._snapshot = reader, first
        self.history, self.events, self.recent_logs = History(), Events(), RecentLogs()
        self._logs = LogReader(target.folder, self.recent_logs) if target.folder else None
        self._lost = ""
        self.on_tick: Callable[[], None] = lambda: None
        self.on_lost: Callable[[str], None] = lambda reason: None

    @classmethod
    def open(cls, target: Target) -> RemoteModels:
        """Return the models of a server, after a first reading. Blocking.

        Raises:
            TorchmarError: the server does not answer, or rejects the calls.
        """
        reader = Reader(target)
        return cls(target, reader, reader.read())

    async def run(self) -> None:
        """Read the server once a second until the task is cancelled."""
        due = time.monotonic()
        while True:
            due = max(due + _INTERVAL_S, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            try:
                now = await asyncio.to_thread(self._read)
            except TorchmarError as error:
                self._lost = error.message
                self.on_lost(error.message)
            else:
                self._add(now)
                self.on_tick()

    def read_soon(self, name: str) -> None:
        """Describe a model again at the next reading, because it has changed."""
        self._reader.forget(name)

    def _read(self) -> Snapshot:
        if self._logs:
            self._logs.read()
        snapshot = self._reader.read()
        for model in snapshot.models.values():  # archives are opened in this thread, not in the loop
            for state in model.versions:
                self.store.facts(state.model.url)
        return snapshot

    def _add(self, now: Snapshot) -> None:
        before, self._snapshot = self._snapshot, now
        if self._lost:
            self._lost = ""
            self.events.add("server_started", "the server answers again")
        for change in changes(before.models, now.models):
            self.events.add(*change)
        self.history.add(load.tick(before, now, self.history.workers))

    @property
    def snapshot(self) -> Snapshot:
        """The last reading.

        Raises:
            ApiError: 503, the server does not answer.
        """
        if self._lost:
            raise ApiError(503, "ServiceUnavailableException", self._lost)
        return self._snapshot

    @property
    def health(self) -> str:
        """As ``GET /ping``."""
        return self.snapshot.health

    @property
    def loading(self) -> bool:
        """False: the server does not report it."""
        return False

    def names(self) -> list[str]:
        """Return the names of all models."""
        return list(self.snapshot.models)

    def signatures(self) -> dict[str, object]:
        """Return a value for each model."""
        return {name: documents.signature(model) for name, model in self.snapshot.models.items()}

    def model(self, name: str) -> dict[str, Any]:
        """Return the document of a model.

        Raises:
            ApiError: 404, no model has this name.
        """
        return documents.model(name, self._found(name, self.snapshot.models), self.store)

    def url(self, name: str, version: str) -> str:
        """Return the URL of the registration of a version.

        Raises:
            ApiError: 404, there is no such version.
        """
        for state in self._found(name, self.snapshot.models).versions:
            if state.model.version == version:
                return state.model.url
        message = f"Model version: {version} does not exist for model: {name}"
        raise ApiError(404, "ModelVersionNotFoundException", message)

    @staticmethod
    def _found(name: str, models: Mapping[str, Model]) -> Model:
        if name not in models:
            raise ApiError(404, "ModelNotFoundException", f"Model not found: {name}")
        return models[name]
