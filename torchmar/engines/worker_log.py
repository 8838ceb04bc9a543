"""Read the log of a server's workers: what one model's worker said before it died."""

from __future__ import annotations

import re


def last_traceback(log: str, name: str, version: str) -> str:
    """Return the last traceback that a worker of a model version has logged, as Python prints it.

    Without a traceback the last lines of that worker are returned. Of an error that TorchServe's
    loader swallowed (it reports any ImportError of a handler as a missing module of its own) the
    original one is.
    """
    mine = re.compile(rf"^\S+ W-\d+-{re.escape(name)}_{re.escape(version)}-std(?:out|err) - (.*)$")
    lines = [found[1] for line in log.splitlines() if (found := mine.match(line))]
    starts = [index for index, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    if not starts:
        return "\n".join(lines[-20:])
    # A chained error has several tracebacks; they belong together after the line that announces a death.
    died = max(
        (index for index, line in enumerate(lines) if line.startswith("Backend worker process died")), default=-1
    )
    first = next((start for start in starts if start > died), starts[-1])
    text = "\n".join(lines[first:])
    original, _, wrapped = text.partition("\n\nDuring handling of the above exception, another exception occurred:")
    return original if "No module named 'ts.torch_handler." in wrapped else text
