"""The models with which ``serve`` starts a server: from its configuration, its last run, or the model store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from torchmar.archive import store
from torchmar.engines import EngineName
from torchmar.errors import TorchmarError
from torchmar.properties import Properties
from torchmar.server.models import state_file
from torchmar.server.models.state_file import State


@dataclass(frozen=True, kw_only=True)
class StartPlan:
    """The archives that a server loads at its start, and those that are registered later.

    Attributes:
        config: the user's configuration.
        store: the model store.
        at_startup: archives that the server loads itself, because ``load_models`` names them.
        to_register: archives that are registered after the server has started.
        configured: whether ``load_models`` or ``model_snapshot`` names the models, and neither the command nor the
            store.
        watching: whether the server watches the model store, and serves all its models.
        state: state of the last run, which the server restores; None: the server restores no state.
        overrides: keys of the configuration with other values than the user's.
    """

    config: Properties
    store: Path
    at_startup: Sequence[Path]
    to_register: Sequence[Path]
    configured: bool
    watching: bool
    state: State | None
    overrides: Mapping[str, str]


def plan(
    names: Sequence[str],
    config: Properties,
    store_folder: Path,
    run_folder: Path,
    engine: EngineName,
    *,
    fresh: bool = False,
    watch: bool = False,
) -> StartPlan:
    """Plan the start of a server.

    Args:
        names: names of models from the user; empty: the models of the configuration, of the last run, or of the store.
        config: the user's configuration.
        store_folder: the model store.
        run_folder: run folder of the server; it may contain the state of the last run.
        engine: the kind of server.
        fresh: whether the state of the last run is ignored.
        watch: whether the server watches the model store, even if the configuration does not require it.

    Raises:
        typer.BadParameter: ``watch`` with an engine that does not watch, or names with a watched store.
        TorchmarError: no archive can be registered in this configuration, the state cannot be read, or there is no
            archive with such a name.
    """
    watching = watch or config.get("torchmar_watch").strip() in ("latest", "all")
    if watch and engine == "torchserve":
        raise typer.BadParameter("TorchServe does not watch its model store", param_hint="--watch")
    if watching and names:
        raise typer.BadParameter("all models of a watched model store are served; name none", param_hint="MODEL")
    at_startup = [] if watching else _startup_archives(config, store_folder)
    file = (run_folder / state_file.FILE_NAME).resolve()
    restores = not watching and _restores(config, engine)
    state = None if names or fresh or not restores else state_file.read(file, store_folder.resolve(), config)
    configured = not names and any(config.get(key).strip() for key in ("load_models", "model_snapshot"))
    to_register = at_startup if configured or watching else store.find(store_folder, names or None)
    if state:
        to_register = [archive for archive in to_register if archive.name not in state.archives]
    if not set(to_register) <= set(at_startup):
        _check_registers(config)
    overrides = {"torchmar_state_file": str(file)} if restores else {}
    if state:
        overrides.update(state.overrides)
    if watch:
        overrides["torchmar_watch"] = "latest"
    return StartPlan(
        config=config,
        store=store_folder,
        at_startup=at_startup,
        to_register=to_register,
        configured=configured,
        watching=watching,
        state=state,
        overrides=overrides,
    )


def _restores(config: Properties, engine: EngineName) -> bool:
    """Return whether a server that does not watch its store restores the models of its last run."""
    snapshot = config.get("model_snapshot").strip()
    return engine != "torchserve" and config.flag("enable_model_api") and not snapshot


def _check_registers(config: Properties) -> None:
    """Raise TorchmarError if no model can be registered in a configuration."""
    if not (config.flag("enable_model_api") or config.flag("enable_envvars_config")):
        raise TorchmarError(
            f"{config.file}: without enable_model_api no model can be registered",
            hint="enable_model_api=true, or load_models=all in place of it",
        )


def _startup_archives(config: Properties, folder: Path) -> list[Path]:
    """Return the archives that ``load_models`` names, by their own names; none if there is a snapshot."""
    if config.get("model_snapshot").strip():
        return []
    names = config.get("load_models").replace(" ", "").split(",")
    everything = names[0].lower() == "all"
    return [archive for archive in store.find(folder) if everything or archive.name in names]
