"""The routes for the activity of a server: load, events, logs, and the stream of changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torchmar.server.api import parameters
from torchmar.server.api.console import documents, files
from torchmar.server.api.console.pages import Pages
from torchmar.server.api.console.source import Source
from torchmar.server.api.console.stream import Scope, Streams
from torchmar.server.api_error import ApiError
from torchmar.server.http import Request
from torchmar.server.request_ids import HEADER
from torchmar.server.telemetry.events import Events
from torchmar.server.telemetry.history import History
from torchmar.server.telemetry.metrics import BATCH_SIZES
from torchmar.server.telemetry.recent_logs import RecentLogs
from torchmar.server.tokens import Tokens

_MOST_LOGS = 2000


class MonitorPages(Pages):
    """A console with the routes for load, events, logs and the stream of changes.

    Args:
        source: the models.
        history: load of the models.
        events: events of the models.
        recent_logs: entries of the log.
        tokens: tokens of clients, with which browsers sign in.
        on_answer: called with the status of each response.
        options: options of `Pages`.
    """

    def __init__(
        self,
        source: Source,
        history: History,
        events: Events,
        recent_logs: RecentLogs,
        tokens: Tokens,
        on_answer: Callable[[int], None],
        **options: Any,
    ) -> None:
        super().__init__(tokens, on_answer, **options)
        self._history, self._events, self._recent_logs = history, events, recent_logs
        self._streams = Streams(source, history, events, recent_logs)

    async def close(self) -> None:
        """End the streams of all pages, and their other tasks."""
        self._streams.close()
        await super().close()

    def _monitor(self, request: Request, segments: list[str], query: Mapping[str, str]) -> None:
        """Answer a request after its check.

        Raises:
            ApiError: a parameter is wrong, or (404) the path does not exist.
        """
        match segments:
            case ["history"]:
                since = _seconds(query.get("since", ""))
                columns = self._history.columns(query.get("model", ""), query.get("version", ""), since)
                self._respond(request, {"batch_sizes": list(BATCH_SIZES), "columns": columns})
            case ["load"]:
                summaries = self._history.summaries(query.get("model", ""))
                versions = [{"model": name, "version": of, **load} for (name, of), load in summaries.items()]
                self._respond(request, {"versions": versions})
            case ["events"]:
                after = parameters.number(query, "after", 0, least=0)
                self._respond(request, {"events": documents.events(self._events.since(after))})
            case ["logs"]:
                limit = min(parameters.number(query, "limit", _MOST_LOGS, least=0), _MOST_LOGS)
                names = [query.get(key, "") for key in ("model", "version", "worker")]
                entries = self._recent_logs.entries(*names, limit=limit)
                self._respond(request, {"entries": documents.log_entries(entries)})
            case ["stream"]:
                scope = Scope(query.get("model", ""), query.get("version", ""), query.get("logs") == "true")
                headers = [*files.SECURITY_HEADERS, files.DATA_POLICY, (HEADER, next(self._ids))]
                self._streams.open(request, scope, lambda: self._access.check(request), headers)
                self._on_answer(200)
            case _:
                raise ApiError(404, "ResourceNotFoundException", "The console's API has no such path.")


def _seconds(text: str) -> float:
    try:
        return float(text) if text else 0.0
    except ValueError:
        raise ApiError(400, "BadRequestException", f"Parameter since is {text[:100]!r}, and must be a time.") from None
