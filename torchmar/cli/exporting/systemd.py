"""torchmar export systemd: a unit that serves a folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from torchmar.cli.exporting.files import Config, OutputFile, store, write
from torchmar.cli.options import Engine, ModelStore, Port, ServerFolder
from torchmar.cli.terminal import err
from torchmar.engines import DEFAULT
from torchmar.errors import EngineError, TorchmarError

_PATH = (
    Path("/usr/local/sbin"),
    Path("/usr/local/bin"),
    Path("/usr/sbin"),
    Path("/usr/bin"),
    Path("/sbin"),
    Path("/bin"),
)
_HIDDEN = (Path("/tmp"), Path("/var/tmp"))


def systemd(
    config: Config = Path("config.properties"),
    model_store: ModelStore = None,
    run_folder: ServerFolder = Path(".torchmar"),
    port: Port = None,
    system: Annotated[
        bool,
        typer.Option("--system", help="A system service, with more protection; default: a service of your user."),
    ] = False,
    user: Annotated[
        str | None,
        typer.Option(help="The user of a system service; default: the owner of this folder.", show_default=False),
    ] = None,
    engine: Engine = DEFAULT,
    output: OutputFile = None,
) -> None:
    """Write a systemd unit that serves this folder with this Python."""
    from torchmar import properties
    from torchmar.exporting.systemd import Service, unit

    if user and not system:
        raise typer.BadParameter(
            "a service of another user must be a system service: add --system", param_hint="--user"
        )
    configuration = properties.read(config)
    folder = Path.cwd()
    account = (user or folder.owner()) if system else ""
    service = Service(
        # The link in the virtual environment, not its target: only the link selects the environment.
        python=Path(sys.executable),
        folder=folder,
        config=config.absolute(),
        model_store=store(configuration, model_store).absolute(),
        run_folder=run_folder.absolute(),
        port=port,
        java_home=_java_home() if engine == "torchserve" else None,
        engine=engine,
        user=account,
    )
    write({output: unit(service, configuration)})
    if account == "root":
        err.print("the service runs as root; --user names another user, who must be able to write the run folder")
    if any(base in service.folder.parents for base in _HIDDEN):
        err.print(
            f"{service.folder} is in a temporary folder, but the service has a temporary folder of its own",
            markup=False,
        )
    if not service.model_store.is_dir():
        err.print(f"{service.model_store} does not exist yet; torchmar build creates it", markup=False)
    if output:
        _create(run_folder, account)


def _create(run_folder: Path, account: str) -> None:
    """Create a run folder; print a command if the account of a service cannot write it."""
    try:
        run_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TorchmarError(f"the run folder {run_folder} cannot be created: {error.strerror}") from None
    if account and run_folder.owner() != account:
        err.print(f"before the service starts: chown -R {account} {run_folder}", markup=False)


def _java_home() -> Path | None:
    """Return the home of the Java in use; None: a service finds Java without it."""
    from torchmar.engines import java

    try:
        executable = java.find().executable
    except EngineError:
        return None
    on_path = executable.parent in _PATH and not os.environ.get("JAVA_HOME")
    return None if on_path else executable.parent.parent
