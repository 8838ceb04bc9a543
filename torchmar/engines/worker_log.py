"""Failures in the log of a server's workers: number of deaths, and last traceback."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from torchmar.engines import logs
from torchmar.server.telemetry import tracebacks

_STARTS = "s_name_part0="  # the first line of every worker
_WRAPPED = "\n\nDuring handling of the above exception, another exception occurred:"


@dataclass(frozen=True)
class Failure:
    """The death of workers of a model version.

    Attributes:
        deaths: number of consecutive deaths, as far as the log reaches back.
        traceback: last traceback, as Python prints it; empty if the worker ended without output, which
            happens if the system kills it for lack of memory, or the server kills it after a timeout.
    """

    deaths: int
    traceback: str

    @property
    def reason(self) -> str:
        """The line with the exception."""
        last = self.traceback.rpartition(tracebacks.TRACEBACK)[2].splitlines()[1:]
        return next((line for line in last if line[:1].strip()), "it ended without any output")


def traceback(folder: Path, name: str, version: str) -> str:
    """Return the last traceback of a worker of a model version in the log of a run folder; empty if there is none.

    TorchServe reports Healthy while a worker crash-loops; only its log contains the reason.
    """
    return last_traceback(logs.tail(folder, logs.WORKERS), name, version)


def failures(folder: Path) -> dict[tuple[str, str], Failure]:
    """Return the failures of workers whose last completed run failed, by model and version.

    The log does not show whether the current run of such a worker will succeed; the server's
    description does (`torchmar.engines.state`).
    """
    by_version: dict[tuple[str, str], Failure] = {}
    for (name, version, _), ends in _runs(logs.tail(folder, logs.WORKERS)).items():
        # An end of None means that the last run has not ended.
        ended = ends if ends[-1] is not None else ends[:-1]
        if not ended:
            continue
        tracebacks = [end for end in ended if end]
        in_a_row = next((count for count, end in enumerate(reversed(ended)) if not end), len(ended))
        failure = Failure(max(in_a_row, 1), tracebacks[-1] if in_a_row else "")
        before = by_version.get((name, version))
        if before is None or (bool(failure.traceback), failure.deaths) > (bool(before.traceback), before.deaths):
            by_version[name, version] = failure
    return by_version


def size(folder: Path) -> int:
    """Return the size of the workers' log in a run folder; 0 if there is none."""
    file = folder / "logs" / logs.WORKERS
    return file.stat().st_size if file.exists() else 0


def traceback_since(folder: Path, name: str, version: str, offset: int = 0) -> str:
    """Return the last traceback, as `traceback` does, from the current log after its first ``offset`` bytes."""
    file = folder / "logs" / logs.WORKERS
    if not file.exists():
        return ""
    with file.open("rb") as stream:
        stream.seek(offset)
        return last_traceback(stream.read().decode("utf-8", "replace"), name, version)


def last_traceback(log: str, name: str, version: str) -> str:
    """Return the last traceback of a worker of a model version in a log, as Python prints it.

    If there is no traceback, its last lines are returned. TorchServe's loader reports any ImportError in a
    handler as a missing module of its own; in that case the original traceback is returned.
    """
    texts = [entry.text for entry in logs.parse(log.splitlines()) if entry.of(name, version)]
    traces = [text for text in texts if text.startswith(tracebacks.TRACEBACK)]
    return _original(traces[-1]) if traces else "\n".join(texts[-20:])


def _runs(log: str) -> dict[tuple[str, str, str], list[str | None]]:
    """Return the end of each run of each worker: a traceback, empty if there is none, None if the run has not ended."""
    runs: dict[tuple[str, str, str], list[str | None]] = defaultdict(list)
    dying: set[tuple[str, str, str]] = set()
    for entry in logs.parse(log.splitlines()):
        worker = (entry.model, entry.version, entry.worker)
        if not entry.worker:
            continue
        if entry.text.startswith(_STARTS):
            dying.discard(worker)
            if runs[worker] and runs[worker][-1] is None:
                runs[worker][-1] = ""
            runs[worker].append(None)
        elif entry.text.startswith(tracebacks.DIED):
            dying.add(worker)
            runs[worker] = runs[worker] or [None]
            runs[worker][-1] = ""
        elif entry.text.startswith(tracebacks.TRACEBACK) and worker in dying:
            runs[worker][-1] = _original(entry.text)
    return runs


def _original(traceback: str) -> str:
    original, _, wrapped = traceback.partition(_WRAPPED)
    return original if "No module named 'ts.torch_handler." in wrapped else traceback
