"""Commands on running servers: status and logs."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from torchmar.archive.built_archive import show_size
from torchmar.cli.options import AsJson, RunFolder, in_panel
from torchmar.cli.terminal import complain, err, out, show_table, table
from torchmar.errors import TorchmarError

if TYPE_CHECKING:
    from torchmar.engines.logs import Entry
    from torchmar.engines.server_records import ServerRecord
    from torchmar.engines.state import ServerState
    from torchmar.management.models import WorkerState

_FOLLOW_SECONDS = 0.2


def status(
    run_folder: Annotated[Path | None, in_panel(RunFolder, "", "Only the server of this folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the state of all servers on this machine, or of the one of --run-folder.

    Exit code 1: there is no server, a server does not answer, or workers of a
    model die. Their traceback is shown, even if TorchServe reports Healthy.
    """
    from torchmar.connection import RUN_FOLDER
    from torchmar.engines import state
    from torchmar.engines.server_records import ServerRecord

    records = [ServerRecord.find(run_folder)] if run_folder else ServerRecord.everywhere()
    states = [state.of(record) for record in records if record]
    if as_json:
        typer.echo(json.dumps([_document(server) for server in states], indent=2))
    for number, server in enumerate(() if as_json else states):
        if number:
            out.print()
        _show(server)
    if not states:
        err.print(
            f"no server runs{f' with {run_folder}' if run_folder else ''}; torchmar serve starts one", markup=False
        )
    if killed := ServerRecord.killed(run_folder or RUN_FOLDER):
        complain(_death(killed))
    if not run_folder:
        _show_unmanaged()
    raise typer.Exit(0 if states and all(server.healthy for server in states) else 1)


def logs(
    model: Annotated[
        str | None, typer.Argument(help="Only the lines of this model's workers.", show_default=False)
    ] = None,
    version: Annotated[str | None, typer.Option(help="Only this version.", show_default=False)] = None,
    worker: Annotated[str | None, typer.Option(help="Only this worker: 9000.", show_default=False)] = None,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, help="The number of entries; a traceback is one entry.")
    ] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print new entries until Ctrl-C.")] = False,
    run_folder: RunFolder = None,
) -> None:
    """Show the logs of a server and its workers, sorted by time."""
    from torchmar.connection import RUN_FOLDER
    from torchmar.engines.logs import Follower, recent

    folder = run_folder or RUN_FOLDER
    if not (folder / "logs").is_dir():
        raise TorchmarError(
            f"{folder} has no logs", hint="torchmar serve writes them; --run-folder names another folder"
        )
    selection = (model or "", version or "", (worker or "").removeprefix("W-"))
    follower = Follower(folder) if follow else None
    entries = recent(folder, lines, *selection)
    for entry in entries:
        _print(entry)
    if not entries and lines:
        err.print(_no_lines(folder, *selection), markup=False)
    shown_entries = set(entries)
    while follower:
        for entry in follower.read():
            if entry.of(*selection) and entry not in shown_entries:
                _print(entry)
        time.sleep(_FOLLOW_SECONDS)


def complain_of_failing(folder: Path) -> None:
    """Print an error with the last traceback for every model whose workers die; nothing if the server is down."""
    from torchmar.connection import Endpoint
    from torchmar.engines import state, worker_log

    if not worker_log.failures(folder):
        return
    with contextlib.suppress(TorchmarError):
        for version in state.versions_on(Endpoint.from_run_folder(folder), folder):
            if version.failure:
                complain(state.failed(version))


def show_path(folder: Path) -> str:
    """Return a folder relative to the working directory or to the home, if it is below one of them."""
    for base, prefix in ((Path.cwd(), ""), (Path.home(), "~/")):
        if folder.is_relative_to(base):
            return f"{prefix}{folder.relative_to(base)}"
    return str(folder)


def show_time(seconds: float) -> str:
    """Return a duration in its two largest units: ``2 h 13 min``."""
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    remaining, parts = int(seconds), list[str]()
    for unit, length in units:
        count, remaining = divmod(remaining, length)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def _show(server: ServerState) -> None:
    from torchmar.engines import TITLES

    record, endpoint = server.record, server.endpoint
    health = f"[red]{escape(server.error)}[/]" if server.error else "answers"
    out.print(
        f"[bold]{escape(show_path(Path(record.folder)))}[/]: {health}, up {show_time(server.uptime)}, "
        f"{TITLES[record.engine]} (process {record.pid}), {show_size(server.memory)}"
    )
    out.print(f"  inference   {endpoint.inference}  {endpoint.grpc_inference}", markup=False)
    out.print(f"  management  {endpoint.management}  {endpoint.grpc_management}", markup=False)
    out.print(f"  metrics     {server.metrics.rstrip('/')}/metrics", markup=False)
    if server.error:
        return
    for message in server.not_loaded:
        complain(TorchmarError(message))
    if not server.versions:
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
        for version in server.versions
    ]
    headings = ("model", "version", "default", "workers", "state", "memory")
    show_table(table(headings, rows, right=("workers", "memory")))
    for node, count in _nodes(server):
        out.print(f"  on node {node}: {count} replica{'s' * (count != 1)}", markup=False)
    for version in server.versions:
        if version.error:
            complain(version.error)


