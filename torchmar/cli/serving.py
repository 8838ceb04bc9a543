"""The command that runs a server."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from torchmar.cli import addresses
from torchmar.cli.operating import show_path
from torchmar.cli.options import Check, Ignore, ServedFrom
from torchmar.cli.terminal import complain, err
from torchmar.cli.terminal import lasting_out as out
from torchmar.engines import DEFAULT, TITLES, EngineName
from torchmar.errors import EngineError, ModelFailedError, TorchmarError

if TYPE_CHECKING:
    from torchmar.engines.engine import Engine
    from torchmar.properties import Properties
    from torchmar.server.models.startup_report import StartupReport

PANEL = "Servers"
_LOAD_SECONDS = 300.0  # that the command waits for models that the server loads by itself
Folder = Annotated[
    Path,
    typer.Option(help="Where the server keeps its token and logs.", envvar="TORCHMAR_RUN_FOLDER", show_envvar=False),
]


def serve(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="Models to load; default: what load_models says, or else every archive of the model store.",
        ),
    ] = None,
    config: ServedFrom = None,
    model_store: Annotated[
        Path | None,
        typer.Option(help="The folder with the archives; default: the configuration's, or model_store."),
    ] = None,
    run_folder: Folder = Path(".torchmar"),
    port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help="Of the inference API; all other ports move along with it.", show_default=False
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            help="Where the inference API listens; management stays on loopback. For containers.", show_default=False
        ),
    ] = None,
    metrics_host: Annotated[
        str | None,
        typer.Option(help="Where the metrics API listens, which asks for no token.", show_default=False),
    ] = None,
    check: Check = True,
    ignore: Ignore = None,
    engine: Annotated[
        EngineName,
        typer.Option(
            help="torchmar's own server, without Java, or TorchServe.", envvar="TORCHMAR_ENGINE", show_envvar=False
        ),
    ] = DEFAULT,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Leave it running; torchmar stop ends it.")] = False,
) -> None:
    """Start a server over a model store and stay until Ctrl-C.

    A model that does not start, or whose workers die later, is reported with
    its worker's traceback; the others are served. A second server needs a run
    folder and ports of its own: --run-folder .torchmar-b --port 9080.
    """
    from torchmar import engines, properties
    from torchmar.archive import store
    from torchmar.checks.admission import EVERYTHING, admit
    from torchmar.cli import findings
    from torchmar.engines.notify import notify

    given = properties.read_or_default(config)
    folder = model_store or Path(given.get("model_store") or "model_store")
    by_itself = _loads_by_itself(given, folder)
    configured = not names and any(given.get(key).strip() for key in ("load_models", "model_snapshot"))
    archives = by_itself if configured else store.find(folder, names or None)
    if not (given.flag("enable_model_api") or given.flag("enable_envvars_config") or set(archives) <= set(by_itself)):
        raise TorchmarError(
            f"{given.file}: without enable_model_api no model can be registered",
            hint="enable_model_api=true, or load_models=all in place of it",
        )
    ignored = (ignore or []) if check else list(EVERYTHING)
    for archive in by_itself:
        findings.warn(admit(archive, ignored))  # the server loads it before it can be asked to
    overrides = {} if check else {"torchmar_check_archives": "false"}
    if ignore:
        overrides["torchmar_ignore_checks"] = ",".join(ignore)
    with contextlib.ExitStack() as stack:
        with err.status(f"starting {TITLES[engine]}"):
            started = engines.named(engine)(
                config, folder, run_folder, port=port, host=host, metrics_host=metrics_host, overrides=overrides
            )
            server = stack.enter_context(started)
        out.print(server.described, markup=False)
        for line in addresses.lines(server.properties, engine):
            out.print(line, markup=False)
        key_file = server.server.key_file
        out.print(f"  tokens      {show_path(key_file) if key_file else 'none: authorization is off'}", markup=False)
        out.print(f"  logs        {show_path(server.folder / 'logs')}", markup=False)
        for address in server.properties.addresses():
            if not address.loopback:
                danger = ", and with it run code here; torchmar doctor says more" if "management" in address.key else ""
                where = f"{address.host}:{address.port}"
                err.print(f"[yellow]warning:[/] {address.key}: other machines reach {where}{danger}")
        # First: a registration beside that of the server would come before it, and that of the server would fail.
        report = _wait_for_startup(server)
        loaded = [_load(server, archive, ignored) for archive in archives]
        if archives and not any(loaded):
            raise TorchmarError("no model could be loaded; the server is stopped")
        _show_startup(server, report, archives, given.get("load_models"))
        if configured and not archives:
            named = "model_snapshot" if given.get("model_snapshot") else f"load_models={given.get('load_models')}"
            err.print(f"{named}: no further archive is loaded; torchmar register loads one", markup=False)
        elif not archives:
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
            err.print("stopping; Ctrl-C again does not wait for what it is at")
            raise
        err.print("the server was stopped")


def stop(
    run_folder: Folder = Path(".torchmar"),
    everything: Annotated[
        bool, typer.Option("--all", help="Every server whose run folder lies in this folder or below.")
    ] = False,
) -> None:
    """Stop the server that runs with a folder."""
    from torchmar.engines.server_records import ServerRecord

    if everything:
        here = Path.cwd().resolve()
        found = [running for running in ServerRecord.everywhere() if here in Path(running.folder).parents]
        nothing = f"no server runs with a folder in {here}"
    else:
        found = [running] if (running := ServerRecord.find(run_folder)) else []
        nothing = f"no server runs with {run_folder}"
        if killed := ServerRecord.killed(run_folder):
            killed.stop()
            nothing += f": process {killed.pid} ended by itself; what it left is removed, but for its logs"
    if not found:
        err.print(nothing, markup=False)
    for one in found:
        with err.status(f"stopping {TITLES[one.engine]}"):
            one.stop()
        what = f" of {one.folder}" if everything else ""
        out.print(f"stopped{what} (process {one.pid})", markup=False)


def _loads_by_itself(config: Properties, folder: Path) -> list[Path]:
    """Return the archives that ``load_models`` names, under their own names; a snapshot goes before it."""
    from torchmar.archive import store

    if config.get("model_snapshot").strip():
        return []
    named = config.get("load_models").replace(" ", "").split(",")
    everything = named[0].lower() == "all"
    return [archive for archive in store.find(folder) if everything or archive.name in named]


def _wait_for_startup(server: Engine) -> StartupReport | None:
    """Wait until the server has tried the models that it loads by itself; None if it takes long, or is TorchServe."""
    from torchmar.engines.builtin import Builtin

    if not isinstance(server, Builtin):
        return None
    with err.status("loading models"):
        return server.wait_until_loaded(_LOAD_SECONDS)


def _show_startup(server: Engine, report: StartupReport | None, archives: list[Path], load_models: str) -> None:
    """Print what is wrong with models that the server loads by itself, but for those that were waited for."""
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
    waited_for = {archive.name for archive in archives}
    for failure in report.failures:
        if failure.url not in waited_for:
            complain(TorchmarError(failure.message))


def _load(server: Engine, archive: Path, ignored: list[str]) -> bool:
    from torchmar.checks.admission import admit
    from torchmar.cli import findings

    try:
        with err.status(f"loading {archive.name}"):
            findings.warn(admit(archive, ignored))
            model = server.load(archive)
    except TorchmarError as error:
        if isinstance(error, EngineError) and not isinstance(error, ModelFailedError):
            raise  # the server has ended, and will load nothing more
        complain(error)
        return False
    workers = f"{model.ready} worker{'' if model.ready == 1 else 's'}"
    out.print(f"  {model.name} {model.version}: {workers}, batch {model.batch_size}, {model.max_batch_delay} ms")
    return True


def _missing(load_models: str, store: Path) -> list[str]:
    """Return a message for each file that ``load_models`` names and that is not there; TorchServe only logs it."""
    from torchmar.server.config import startup_models

    models = startup_models.parse_load_models(load_models)
    names = [url for _, url in models if "://" not in url] if models != "all" else []
    missing = [startup_models.StartupModel(name) for name in names if not (store / name).exists()]
    return [
        f"load_models: {model.url} is not loaded: {startup_models.explain(model, f'Model not found at: {model.url}')}"
        for model in missing
    ]
