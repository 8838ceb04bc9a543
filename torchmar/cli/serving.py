"""The commands that start and stop a server."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from torchmar.cli.options import Check, Config, Engine, Head, Ignore, ModelStore, Platform, Port, ServerFolder
from torchmar.cli.terminal import complain, err
from torchmar.cli.terminal import lasting_out as out
from torchmar.engines import DEFAULT, TITLES
from torchmar.errors import EngineError, ModelFailedError, TorchmarError

if TYPE_CHECKING:
    from torchmar.cli.start_plan import StartPlan
    from torchmar.engines.engine import Engine as Server
    from torchmar.server.models.startup_report import StartupReport

PANEL = "Servers"


def serve(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="Models to load; default: those of load_models, or else every archive in the model store.",
        ),
    ] = None,
    config: Config = None,
    model_store: ModelStore = None,
    run_folder: ServerFolder = Path(".torchmar"),
    port: Port = None,
    host: Annotated[
        str | None,
        typer.Option(
            help="The inference API's host, for containers; management stays on loopback.", show_default=False
        ),
    ] = None,
    metrics_host: Annotated[
        str | None,
        typer.Option(help="The metrics API's host; this API needs no token.", show_default=False),
    ] = None,
    check: Check = True,
    ignore: Ignore = None,
    engine: Engine = DEFAULT,
    platform: Platform = None,
    head: Head = None,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", help="Serve the newest version of each model; new archives are served when they appear."
        ),
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start from the model store, and not with the models of the last run.")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Run in the background; torchmar stop ends the server.")
    ] = False,
) -> None:
    """Start a server for the archives of a model store; Ctrl-C stops it.

    The built-in server restores the models, versions, defaults and workers of
    the last run with this run folder, also after a crash, and loads archives that
    are new in the model store. Names of models or --fresh start without them.

    If a model does not start, or its workers die later, its worker's traceback
    is printed; the other models are served. A second server needs its own run
    folder and ports: --run-folder .torchmar-b --port 9080.
    """
    from torchmar import engines, platforms, properties
    from torchmar.checks.admission import EVERYTHING
    from torchmar.cli import start_plan, startup_output
    from torchmar.engines.notify import notify

    if platform:
        from torchmar.cli.hosting import serve_on

        if names or port or host or metrics_host or watch or fresh or detach or engine != "builtin":
            raise typer.BadParameter(
                "the platform decides on models and addresses, and the built-in server runs in the foreground: only "
                "--config, --model-store, --run-folder and the checks can be given besides",
                param_hint="--platform",
            )
        serve_on(platform, config, model_store, run_folder, check=check, ignore=ignore or ())
    if mark := platforms.marked(os.environ):
        err.print(f"{mark[0]} is set, and has no effect without --platform {mark[1]}", markup=False)
    if head and engine != "ray":
        raise typer.BadParameter("only --engine ray has a cluster", param_hint="--address")
    configuration = properties.read_or_default(config)
    folder = model_store or Path(configuration.get("model_store") or "model_store")
    plan = start_plan.plan(names or (), configuration, folder, run_folder, engine, fresh=fresh, watch=watch)
    ignored = (ignore or []) if check else list(EVERYTHING)
    _announce(plan, ignored)
    overrides = {**plan.overrides, **_overrides(check=check, ignore=ignore or (), head=head)}
    with contextlib.ExitStack() as stack:
        with err.status(f"starting {TITLES[engine]}"):
            starting = engines.named(engine)(
                config, folder, run_folder, port=port, host=host, metrics_host=metrics_host, overrides=overrides
            )
            server = stack.enter_context(starting)
        _pass_reloads(server)
        startup_output.show_server(server)
        loaded = _load_models(server, plan, ignored)
        if not detach:
            stack.callback(notify, "STOPPING=1")
        notify(f"READY=1\nSTATUS={sum(loaded)} of {len(loaded)} models are loaded")
        if detach:
            server.detach()
        else:
            _wait_for_end(server)


def _announce(plan: StartPlan, ignored: Sequence[str]) -> None:
    """Print findings in archives that the server loads itself, and notes about its state."""
    from torchmar.checks.admission import admit
    from torchmar.cli import findings

    for archive in plan.at_startup if not plan.state else ():
        findings.warn(admit(archive, ignored))
    for note in plan.state.notes if plan.state else ():
        err.print(note, markup=False)


def _load_models(server: Server, plan: StartPlan, ignored: list[str]) -> list[bool]:
    """Wait for the models that the server loads itself, register the others, and print all; return which are loaded.

    Raises:
        TorchmarError: no model could be loaded.
    """
    from torchmar.cli import startup_output

    # Before any registration, which would conflict with the server's own registration of the same archive.
    report = _wait_for_startup(server)
    if plan.state:
        startup_output.show_restored(server, plan.state)
    loaded = [_load(server, archive, ignored) for archive in plan.to_register]
    if loaded and not any(loaded) and not plan.state:
        raise TorchmarError("no model could be loaded; the server is stopped")
    startup_output.show_startup(server, plan, report)
    startup_output.show_next_step(server, plan)
    return loaded


def _overrides(*, check: bool, ignore: Sequence[str], head: str | None) -> dict[str, str]:
    """Return the keys of the configuration that options of the command set."""
    overrides = {} if check else {"torchmar_check_archives": "false"}
    if ignore:
        overrides["torchmar_ignore_checks"] = ",".join(ignore)
    if head:
        overrides["torchmar_ray_address"] = head
    return overrides


def _wait_for_end(server: Server) -> None:
    err.print("Ctrl-C stops the server")
    try:
        server.wait(complain)
    except (KeyboardInterrupt, SystemExit):
        err.print("stopping; Ctrl-C again does not wait for open requests")
        raise
    err.print("the server was stopped")


def _pass_reloads(server: Server) -> None:
    """Pass SIGHUP to torchmar's server; if its terminal has closed, SIGHUP ends this command."""
    from torchmar.engines.builtin import Builtin

    if isinstance(server, Builtin) and not (sys.stdin and sys.stdin.isatty()):
        signal.signal(signal.SIGHUP, lambda number, frame: server.reload())


