"""Read the log of a server's workers: the last output of a model's worker before it died."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from torchmar.engines import logs

_STARTS = "s_name_part0="  # the first line of every worker
_WRAPPED = "\n\nDuring handling of the above exception, another exception occurred:"


@dataclass(frozen=True)
class Failure:
    """How the worker of a model version dies.

    Attributes:
        deaths: how often in a row, as far back as the log goes.
        traceback: the last one, as Python prints it; empty where the worker ended without a word, as it does
            when the system kills it for its memory, or the server for its silence.
    """

    deaths: int
    traceback: str

    @property
    def reason(self) -> str:
        """The line that names the exception."""
        last = self.traceback.rpartition(logs.TRACEBACK)[2].splitlines()[1:]
        return next((line for line in last if line[:1].strip()), "it ended without a word")


def traceback(folder: Path, name: str, version: str) -> str:
    """Return the last traceback that a worker of a model version logged at the server of a run folder; empty if none.

    TorchServe says Healthy while a worker crash-loops; the reason is only here.
    """
    return last_traceback(logs.tail(folder, logs.WORKERS), name, version)


def failures(folder: Path) -> dict[tuple[str, str], Failure]:
    """Return the workers that died when they were last started, by model and version.

    A worker that came up again since is not told from one that is about to die again: ask the
    server whether it is ready (`torchmar.engines.state`).
    """
    found: dict[tuple[str, str], Failure] = {}
    for (name, version, _), ends in _lives(logs.tail(folder, logs.WORKERS)).items():
        # The last life goes on, or ends with what follows.
        ended = ends if ends[-1] is not None else ends[:-1]
        if not ended:
            continue
        message = [end for end in ended if end]
        in_a_row = next((count for count, end in enumerate(reversed(ended)) if not end), len(ended))
        failure = Failure(max(in_a_row, 1), message[-1] if in_a_row else "")
        before = found.get((name, version))
        if before is None or (bool(failure.traceback), failure.deaths) > (bool(before.traceback), before.deaths):
            found[name, version] = failure
    return found


def last_traceback(log: str, name: str, version: str) -> str:
    """Return the last traceback that a worker of a model version has logged, as Python prints it.

    Without a traceback the last lines of that worker are returned. Of an error that TorchServe's
    loader swallowed (it reports any ImportError of a handler as a missing module of its own) the
    original one is.
    """
    document = [entry.text for entry in logs.parse(log.splitlines()) if entry.of(name, version)]
    traces = [text for text in document if text.startswith(logs.TRACEBACK)]
    return _original(traces[-1]) if traces else "\n".join(document[-20:])


def _lives(log: str) -> dict[tuple[str, str, str], list[str | None]]:
    """Return how each life of each worker ended: a traceback, empty without a word, None if it has not."""
    lives: dict[tuple[str, str, str], list[str | None]] = defaultdict(list)
    dying: set[tuple[str, str, str]] = set()
    for entry in logs.parse(log.splitlines()):
        worker = (entry.model, entry.version, entry.worker)
        if not entry.worker:
            continue
        if entry.text.startswith(_STARTS):
            dying.discard(worker)
            if lives[worker] and lives[worker][-1] is None:
                lives[worker][-1] = ""
            lives[worker].append(None)
        elif entry.text.startswith(logs.DIED):
            dying.add(worker)
            lives[worker] = lives[worker] or [None]
            lives[worker][-1] = ""
        elif entry.text.startswith(logs.TRACEBACK) and worker in dying:
            lives[worker][-1] = _original(entry.text)
    return lives


def _original(traceback: str) -> str:
    original, _, wrapped = traceback.partition(_WRAPPED)
    return original if "No module named 'ts.torch_handler." in wrapped else traceback
