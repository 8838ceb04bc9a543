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
_OPTIONAL = ("wait", "p50", "p99", "queue", "mean")  # omitted in this order if the terminal is too narrow
_GAP = 3
_SHORTEST = 8  # characters of a model's name
_TALL = 20  # lines of a terminal that also has room for the legend
_LEGEND = """\
mean, wait: mean ms of a request since the last reading: in total, in the queue
p50, p99: ms of a batch in the handler, if it measures HandlerSeconds"""


@dataclass(frozen=True)
class _Snapshot:
    versions: list[VersionState]
    reading: Reading


@dataclass(frozen=True)
class _LoadReport:
    loads: list[tuple[VersionState, Load]]
    failed: float  # responses with 4xx and 5xx a second, of the whole server


def top(
    interval: Annotated[float, typer.Option("--interval", "-i", min=0.2, help="Seconds between two readings.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print one table after two readings, and exit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Like --once, as JSON.")] = False,
    run_folder: RunFolder = None,
) -> None:
    """Show workers, queues, request rates and latency of all models, until q or Ctrl-C.

    mean and wait are means over the requests since the last reading; TorchServe
    measures nothing else. Percentiles are of the time of a handler for a batch;
    they are blank unless it measures a histogram named HandlerSeconds.
    """
    from torchmar.connection import RUN_FOLDER

    folder = run_folder or RUN_FOLDER
    if not once and not as_json and sys.stdout.isatty():
        with contextlib.suppress(KeyboardInterrupt), _keys() as quits:
            _live(folder, interval, quits)
        return
    before = _take_snapshot(folder)
    time.sleep(interval)
    report = _compare(before, _take_snapshot(folder))
    if as_json:
        typer.echo(json.dumps(_document(report), indent=2))
        return
    show_table(_table(report))
    out.print(f"\n{_summary(report)}\n{_LEGEND}")


