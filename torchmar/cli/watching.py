"""The command that shows the current load of a server."""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from torchmar.cli.options import RunFolder
from torchmar.cli.terminal import out, show_table, table
from torchmar.errors import TorchmarError

if TYPE_CHECKING:
    from rich.table import Table

    from torchmar.engines.state import VersionState
    from torchmar.metrics import Load, Reading

_HEADINGS = ("model", "version", "ready", "queue", "req/s", "mean", "wait", "p50", "p99")
_NARROW = ("wait", "p50", "p99", "queue", "mean")  # what goes first where a terminal has no room for all
_GAP = 3
_SHORTEST = 8  # of a model's name
_TALL = 20  # lines of a terminal that has room for the legend
_LEGEND = """\
mean, wait: ms of a request since the last look: in all, for a worker
p50, p99: ms of a batch in the handler, if it measures HandlerSeconds"""


@dataclass(frozen=True)
class _Look:
    versions: list[VersionState]
    reading: Reading


@dataclass(frozen=True)
class _Facts:
    loads: list[tuple[VersionState, Load]]
    failed: float  # answers with 4xx and 5xx a second, of the whole server


def top(
    interval: Annotated[float, typer.Option("--interval", "-i", min=0.2, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look twice, print one table and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Like --once, as JSON.")] = False,
    run_folder: RunFolder = None,
) -> None:
    """Show models, workers, queues, requests a second and latency, until q or Ctrl-C.

    mean and wait are means of the requests since the last look: TorchServe
    measures no more of them. Percentiles are of what a handler takes for a
    batch, and blank unless it measures a histogram called HandlerSeconds.
    """
    from torchmar.connection import RUN_FOLDER

    folder = run_folder or RUN_FOLDER
    if not once and not as_json and sys.stdout.isatty():
        with contextlib.suppress(KeyboardInterrupt), _keys() as quits:
            _live(folder, interval, quits)
        return
    before = _look(folder)
    time.sleep(interval)
    facts = _facts(before, _look(folder))
    if as_json:
        typer.echo(json.dumps(_document(facts), indent=2))
        return
    show_table(_table(facts))
    out.print(f"\n{_summary(facts)}\n{_LEGEND}")


def _live(folder: Path, interval: float, quits: Callable[[float], bool]) -> None:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    before: _Look | None = None
    console = Console(highlight=False)
    # The alternate screen: what was on the terminal is there again when it ends, however it ends.
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            head = Text(f"{folder}  {time.strftime('%H:%M:%S')}  every {interval:g} s, q ends", style="bold")
            try:
                now = _look(folder)
                facts = _facts(before or now, now)
                legend = f"\n{_LEGEND}" if console.height >= _TALL else ""
                foot = Text(f"{_summary(facts)}{legend}", style="dim")
                taken = sum(len(text.wrap(console, console.width)) for text in (head, foot)) + len(
                    ("", "headings", "rule", "")
                )
                shown = _table(facts, console.width, console.height - taken)
                live.update(Group(head, "", shown, "", foot), refresh=True)
                before = now
            except TorchmarError as error:
                # A server that is started again is there the next time.
                live.update(Group(head, "", Text(f"{error.message}; looking again", style="red")), refresh=True)
                before = None
            if quits(interval):
                return


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """Give a function that waits some seconds for a q on the terminal, where keys leave no trace meanwhile."""
    if not sys.stdin.isatty():
        yield _sleep
        return
    import termios
    import tty

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)

    def quits(seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([terminal], [], [], left)[0] and os.read(terminal, 1) in (b"q", b"Q", b""):
                return True
        return False

    try:
        tty.setcbreak(terminal)
        yield quits
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _look(folder: Path) -> _Look:
    from torchmar import metrics, properties
    from torchmar.connection import Endpoint
    from torchmar.engines.server_records import ServerRecord
    from torchmar.engines.state import versions_on

    if ServerRecord.find(folder) is None:
        raise TorchmarError(f"no server runs with {folder}", hint="torchmar serve; --run-folder names another")
    server = Endpoint.from_run_folder(folder)
    config = properties.read(folder / "config.properties")
    if (mode := config.get("metrics_mode")) != "prometheus":
        raise TorchmarError(
            f"the server of {folder} counts nothing that could be asked for: metrics_mode={mode}",
            hint="metrics_mode=prometheus in config.properties, or without it, for torchmar serve sets it",
        )
    return _Look(versions_on(server, folder), metrics.read(config.url("metrics_address"), server))


def _facts(before: _Look, now: _Look) -> _Facts:
    from torchmar import metrics

    readings = (before.reading, now.reading)
    loads = [
        (one, metrics.load(*readings, one.model.name, one.model.version, default=one.default)) for one in now.versions
    ]
    return _Facts(loads, sum(metrics.rate(*readings, name) for name in ("Requests4XX", "Requests5XX")))


def _table(facts: _Facts, width: int | None = None, height: int | None = None) -> Table:
    """Return the load as a table that fits; the busiest versions are shown where there is no room for all."""
    loads = facts.loads
    if height is not None and len(loads) > max(height, 2):
        busiest = sorted(loads, key=lambda one: (not one[0].failure, -one[1].requests, not one[0].default))
        chosen = {id(one) for one in busiest[: max(height, 2) - 1]}
        loads = [one for one in loads if id(one) in chosen]
    rows = [
        (
            one.model.name,
            one.model.version + ("*" if one.default else ""),
            f"{one.model.ready}/{one.model.min_workers}",
            str(one.model.job_queue.pending_requests),
            f"{load.requests:.1f}",
            *("" if value is None else f"{value:.1f}" for value in (load.latency, load.queue, load.p50, load.p99)),
        )
        for one, load in loads
    ]
    if left := len(facts.loads) - len(loads):
        rows.append((f"{left} more", *[""] * (len(_HEADINGS) - 1)))
    headings = list(_HEADINGS)
    if width is not None:
        rows, headings = _fitted(rows, headings, width)
    return table(headings, rows, right=_HEADINGS[2:])


def _fitted(rows: list[tuple[str, ...]], headings: list[str], width: int) -> tuple[list[tuple[str, ...]], list[str]]:
    """Return a table without the columns that there is no room for; a name that is too long loses its middle."""
    widths = [max(len(row[number]) for row in [*rows, tuple(headings)]) for number in range(len(headings))]
    kept = list(range(len(headings)))

    def room() -> int:
        return width - sum(widths[number] + _GAP for number in kept[1:])

    for heading in _NARROW:
        if room() < min(widths[0], _SHORTEST):
            kept.remove(headings.index(heading))
    names = [_shortened(row[0], max(room(), _SHORTEST)) for row in rows]
    fitted = [(name, *(row[number] for number in kept[1:])) for name, row in zip(names, rows, strict=True)]
    return fitted, [headings[number] for number in kept]


def _shortened(name: str, width: int) -> str:
    if len(name) <= width:
        return name
    half = (width - 1) // 2
    return f"{name[: width - 1 - half]}…{name[len(name) - half :]}"


def _summary(facts: _Facts) -> str:
    failing = [
        f"{one.model.name} {one.model.version} {one.state.replace('_', ' ')}" for one, _ in facts.loads if one.failure
    ]
    return "; ".join([f"{facts.failed:.1f} requests/s failed", *failing, "* is the default version"])


def _document(facts: _Facts) -> dict[str, object]:
    models = [
        {
            "name": one.model.name,
            "version": one.model.version,
            "default": one.default,
            "ready": one.model.ready,
            "min_workers": one.model.min_workers,
            "pending_requests": one.model.job_queue.pending_requests,
            "requests_per_second": _rounded(load.requests),
            "mean_ms": _rounded(load.latency),
            "mean_wait_ms": _rounded(load.queue),
            "handler_p50_ms": _rounded(load.p50),
            "handler_p99_ms": _rounded(load.p99),
        }
        for one, load in facts.loads
    ]
    return {"failed_per_second": _rounded(facts.failed), "models": models}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
