"""The times of a model's requests in an access log: of TorchServe, of the built-in server, of nginx or Apache."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from urllib.parse import unquote

from torchmar.errors import TorchmarError

# 2026-11-29T12:00:00,123 - /127.0.0.1:40000 "POST /predictions/digits HTTP/1.1" 200 12
_TORCHSERVE = re.compile(
    r'^(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d)[,.](\d{3}) .*?"[A-Z]+ ([^ "]+) HTTP/[\d.]+" \d{3} ([\d.]+)'
)
# 127.0.0.1 - - [29/Nov/2026:12:00:00 +0000] "POST /predictions/digits HTTP/1.1" 200 15
_COMMON = re.compile(r'\[(\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4})\] "[A-Z]+ ([^ "]+) HTTP/[\d.]+"')
_MODEL = re.compile(
    r"^(?:/.*)?(?:/(?:predictions|explanations)/([^/?]+)|/v1/models/([^/:?]+)(?:/versions/[^/:?]+)?:\w+"
    r"|/v2/models/([^/?]+)(?:/versions/[^/?]+)?/(?:infer|explain))"
)


def times(path: Path, model: str) -> tuple[float, ...]:
    """Return the start times of the requests for a model, in seconds since 1970, in ascending order.

    TorchServe and the built-in server write the time of the answer and its duration; the start is the difference.
    Logs of nginx and Apache have whole seconds: the requests of one second are distributed evenly over it.

    Args:
        path: the log.
        model: name of the model; requests for other models are ignored. All protocols over HTTP count.

    Raises:
        TorchmarError: the file cannot be read, or has no such request.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise TorchmarError(f"{path} cannot be read: {error.strerror}") from None
    begins, seconds = _parse(text.splitlines(), model)
    for second, count in seconds.items():
        begins += [second + (number + 0.5) / count for number in range(count)]
    if not begins:
        raise TorchmarError(
            f"{path} has no request for {model}",
            hint="access logs of TorchServe, the built-in server (logs/access_log.log), nginx and Apache are known",
        )
    return tuple(sorted(begins))


def _parse(lines: Iterable[str], model: str) -> tuple[list[float], dict[float, int]]:
    """Return the exact start times, and the number of requests in each whole second."""
    begins: list[float] = []
    seconds: dict[float, int] = {}
    for line in lines:
        if match := _TORCHSERVE.match(line):
            day, milliseconds, path, took = match.groups()
            if _model(path) == model:
                end = datetime.fromisoformat(day.replace(" ", "T")).timestamp() + int(milliseconds) / 1000
                begins.append(end - float(took) / 1000)
        elif match := _COMMON.search(line):
            if _model(match[2]) == model:
                second = datetime.strptime(match[1], "%d/%b/%Y:%H:%M:%S %z").timestamp()
                seconds[second] = seconds.get(second, 0) + 1
        elif line.startswith("{"):
            try:
                entry = json.loads(line)
                begin = datetime.fromisoformat(entry["time"]).timestamp() - entry["milliseconds"] / 1000
                if _model(entry["path"]) == model:
                    begins.append(begin)
            except (ValueError, LookupError, TypeError):
                continue
    return begins, seconds


def _model(path: str) -> str | None:
    match = _MODEL.match(path)
    return unquote(next(name for name in match.groups() if name)) if match else None