def _live(folder: Path, interval: float, quits: Callable[[float], bool]) -> None:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    before: _Snapshot | None = None
    console = Console(highlight=False)
    # The alternate screen: its end restores the previous content of the terminal.
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            head = Text(f"{folder}  {time.strftime('%H:%M:%S')}  every {interval:g} s, q ends", style="bold")
            try:
                now = _take_snapshot(folder)
                report = _compare(before or now, now)
                legend = f"\n{_LEGEND}" if console.height >= _TALL else ""
                foot = Text(f"{_summary(report)}{legend}", style="dim")
                lines = sum(len(text.wrap(console, console.width)) for text in (head, foot))
                lines += len(("", "headings", "rule", ""))
                body = _table(report, console.width, console.height - lines)
                live.update(Group(head, "", body, "", foot), refresh=True)
                before = now
            except TorchmarError as error:
                # The server may be started again.
                live.update(Group(head, "", Text(f"{error.message}; trying again", style="red")), refresh=True)
                before = None
            if quits(interval):
                return


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """Yield a function that waits some seconds and returns whether q was typed; typed keys are not shown."""
    if not sys.stdin.isatty():
        yield _sleep
        return
    import termios
    import tty

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)

    def quits(seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while (remaining := deadline - time.monotonic()) > 0:
            if select.select([terminal], [], [], remaining)[0] and os.read(terminal, 1) in (b"q", b"Q", b""):
                return True
        return False

    try:
        tty.setcbreak(terminal)
        yield quits
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _take_snapshot(folder: Path) -> _Snapshot:
    from torchmar import metrics, properties
    from torchmar.connection import Endpoint
    from torchmar.engines.server_records import ServerRecord
    from torchmar.engines.state import versions_on

    if ServerRecord.find(folder) is None:
        raise TorchmarError(
            f"no server runs with {folder}", hint="torchmar serve starts one; --run-folder names another folder"
        )
    server = Endpoint.from_run_folder(folder)
    config = properties.read(folder / "config.properties")
    if (mode := config.get("metrics_mode")) != "prometheus":
        raise TorchmarError(
            f"the server of {folder} has no metrics API: metrics_mode={mode}",
            hint="set metrics_mode=prometheus in config.properties, or remove the key: torchmar serve sets it",
        )
    return _Snapshot(versions_on(server, folder), metrics.read(config.url("metrics_address"), server))


def _compare(before: _Snapshot, now: _Snapshot) -> _LoadReport:
    from torchmar import metrics

    readings = (before.reading, now.reading)
    loads = [
        (version, metrics.load(*readings, version.model.name, version.model.version, default=version.default))
        for version in now.versions
    ]
    return _LoadReport(loads, sum(metrics.rate(*readings, name) for name in ("Requests4XX", "Requests5XX")))


def _table(report: _LoadReport, width: int | None = None, height: int | None = None) -> Table:
    """Return the load as a table that fits; if there are too many versions, only the busiest."""
    loads = report.loads
    if height is not None and len(loads) > max(height, 2):
        busiest = sorted(loads, key=lambda row: (not row[0].failure, -row[1].requests, not row[0].default))
        row_ids = {id(row) for row in busiest[: max(height, 2) - 1]}
        loads = [row for row in loads if id(row) in row_ids]
    rows = [
        (
            version.model.name,
            version.model.version + ("*" if version.default else ""),
            f"{version.model.ready}/{version.model.min_workers}",
            str(version.model.job_queue.pending_requests),
            f"{load.requests:.1f}",
            *("" if value is None else f"{value:.1f}" for value in (load.latency, load.queue, load.p50, load.p99)),
        )
        for version, load in loads
    ]
    if hidden := len(report.loads) - len(loads):
        rows.append((f"{hidden} more", *[""] * (len(_HEADINGS) - 1)))
    headings = list(_HEADINGS)
    if width is not None:
        rows, headings = _fit(rows, headings, width)
    return table(headings, rows, right=_HEADINGS[2:])


def _fit(rows: list[tuple[str, ...]], headings: list[str], width: int) -> tuple[list[tuple[str, ...]], list[str]]:
    """Return a table without the columns that do not fit; a name that is too long loses its middle."""
    widths = [max(len(row[number]) for row in [*rows, tuple(headings)]) for number in range(len(headings))]
    columns = list(range(len(headings)))

    def room() -> int:
        return width - sum(widths[number] + _GAP for number in columns[1:])

    for heading in _OPTIONAL:
        if room() < min(widths[0], _SHORTEST):
            columns.remove(headings.index(heading))
    names = [_shorten(row[0], max(room(), _SHORTEST)) for row in rows]
    fitted = [(name, *(row[number] for number in columns[1:])) for name, row in zip(names, rows, strict=True)]
    return fitted, [headings[number] for number in columns]


def _shorten(name: str, width: int) -> str:
    if len(name) <= width:
        return name
    half = (width - 1) // 2
    return f"{name[: width - 1 - half]}…{name[len(name) - half :]}"


def _summary(report: _LoadReport) -> str:
    failing = [
        f"{version.model.name} {version.model.version} {version.state.replace('_', ' ')}"
        for version, _ in report.loads
        if version.failure
    ]
    return "; ".join([f"{report.failed:.1f} requests/s failed", *failing, "* is the default version"])


def _document(report: _LoadReport) -> dict[str, object]:
    models = [
        {
            "name": version.model.name,
            "version": version.model.version,
            "default": version.default,
            "ready": version.model.ready,
            "min_workers": version.model.min_workers,
            "pending_requests": version.model.job_queue.pending_requests,
            "requests_per_second": _round(load.requests),
            "mean_ms": _round(load.latency),
            "mean_wait_ms": _round(load.queue),
            "handler_p50_ms": _round(load.p50),
            "handler_p99_ms": _round(load.p99),
        }
        for version, load in report.loads
    ]
    return {"failed_per_second": _round(report.failed), "models": models}


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