def stop(
    run_folder: ServerFolder = Path(".torchmar"),
    everything: Annotated[
        bool, typer.Option("--all", help="Stop all servers whose run folders are in this folder or below.")
    ] = False,
) -> None:
    """Stop the server that runs with a folder."""
    from torchmar.engines.server_records import ServerRecord

    if everything:
        cwd = Path.cwd().resolve()
        records = [record for record in ServerRecord.everywhere() if cwd in Path(record.folder).parents]
        message = f"no server runs with a folder in {cwd}"
    else:
        records = [record] if (record := ServerRecord.find(run_folder)) else []
        message = f"no server runs with {run_folder}"
        if killed := ServerRecord.killed(run_folder):
            killed.stop()
            message += f": process {killed.pid} ended by itself; its files are removed, except its logs"
    if not records:
        err.print(message, markup=False)
    for record in records:
        with err.status(f"stopping {TITLES[record.engine]}"):
            record.stop()
        of_folder = f" of {record.folder}" if everything else ""
        out.print(f"stopped{of_folder} (process {record.pid})", markup=False)


def _wait_for_startup(server: Server) -> StartupReport | None:
    """Return the report of the models that the server loaded at its start; None after a timeout, or for TorchServe."""
    from torchmar.cli.startup_output import LOAD_SECONDS
    from torchmar.engines.builtin import Builtin

    if not isinstance(server, Builtin):
        return None
    with err.status("loading models"):
        return server.wait_until_loaded(LOAD_SECONDS)


def _load(server: Server, archive: Path, ignored: list[str]) -> bool:
    from torchmar.checks.admission import admit
    from torchmar.cli import findings, startup_output

    try:
        with err.status(f"loading {archive.name}"):
            findings.warn(admit(archive, ignored))
            model = server.load(archive)
    except TorchmarError as error:
        if isinstance(error, EngineError) and not isinstance(error, ModelFailedError):
            raise  # the server has ended
        complain(error)
        return False
    startup_output.show_model(model)
    return True
