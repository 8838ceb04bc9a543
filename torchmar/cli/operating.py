"""Commands on running servers: status and logs."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from torchmar.archive.built_archive import show_size
from torchmar.cli.options import AsJson, RunFolder
from torchmar.cli.terminal import complain, err, out, show_table, table
from torchmar.errors import TorchmarError

if TYPE_CHECKING:
    from torchmar.engines.logs import Entry
    from torchmar.engines.server_records import ServerRecord
    from torchmar.engines.state import ServerState

_FOLLOW_SECONDS = 0.2


def status(
    run_folder: Annotated[
        Path | None,
        typer.Option(
            help="Only the server that runs with this folder.",
            envvar="TORCHMAR_RUN_FOLDER",
            show_default=False,
            show_envvar=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the state of the servers on this machine, or only the one of --run-folder.

    Exits with 1 if none runs, one does not answer, or the workers of a model
    die; these are shown with their traceback, though TorchServe is Healthy.
    """
    from torchmar.connection import RUN_FOLDER
    from torchmar.engines import state
    from torchmar.engines.server_records import ServerRecord

    named = [ServerRecord.find(run_folder)] if run_folder else ServerRecord.everywhere()
    states = [state.look(running) for running in named if running]
    if as_json:
        typer.echo(json.dumps([_document(one) for one in states], indent=2))
    for number, one in enumerate(() if as_json else states):
        if number:
            out.print()
        _show(one)
    if not states:
        err.print(
            f"no server runs{f' with {run_folder}' if run_folder else ''}; torchmar serve starts one", markup=False
        )
    if killed := ServerRecord.killed(run_folder or RUN_FOLDER):
        complain(_death(killed))
    if not run_folder:
        _tell_of_others()
    raise typer.Exit(0 if states and all(one.healthy for one in states) else 1)


def logs(
    model: Annotated[
        str | None, typer.Argument(help="Only the lines of this model's workers.", show_default=False)
    ] = None,
    version: Annotated[str | None, typer.Option(help="Only this version.", show_default=False)] = None,
    worker: Annotated[str | None, typer.Option(help="Only this worker: 9000.", show_default=False)] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many; a traceback is one.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    run_folder: RunFolder = None,
) -> None:
    """Show the logs of a server and its workers in order of time, tracebacks whole."""
    from torchmar.connection import RUN_FOLDER
    from torchmar.engines.logs import Follower, recent

    folder = run_folder or RUN_FOLDER
    if not (folder / "logs").is_dir():
        raise TorchmarError(f"{folder} has no logs", hint="torchmar serve writes them; --run-folder names another")
    wanted = (model or "", version or "", (worker or "").removeprefix("W-"))
    follower = Follower(folder) if follow else None
    entries = recent(folder, lines, *wanted)
    for entry in entries:
        _print(entry)
    if not entries and lines:
        err.print(_silence(folder, *wanted), markup=False)
    shown = set(entries)
    while follower:
        for entry in follower.read():
            if entry.of(*wanted) and entry not in shown:
                _print(entry)
        time.sleep(_FOLLOW_SECONDS)


def complain_of_failing(folder: Path) -> None:
    """Tell of every model of a run folder's server whose workers die, with the last traceback.

    A server that cannot be asked is no matter of this.
    """
    from torchmar.connection import Endpoint
    from torchmar.engines import state, worker_log

    if not worker_log.failures(folder):
        return
    with contextlib.suppress(TorchmarError):
        for version in state.versions_on(Endpoint.from_run_folder(folder), folder):
            if version.failure:
                complain(state.failed(version))


def show_path(folder: Path) -> str:
    """Return a folder as short as it can be: relative to the working directory, or to the home."""
    for base, prefix in ((Path.cwd(), ""), (Path.home(), "~/")):
        if folder.is_relative_to(base):
            return f"{prefix}{folder.relative_to(base)}"
    return str(folder)


