"""Output of ``serve`` about a started server: addresses, models, and missing files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from torchmar.cli import addresses, console
from torchmar.cli.operating import show_path
from torchmar.cli.terminal import complain, err
from torchmar.cli.terminal import lasting_out as out
from torchmar.engines.builtin import Builtin
from torchmar.errors import TorchmarError
from torchmar.server.config import startup_models

if TYPE_CHECKING:
    from torchmar.cli.start_plan import StartPlan
    from torchmar.engines.engine import Engine
    from torchmar.management import ModelVersion
    from torchmar.server.models.startup_report import StartupReport
    from torchmar.server.models.state_file import State

LOAD_SECONDS = 300.0  # limit of the wait for the models that the server loads at its start


def show_server(server: Engine) -> None:
    """Print the addresses and folders of a server, and warn of addresses that other machines can reach."""
    out.print(server.described, markup=False)
    for line in addresses.lines(server.properties, server.name):
        out.print(line, markup=False)
    if server.name != "torchserve":
        console.print_link(server.server)
    key_file = server.server.key_file
    out.print(f"  tokens      {show_path(key_file) if key_file else 'none: authorization is off'}", markup=False)
    out.print(f"  logs        {show_path(server.folder / 'logs')}", markup=False)
    for address in server.properties.addresses():
        if not address.loopback:
            danger = " and can run code here; torchmar doctor has more" if "management" in address.key else ""
            listening = f"{address.host}:{address.port}"
            err.print(f"[yellow]warning:[/] {address.key}: other machines can reach {listening}{danger}")


def show_restored(server: Engine, state: State) -> None:
    """Print the models that the server has restored."""
    if not state.models:
        err.print("the last run ended without models; --fresh loads the archives of the model store", markup=False)
        return
    for name in server.management.names():
        for version in server.management.describe(name, "all"):
            show_model(version)
    err.print(f"these are the models of the last run ({show_path(state.path)}); --fresh starts without them")


def show_startup(server: Engine, plan: StartPlan, report: StartupReport | None) -> None:
    """Print the problems of models that the server loads at its start; those of registered archives are printed
    already.

    Args:
        server: the started server.
        plan: plan of its start.
        report: report of the models loaded at the start; None: they are still being loaded, or the server is
            TorchServe.
    """
    if not isinstance(server, Builtin):
        for message in _missing(plan.config.get("load_models"), server.model_store):
            complain(TorchmarError(message))
        return
    if report is None:
        err.print(f"[yellow]warning:[/] models are still being loaded after {LOAD_SECONDS:.0f} s")
        return
    for warning in report.warnings:
        err.print("[yellow]warning:[/]", escape(warning))
    printed_names = {archive.name for archive in plan.to_register}
    for failure in report.failures:
        if failure.url not in printed_names:
            complain(TorchmarError(failure.message))


def show_next_step(server: Engine, plan: StartPlan) -> None:
    """Print the models of a watched store, or the command that loads a model if none was registered."""
    if plan.watching:
        for name in server.management.names():
            show_model(server.management.describe(name)[0])
        err.print(f"watching {plan.store} for new versions", markup=False)
    elif plan.to_register or plan.state:
        return
    elif plan.configured:
        setting = "model_snapshot"
        if not plan.config.get("model_snapshot"):
            setting = f"load_models={plan.config.get('load_models')}"
        err.print(f"{setting}: no further archive is loaded; torchmar register loads one", markup=False)
    else:
        err.print(f"no archive in {plan.store} yet: torchmar build, then torchmar register")


def show_model(model: ModelVersion) -> None:
    """Print a version that is served."""
    workers = f"{model.ready} worker{'' if model.ready == 1 else 's'}"
    out.print(
        f"  {model.name} {model.version}: {workers}, batch {model.batch_size}, {model.max_batch_delay} ms", markup=False
    )


def _missing(load_models: str, store: Path) -> list[str]:
    """Return a message for each missing file that ``load_models`` names; TorchServe only logs them."""
    models = startup_models.parse_load_models(load_models)
    names = [url for _, url in models if "://" not in url] if models != "all" else []
    missing = [startup_models.StartupModel(name) for name in names if not (store / name).exists()]
    return [
        f"load_models: {model.url} is not loaded: {startup_models.explain(model, f'Model not found at: {model.url}')}"
        for model in missing
    ]
