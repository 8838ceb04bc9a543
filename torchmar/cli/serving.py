"""The command that runs a server."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from torchmar.cli.terminal import complain, err, out
from torchmar.errors import TorchmarError

if TYPE_CHECKING:
    from torchmar.engines.torchserve import TorchServe

PANEL = "Servers"
Folder = Annotated[
    Path,
    typer.Option(help="Where the server keeps its token and logs.", envvar="TORCHMAR_RUN_FOLDER", show_envvar=False),
]


def serve(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="Models to load; default: every archive of the model store."),
    ] = None,
    config: Annotated[Path, typer.Option(help="The server's configuration.")] = Path("config.properties"),
    model_store: Annotated[
        Path | None,
        typer.Option(help="The folder with the archives; default: the configuration's, or model_store."),
    ] = None,
    run_folder: Folder = Path(".torchmar"),
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Leave it running; torchmar stop ends it.")] = False,
) -> None:
    """Start TorchServe over a model store and stay until Ctrl-C.

    A model that does not start is told with its worker's traceback; the others are served.
    """
    from torchmar import properties
    from torchmar.archive import store
    from torchmar.engines.torchserve import VERSION, TorchServe

    folder = model_store or Path(properties.read(config).get("model_store") or "model_store")
    archives = store.find(folder, names or None)
    with contextlib.ExitStack() as stack:
        with err.status("starting TorchServe"):
            server = stack.enter_context(TorchServe(config, folder, run_folder))
        out.print(f"TorchServe {VERSION} on Java {server.java.version} ({server.java.executable})", markup=False)
        out.print(f"  inference   {server.server.inference}")
        out.print(f"  management  {server.server.management}")
        out.print(f"  tokens      {server.server.key_file or 'none: authorization is off'}", markup=False)
        out.print(f"  logs        {server.folder / 'logs'}", markup=False)
        loaded = [_load(server, archive) for archive in archives]
        if archives and not any(loaded):
            raise TorchmarError("no model could be loaded; the server is stopped")
        if not archives:
            err.print(f"no archive in {folder} yet: torchmar build, then torchmar register")
        if detach:
            server.detach()
            return
        err.print("Ctrl-C stops the server")
        server.wait()


def stop(run_folder: Folder = Path(".torchmar")) -> None:
    """Stop the server that runs with a folder."""
    from torchmar.engines.running import Running

    running = Running.find(run_folder)
    if running is None:
        err.print(f"no server runs with {run_folder}")
        return
    with err.status("stopping TorchServe"):
        running.stop()
    out.print(f"stopped (process {running.pid})")


def _load(server: TorchServe, archive: Path) -> bool:
    try:
        with err.status(f"loading {archive.name}"):
            model = server.load(archive)
    except TorchmarError as error:
        complain(error)
        return False
    workers = f"{model.ready} worker{'' if model.ready == 1 else 's'}"
    out.print(f"  {model.name} {model.version}: {workers}, batch {model.batch_size}, {model.max_batch_delay} ms")
    return True