def show_time(seconds: float) -> str:
    """Return a duration in its two largest units: ``2 h 13 min``."""
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    left, parts = int(seconds), list[str]()
    for unit, length in units:
        count, left = divmod(left, length)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def _show(one: ServerState) -> None:
    from torchmar.engines import TITLES

    running = one.running
    health = f"[red]{escape(one.error)}[/]" if one.error else "answers"
    out.print(
        f"[bold]{escape(show_path(Path(running.folder)))}[/]: {health}, up {show_time(one.uptime)}, "
        f"{TITLES[running.engine]} (process {running.pid}), {show_size(one.memory)}"
    )
    out.print(f"  inference   {one.server.inference}  {one.server.grpc_inference}", markup=False)
    out.print(f"  management  {one.server.management}  {one.server.grpc_management}", markup=False)
    out.print(f"  metrics     {one.metrics.rstrip('/')}/metrics", markup=False)
    if one.error:
        return
    for message in one.not_loaded:
        complain(TorchmarError(message))
    if not one.versions:
        out.print("  no model is registered; torchmar register ARCHIVE adds one")
        return
    out.print()
    rows = [
        (
            version.model.name,
            version.model.version,
            "yes" if version.default else "",
            f"{version.model.ready}/{version.model.min_workers}",
            version.state.replace("_", " "),
            show_size(version.memory),
        )
        for version in one.versions
    ]
    headings = ("model", "version", "default", "workers", "state", "memory")
    show_table(table(headings, rows, right=("workers", "memory")))
    for version in one.versions:
        if version.error:
            complain(version.error)


def _death(killed: ServerRecord) -> TorchmarError:
    from torchmar.engines.server_records import option

    where = option(Path(killed.folder))
    return TorchmarError(
        f"the server of {show_path(Path(killed.folder))} (process {killed.pid}) ended without being stopped",
        hint=f"torchmar logs{where} shows its last words, torchmar stop{where} clears up after it",
    )


def _tell_of_others() -> None:
    from torchmar.engines.server_records import unmanaged_servers

    for one in unmanaged_servers():
        ends = f"; kill {one.pid} ends it" if one.gone else ""
        err.print(f"process {one.pid} is {one.what}{ends}", markup=False)


def _document(one: ServerState) -> dict[str, object]:
    from dataclasses import asdict

    return {
        "run_folder": one.running.folder,
        "engine": one.running.engine,
        "pid": one.running.pid,
        "uptime": round(one.uptime, 1),
        "memory": one.memory,
        "healthy": one.healthy,
        "error": one.error,
        "not_loaded": list(one.not_loaded),
        "inference": one.server.inference,
        "management": one.server.management,
        "metrics": one.metrics,
        "grpc_inference": one.server.grpc_inference,
        "grpc_management": one.server.grpc_management,
        "models": [
            {
                "name": version.model.name,
                "version": version.model.version,
                "default": version.default,
                "min_workers": version.model.min_workers,
                "ready": version.model.ready,
                "workers": [
                    {"id": worker.id, "status": worker.status, "pid": worker.pid} for worker in version.model.workers
                ],
                "pending_requests": version.model.job_queue.pending_requests,
                "state": version.state,
                "memory": version.memory,
                "failure": asdict(version.failure) if version.failure else None,
            }
            for version in one.versions
        ],
    }


def _silence(folder: Path, model: str, version: str, worker: str) -> str:
    """Describe an empty log, with the models that it has lines of."""
    from torchmar.engines.logs import speakers

    asked = " ".join(filter(None, (model, version, worker)))
    if not asked:
        return f"no lines in {folder / 'logs'}"
    heard = ", ".join(f"{name} {number}" for name, number in speakers(folder))
    return f"no lines of {asked} in {folder / 'logs'}; there are lines of {heard or 'no model'}"


def _print(entry: Entry) -> None:
    who = f"{entry.model} {entry.version} {entry.worker}" if entry.worker else "server"
    moment = entry.time.replace("T", " ")
    level = f"{entry.level} " if entry.level else ""
    first, *rest = entry.text.split("\n")
    colour = "red" if rest or entry.level == "ERROR" else "default"
    out.print(f"[dim]{moment}[/] [cyan]{escape(who)}[/] [{colour}]{escape(level + first)}[/]")
    for line in rest:
        out.print(f"[red]{escape(line)}[/]")