def _nodes(server: ServerState) -> list[tuple[str, int]]:
    """Return the nodes of a cluster with replicas, and the number of replicas on each; none without a cluster."""
    workers = (worker for version in server.versions for worker in version.model.workers)
    return sorted(Counter(worker.node for worker in workers if worker.node).items())


def _death(killed: ServerRecord) -> TorchmarError:
    from torchmar.engines.server_records import option

    folder_option = option(Path(killed.folder))
    return TorchmarError(
        f"the server of {show_path(Path(killed.folder))} (process {killed.pid}) ended without being stopped",
        hint=f"torchmar logs{folder_option} shows its last output, torchmar stop{folder_option} removes its files",
    )


def _show_unmanaged() -> None:
    from torchmar.engines.server_records import unmanaged_servers

    for server in unmanaged_servers():
        remedy = f"; kill {server.pid} ends it" if server.gone else ""
        err.print(f"process {server.pid} is {server.what}{remedy}", markup=False)


def _document(server: ServerState) -> dict[str, object]:
    from dataclasses import asdict

    loads, events = _load_and_events(server)
    return {
        "run_folder": server.record.folder,
        "engine": server.record.engine,
        "pid": server.record.pid,
        "uptime": round(server.uptime, 1),
        "memory": server.memory,
        "healthy": server.healthy,
        "error": server.error,
        "not_loaded": list(server.not_loaded),
        "inference": server.endpoint.inference,
        "management": server.endpoint.management,
        "metrics": server.metrics,
        "grpc_inference": server.endpoint.grpc_inference,
        "grpc_management": server.endpoint.grpc_management,
        "models": [
            {
                "name": version.model.name,
                "version": version.model.version,
                "default": version.default,
                "min_workers": version.model.min_workers,
                "ready": version.model.ready,
                "workers": list(map(_worker_document, version.model.workers)),
                "stages": {
                    name: list(map(_worker_document, workers)) for name, workers in version.model.stages.items()
                },
                "pending_requests": version.model.job_queue.pending_requests,
                "state": version.state,
                "memory": version.memory,
                "failure": asdict(version.failure) if version.failure else None,
                "reason": version.reason or None,
                "load": loads.get((version.model.name, version.model.version)),
            }
            for version in server.versions
        ],
        "events": events,
    }


def _load_and_events(
    server: ServerState,
) -> tuple[dict[tuple[str, str], dict[str, object]], list[dict[str, object]] | None]:
    """Return the load of the last ten minutes by version, and the latest events; None: the server reports neither."""
    from torchmar.management import ManagementClient

    if server.record.engine != "torchserve" and not server.error:
        with contextlib.suppress(TorchmarError), ManagementClient(server.endpoint) as client:
            return client.load(), client.events()
    return {}, None


def _worker_document(worker: WorkerState) -> dict[str, object]:
    node = {"node": worker.node, "device": worker.device} if worker.node else {}
    return {"id": worker.id, "status": worker.status, "pid": worker.pid, **node}


def _no_lines(folder: Path, model: str, version: str, worker: str) -> str:
    """Return a message for a selection without entries; it names the models that have entries."""
    from torchmar.engines.logs import models

    selection = " ".join(filter(None, (model, version, worker)))
    if not selection:
        return f"no lines in {folder / 'logs'}"
    names = ", ".join(f"{name} {number}" for name, number in models(folder))
    return f"no lines of {selection} in {folder / 'logs'}; there are lines of {names or 'no model'}"


def _print(entry: Entry) -> None:
    source = f"{entry.model} {entry.version} {entry.worker}" if entry.worker else "server"
    time_of_day = entry.time.replace("T", " ")
    level = f"{entry.level} " if entry.level else ""
    first, *rest = entry.text.split("\n")
    colour = "red" if rest or entry.level == "ERROR" else "default"
    out.print(f"[dim]{time_of_day}[/] [cyan]{escape(source)}[/] [{colour}]{escape(level + first)}[/]")
    for line in rest:
        out.print(f"[red]{escape(line)}[/]")
