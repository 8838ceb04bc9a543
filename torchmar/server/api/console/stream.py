"""Server-sent events of the console: a snapshot when a browser connects, then the changes of each second."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torchmar.server.api import event_stream
from torchmar.server.api.console import documents
from torchmar.server.api.console.source import Source
from torchmar.server.api_error import ApiError
from torchmar.server.http import Request
from torchmar.server.telemetry.events import Events
from torchmar.server.telemetry.history import History
from torchmar.server.telemetry.recent_logs import RecentLogs

MOST = 64  # largest number of concurrent streams
_MOST_SKIPPED = 60  # ticks in a row that a browser may fail to receive; then it is disconnected, and connects again
_FIRST_LOGS = 300  # log entries in a snapshot


@dataclass(frozen=True, slots=True)
class Scope:
    """The selection of events in a stream.

    Attributes:
        model: model of the load; empty: all models.
        version: version of the model; empty: all versions.
        logs: whether log entries are sent.
    """

    model: str = ""
    version: str = ""
    logs: bool = False


class _Stream:
    __slots__ = ("check", "draining", "event", "logs", "request", "scope", "skipped")

    def __init__(self, request: Request, scope: Scope, check: Callable[[], object]) -> None:
        self.request, self.scope, self.check = request, scope, check
        self.draining: asyncio.Future[None] | None = None
        self.event = self.logs = self.skipped = 0


class Streams:
    """All streams of a server.

    Args:
        source: the models.
        history: load of the models.
        events: events of the models.
        recent_logs: entries of the log.

    Attributes:
        rollout: returns the document of the last change from the rollout page.
    """

    def __init__(self, source: Source, history: History, events: Events, recent_logs: RecentLogs) -> None:
        self._source, self._history, self._events, self._recent_logs = source, history, events, recent_logs
        self._streams: set[_Stream] = set()
        self._signatures: dict[str, object] = {}
        self.rollout: Callable[[], dict[str, Any]] = dict

    def open(
        self, request: Request, scope: Scope, check: Callable[[], object], headers: Iterable[tuple[str, str]]
    ) -> None:
        """Respond with a stream.

        Args:
            request: request of a browser.
            scope: selection of events.
            check: called every second; raises ApiError when the session has ended.
            headers: headers of the response.

        Raises:
            ApiError: 503, there are too many streams, or the server does not answer.
        """
        if len(self._streams) >= MOST:
            message = f"{MOST} pages of the console are open; close one of them."
            raise ApiError(503, "ServiceUnavailableException", message, {"Retry-After": "5"})
        if not self._streams:
            self._signatures = self._source.signatures()
        stream = _Stream(request, scope, check)
        snapshot = self._snapshot(stream)
        request.start(200, event_stream.CONTENT_TYPE, [*headers, *event_stream.HEADERS])
        if request.complete:  # a HEAD
            return
        self._streams.add(stream)
        request.on_disconnect = lambda: self._streams.discard(stream)
        request.send(b"retry: 2000\n\n")
        self._send(stream, "snapshot", snapshot)

    def on_tick(self) -> None:
        """Send the changes of the last second."""
        if not self._streams:
            return
        signatures = self._source.signatures()
        changed = [name for name, signature in signatures.items() if self._signatures.get(name) != signature]
        common = {
            "health": self._source.health,
            "loading": self._source.loading,
            "models": list(map(self._source.model, changed)),
            "removed": [name for name in self._signatures if name not in signatures],
            "loads": self._loads(),
        }
        self._signatures = signatures
        for stream in list(self._streams):
            self._update(stream, common)

    def on_lost(self, reason: str) -> None:
        """Report that the server does not answer; the next tick will be a snapshot."""
        for stream in list(self._streams):
            if self._may_receive(stream):
                stream.skipped = 1
                self._send(stream, "lost", {"message": reason})

    def send_rollout(self, document: dict[str, Any]) -> None:
        """Send a step of a rollout at once."""
        text = json.dumps(document, separators=(",", ":"))
        for stream in self._streams:
            stream.request.send(event_stream.event(text, "rollout"))

    def close(self) -> None:
        """End all streams, because the server stops."""
        for stream in list(self._streams):
            self._end(stream, "stopping", {})

    def _may_receive(self, stream: _Stream) -> bool:
        """Return whether to send an event to a stream; end it if its session has ended or its browser does not read."""
        try:
            stream.check()
        except ApiError:
            self._end(stream, "signed-out", {})
            return False
        if stream.draining and not stream.draining.done():  # the browser reads more slowly than the server sends
            stream.skipped += 1
            if stream.skipped > _MOST_SKIPPED:
                self._streams.discard(stream)
                stream.request.abort()
            return False
        return True

    def _update(self, stream: _Stream, common: dict[str, Any]) -> None:
        if not self._may_receive(stream):
            return
        if stream.skipped:
            stream.skipped = 0
            self._send(stream, "snapshot", self._snapshot(stream))
            return
        scope = stream.scope
        document = {**common, "row": self._history.row(scope.model, scope.version), **self._news(stream)}
        self._send(stream, "tick", document)

    def _snapshot(self, stream: _Stream) -> dict[str, Any]:
        stream.event = 0
        stream.logs = 0
        scope = stream.scope
        return {
            "health": self._source.health,
            "loading": self._source.loading,
            "models": list(map(self._source.model, self._source.names())),
            "history": self._history.columns(scope.model, scope.version),
            "loads": self._loads(),
            "rollout": self.rollout(),
            **self._news(stream),
        }

    def _news(self, stream: _Stream) -> dict[str, Any]:
        """Return the events since the previous call, and the log entries if the stream wants them."""
        news: dict[str, Any] = {"events": documents.events(self._events.since(stream.event))}
        stream.event = self._events.last
        if stream.scope.logs:
            entries = self._recent_logs.entries(after=stream.logs, limit=_FIRST_LOGS)
            stream.logs = self._recent_logs.changes
            news["logs"] = documents.log_entries(entries)
        return news

    def _loads(self) -> list[dict[str, Any]]:
        return [
            {
                "model": name,
                "version": version,
                **{key: load[key] for key in ("requests", "failed", "mean_ms", "p50_ms", "p99_ms")},
            }
            for (name, version), load in self._history.loads()
        ]

    def _send(self, stream: _Stream, name: str, document: dict[str, Any]) -> None:
        text = json.dumps(document, separators=(",", ":"))
        stream.request.send(event_stream.event(text, name))
        stream.draining = asyncio.ensure_future(stream.request.drain())

    def _end(self, stream: _Stream, name: str, document: dict[str, Any]) -> None:
        self._streams.discard(stream)
        stream.request.on_disconnect = None
        stream.request.send(event_stream.event(json.dumps(document), name))
        stream.request.end()
