"""The commands that write files by which other programs run a server."""

from __future__ import annotations

import os
import sys
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer

from torchmar.atomic import temporary_path
from torchmar.cli.terminal import err
from torchmar.engines import DEFAULT, EngineName
from torchmar.errors import EngineError, TorchmarError

if TYPE_CHECKING:
    from torchmar.properties import Properties

app = typer.Typer(no_args_is_help=True, help="Write a systemd unit or a Dockerfile that runs torchmar serve.")

Config = Annotated[Path, typer.Option(help="The server's configuration.")]
Store = Annotated[
    Path | None, typer.Option(help="The folder with the archives; default: the configuration's, or model_store.")
]
Engine = Annotated[EngineName, typer.Option(help="TorchServe, or torchmar's own server, without Java.")]
_PATH = (
    Path("/usr/local/sbin"),
    Path("/usr/local/bin"),
    Path("/usr/sbin"),
    Path("/usr/bin"),
    Path("/sbin"),
    Path("/bin"),
)
_HIDDEN = (Path("/tmp"), Path("/var/tmp"))


@app.command()
def systemd(
    config: Config = Path("config.properties"),
    model_store: Store = None,
    run_folder: Annotated[
        Path, typer.Option(help="Where the server keeps its token and logs; made if need be.")
    ] = Path(".torchmar"),
    port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help="Of the inference API; all other ports move along with it.", show_default=False
        ),
    ] = None,
    system: Annotated[
        bool, typer.Option("--system", help="A service of the system, with more protection; default: of your own.")
    ] = False,
    user: Annotated[
        str | None,
        typer.Option(help="Who a service of the system runs as; default: who owns this folder.", show_default=False),
    ] = None,
    engine: Engine = DEFAULT,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write it here; default: stdout.", show_default=False)
    ] = None,
) -> None:
    """Write a systemd unit that serves this folder with this Python."""
    from torchmar import properties
    from torchmar.exporting.systemd import Service, unit

    if user and not system:
        raise typer.BadParameter("only a service of the system runs as somebody else: --system", param_hint="--user")
    given = properties.read(config)
    folder = Path.cwd()
    account = (user or folder.owner()) if system else ""
    service = Service(
        # The link in the environment, not what it points to: that is what makes the environment.
        python=Path(sys.executable),
        folder=folder,
        config=config.absolute(),
        model_store=_store(given, model_store).absolute(),
        run_folder=run_folder.absolute(),
        port=port,
        java_home=_java_home() if engine == "torchserve" else None,
        engine=engine,
        user=account,
    )
    _write({output: unit(service, given)})
    if account == "root":
        err.print("the service runs as root; --user names who should run it, and must be able to write its run folder")
    if any(base in service.folder.parents for base in _HIDDEN):
        err.print(f"{service.folder} is in a temporary folder, of which the service has one of its own", markup=False)
    if not service.model_store.is_dir():
        err.print(f"{service.model_store} is not there yet; torchmar build makes it", markup=False)
    if output:
        _make(run_folder, account)


@app.command()
def docker(
    config: Config = Path("config.properties"),
    model_store: Store = None,
    mount: Annotated[bool, typer.Option("--mount", help="Leave the archives out of the image.")] = False,
    package: Annotated[
        Path | None,
        typer.Option(help="A wheel of torchmar; default: its source, if this folder is that.", show_default=False),
    ] = None,
    extras: Annotated[str, typer.Option(help="What the archives need besides: onnx,text.", show_default=False)] = "",
    gpus: Annotated[bool, typer.Option("--gpus", help="With CUDA; five gigabytes larger.")] = False,
    engine: Engine = DEFAULT,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The folder for Dockerfile and .dockerignore; default: stdout.", show_default=False
        ),
    ] = None,
) -> None:
    """Write a Dockerfile, and with --output the .dockerignore that goes with it."""
    from importlib.metadata import PackageNotFoundError, version

    from torchmar import properties
    from torchmar.exporting.docker import Image, dockerfile, dockerignore

    given = properties.read(config)
    if package is None and not _is_our_source():
        raise TorchmarError(
            "this folder is not torchmar's source, which the image is to have",
            hint="pip wheel --no-deps -w . SOURCE makes a wheel; --package torchmar-....whl takes it",
        )
    try:
        torch = version("torch").partition("+")[0]
    except PackageNotFoundError:
        torch = ""
    image = Image(
        config=_inside(config),
        model_store=_inside(_store(given, model_store)),
        mount=mount,
        package=str(_inside(package)) if package else "",
        extras=tuple(name.strip() for name in extras.split(",") if name.strip()),
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        torch=torch,
        gpus=gpus,
        engine=engine,
    )
    text = dockerfile(image, given)
    if output is None:
        _write({None: text})
        err.print("--output . writes it, with a .dockerignore that keeps tokens out of the image")
        return
    if not output.is_dir():
        raise TorchmarError(f"{output} is not a folder", hint="Dockerfile and .dockerignore go there")
    for path in (image.package, *(() if mount else (str(image.model_store),))):
        if path and not Path(path).exists():
            err.print(f"{path} is not there yet; docker build will miss it", markup=False)
    if given.flag("disable_token_authorization"):
        err.print(f"{config} wants no tokens: whoever reaches the port may use the models", markup=False)
    _write({output / "Dockerfile": text, output / ".dockerignore": dockerignore(image)})


def _make(run_folder: Path, account: str) -> None:
    """Make a run folder, which the account of a service has to be able to write."""
    try:
        run_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TorchmarError(f"the run folder {run_folder} cannot be made: {error.strerror}") from None
    if account and run_folder.owner() != account:
        err.print(f"before it starts: chown -R {account} {run_folder}", markup=False)


def _store(config: Properties, given: Path | None) -> Path:
    return given or Path(config.get("model_store") or "model_store")


def _inside(path: Path) -> PurePosixPath:
    """Return a path relative to this folder, where it is below."""
    absolute, here = path.absolute(), Path.cwd()
    return PurePosixPath(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute)


def _is_our_source() -> bool:
    project = Path("pyproject.toml")
    return project.is_file() and 'name = "torchmar"\n' in project.read_text(encoding="utf-8")


def _java_home() -> Path | None:
    """Return the home of the Java that is used here, unless a service finds it by itself."""
    from torchmar.engines import java

    try:
        executable = java.find().executable
    except EngineError:
        return None
    found_anyway = executable.parent in _PATH and not os.environ.get("JAVA_HOME")
    return None if found_anyway else executable.parent.parent


def _write(texts: dict[Path | None, str]) -> None:
    """Write each text to its file, whole or not at all; None is stdout."""
    for file, text in texts.items():
        if file is None:
            typer.echo(text, nl=False)
            continue
        part = temporary_path(file)
        try:
            part.write_text(text, encoding="utf-8")
            part.replace(file)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise TorchmarError(f"{file} cannot be written: {error.strerror}") from None
        err.print(f"wrote {file}", markup=False)
