"""The commands that start and stop a server."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from torchmar.cli import addresses, console
from torchmar.cli.operating import show_path
from torchmar.cli.options import Check, Config, Engine, Head, Ignore, ModelStore, Platform, Port, ServerFolder
from torchmar.cli.terminal import complain, err
from torchmar.cli.terminal import lasting_out as out
from torchmar.engines import DEFAULT, TITLES
from torchmar.errors import EngineError, ModelFailedError, TorchmarError

if TYPE_CHECKING:
    from torchmar.engines.engine import Engine as Server
    from torchmar.management import ModelVersion
    from torchmar.properties import Properties
    from torchmar.server.models.startup_report import StartupReport
    from torchmar.server.models.state_file import State

PANEL = "Servers"
_LOAD_SECONDS = 300.0  # to wait for the models that the server loads at its start


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
    from torchmar.archive import store
    from torchmar.checks.admission import EVERYTHING, admit
    from torchmar.cli import findings
    from torchmar.engines.notify import notify
    from torchmar.server.models.state_file import FILE_NAME
    from torchmar.server.models.state_file import read as last_state

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
    given = properties.read_or_default(config)
    folder = model_store or Path(given.get("model_store") or "model_store")
    watching = watch or given.get("torchmar_watch").strip() in ("latest", "all")
    if watch and engine == "torchserve":
        raise typer.BadParameter("TorchServe does not watch its model store", param_hint="--watch")
    if head and engine != "ray":
        raise typer.BadParameter("only --engine ray has a cluster", param_hint="--address")
    if watching and names:
        raise typer.BadParameter("all models of a watched model store are served; name none", param_hint="MODEL")
    at_startup = [] if watching else _startup_archives(given, folder)
    state_file = (run_folder / FILE_NAME).resolve()
    restores = (
        engine != "torchserve"
        and not watching
        and given.flag("enable_model_api")
        and not given.get("model_snapshot").strip()
    )
    state = None if names or fresh or not restores else last_state(state_file, folder.resolve(), given)
    configured = not names and any(given.get(key).strip() for key in ("load_models", "model_snapshot"))
    archives = at_startup if configured or watching else store.find(folder, names or None)
    if state:
        archives = [archive for archive in archives if archive.name not in state.archives]
    if not (given.flag("enable_model_api") or given.flag("enable_envvars_config") or set(archives) <= set(at_startup)):
        raise TorchmarError(
            f"{given.file}: without enable_model_api no model can be registered",
            hint="enable_model_api=true, or load_models=all in place of it",
        )
    ignored = (ignore or []) if check else list(EVERYTHING)
    for archive in at_startup if not state else []:
        findings.warn(admit(archive, ignored))  # before the start, since the server loads it at once
    overrides = {} if check else {"torchmar_check_archives": "false"}
    if head:
        overrides["torchmar_ray_address"] = head
    if restores:
        overrides["torchmar_state_file"] = str(state_file)
    if state:
        overrides.update(state.overrides)
        for note in state.notes:
            err.print(note, markup=False)
    if watch:
        overrides["torchmar_watch"] = "latest"
    if ignore:
        overrides["torchmar_ignore_checks"] = ",".join(ignore)
    with contextlib.ExitStack() as stack:
        with err.status(f"starting {TITLES[engine]}"):
            starting = engines.named(engine)(
                config, folder, run_folder, port=port, host=host, metrics_host=metrics_host, overrides=overrides
            )
            server = stack.enter_context(starting)
        _pass_reloads(server)
        out.print(server.described, markup=False)
        for line in addresses.lines(server.properties, engine):
            out.print(line, markup=False)
        if engine != "torchserve":
            console.print_link(server.server)
        key_file = server.server.key_file
        out.print(f"  tokens      {show_path(key_file) if key_file else 'none: authorization is off'}", markup=False)
        out.print(f"  logs        {show_path(server.folder / 'logs')}", markup=False)
        for address in server.properties.addresses():
            if not address.loopback:
                danger = " and can run code here; torchmar doctor has more" if "management" in address.key else ""
                listening = f"{address.host}:{address.port}"
                err.print(f"[yellow]warning:[/] {address.key}: other machines can reach {listening}{danger}")
        # Before any registration, which would conflict with the server's own one of the same archive.
        report = _wait_for_startup(server)
        if state:
            _show_restored(server, state)
        loaded = [_load(server, archive, ignored) for archive in archives]
        if archives and not any(loaded) and not state:
            raise TorchmarError("no model could be loaded; the server is stopped")
        _show_startup(server, report, archives, given.get("load_models"))
        if watching:
            for name in server.management.names():
                _show_model(server.management.describe(name)[0])
            err.print(f"watching {folder} for new versions", markup=False)
        elif configured and not archives and not state:
            named = "model_snapshot" if given.get("model_snapshot") else f"load_models={given.get('load_models')}"
            err.print(f"{named}: no further archive is loaded; torchmar register loads one", markup=False)
        elif not archives and not state:
            err.print(f"no archive in {folder} yet: torchmar build, then torchmar register")
        if not detach:
            stack.callback(notify, "STOPPING=1")
        notify(f"READY=1\nSTATUS={sum(loaded)} of {len(loaded)} models are loaded")
        if detach:
            server.detach()
            return
        err.print("Ctrl-C stops the server")
        try:
            server.wait(complain)
        except (KeyboardInterrupt, SystemExit):
            err.print("stopping; Ctrl-C again does not wait for open requests")
            raise
        err.print("the server was stopped")


def _pass_reloads(server: Server) -> None:
    """Pass SIGHUP to the built-in server; of a terminal that has gone, it ends this command."""
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
        here = Path.cwd().resolve()
        records = [record for record in ServerRecord.everywhere() if here in Path(record.folder).parents]
        message = f"no server runs with a folder in {here}"
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
        which = f" of {record.folder}" if everything else ""
        out.print(f"stopped{which} (process {record.pid})", markup=False)


def _startup_archives(config: Properties, folder: Path) -> list[Path]:
    """Return the archives that ``load_models`` names, by their own names; none if there is a snapshot."""
    from torchmar.archive import store

    if config.get("model_snapshot").strip():
        return []
    named = config.get("load_models").replace(" ", "").split(",")
    everything = named[0].lower() == "all"
    return [archive for archive in store.find(folder) if everything or archive.name in named]


def _wait_for_startup(server: Server) -> StartupReport | None:
    """Return how the server loaded its models at the start; None after a timeout, or for TorchServe."""
    from torchmar.engines.builtin import Builtin

    if not isinstance(server, Builtin):
        return None
    with err.status("loading models"):
        return server.wait_until_loaded(_LOAD_SECONDS)


def _show_startup(server: Server, report: StartupReport | None, archives: list[Path], load_models: str) -> None:
    """Print the problems of models that the server loads at its start; those of ``archives`` have been printed."""
    from torchmar.engines.builtin import Builtin

    if not isinstance(server, Builtin):
        for message in _missing(load_models, server.model_store):
            complain(TorchmarError(message))
        return
    if report is None:
        err.print(f"[yellow]warning:[/] models are still being loaded after {_LOAD_SECONDS:.0f} s")
        return
    for warning in report.warnings:
        err.print("[yellow]warning:[/]", escape(warning))
    printed = {archive.name for archive in archives}
    for failure in report.failures:
        if failure.url not in printed:
            complain(TorchmarError(failure.message))


def _show_restored(server: Server, state: State) -> None:
    """Print the models that the server has restored."""
    if not state.models:
        err.print("the last run ended without models; --fresh loads the archives of the model store", markup=False)
        return
    for name in server.management.names():
        for version in server.management.describe(name, "all"):
            _show_model(version)
    err.print(f"these are the models of the last run ({show_path(state.path)}); --fresh starts without them")


def _load(server: Server, archive: Path, ignored: list[str]) -> bool:
    from torchmar.checks.admission import admit
    from torchmar.cli import findings

    try:
        with err.status(f"loading {archive.name}"):
            findings.warn(admit(archive, ignored))
            model = server.load(archive)
    except TorchmarError as error:
        if isinstance(error, EngineError) and not isinstance(error, ModelFailedError):
            raise  # the server has ended
        complain(error)
        return False
    _show_model(model)
    return True


def _show_model(model: ModelVersion) -> None:
    workers = f"{model.ready} worker{'' if model.ready == 1 else 's'}"
    out.print(
        f"  {model.name} {model.version}: {workers}, batch {model.batch_size}, {model.max_batch_delay} ms", markup=False
    )


def _missing(load_models: str, store: Path) -> list[str]:
    """Return a message for each missing file that ``load_models`` names; TorchServe only logs them."""
    from torchmar.server.config import startup_models

    models = startup_models.parse_load_models(load_models)
    names = [url for _, url in models if "://" not in url] if models != "all" else []
    missing = [startup_models.StartupModel(name) for name in names if not (store / name).exists()]
    return [
        f"load_models: {model.url} is not loaded: {startup_models.explain(model, f'Model not found at: {model.url}')}"
        for model in missing
    ]
