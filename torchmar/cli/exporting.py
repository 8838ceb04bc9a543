"""The commands that write a systemd unit, a Dockerfile, or alerts and a dashboard for a server."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer

from torchmar.atomic import temporary_path
from torchmar.cli.options import Engine, ModelStore, Port, ServerFolder
from torchmar.cli.terminal import err
from torchmar.engines import DEFAULT, EngineName
from torchmar.errors import EngineError, TorchmarError

if TYPE_CHECKING:
    from torchmar.properties import Properties

app = typer.Typer(no_args_is_help=True, help="Write what runs torchmar serve, or what watches it.")

Config = Annotated[Path, typer.Option(help="The server's configuration.")]
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
    model_store: ModelStore = None,
    run_folder: ServerFolder = Path(".torchmar"),
    port: Port = None,
    system: Annotated[
        bool,
        typer.Option(
            "--system", help="A service of the system, with more protection; default: a service of your user."
        ),
    ] = False,
    user: Annotated[
        str | None,
        typer.Option(
            help="The user of a service of the system; default: the owner of this folder.", show_default=False
        ),
    ] = None,
    engine: Engine = DEFAULT,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write; default: stdout.", show_default=False)
    ] = None,
) -> None:
    """Write a systemd unit that serves this folder with this Python."""
    from torchmar import properties
    from torchmar.exporting.systemd import Service, unit

    if user and not system:
        raise typer.BadParameter(
            "a service of another user is a service of the system: add --system", param_hint="--user"
        )
    given = properties.read(config)
    folder = Path.cwd()
    account = (user or folder.owner()) if system else ""
    service = Service(
        # The link in the virtual environment, not its target: only the link selects the environment.
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


@app.command()
def docker(
    config: Config = Path("config.properties"),
    model_store: ModelStore = None,
    mount: Annotated[bool, typer.Option("--mount", help="Leave the archives out of the image; mount them.")] = False,
    bake: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="Put only the newest archive of this model into the image, with the extras that it needs. "
            "May be repeated.",
            show_default=False,
        ),
    ] = None,
    package: Annotated[
        Path | None,
        typer.Option(help="A wheel of torchmar; default: its source, if this is its folder.", show_default=False),
    ] = None,
    extras: Annotated[
        str, typer.Option(help="Extras of torchmar that the archives need: onnx,text.", show_default=False)
    ] = "",
    gpus: Annotated[bool, typer.Option("--gpus", help="Include CUDA; the image is 5 GB larger.")] = False,
    engine: Engine = DEFAULT,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The folder for Dockerfile and .dockerignore; default: stdout.", show_default=False
        ),
    ] = None,
) -> None:
    """Write a Dockerfile, and with --output also its .dockerignore."""
    from importlib.metadata import PackageNotFoundError, version

    from torchmar import properties
    from torchmar.exporting.docker import Image, dockerfile, dockerignore

    if bake and mount:
        raise typer.BadParameter("archives are put into the image or mounted, not both", param_hint="--bake")
    given = properties.read(config)
    if package is None and not _is_our_source():
        raise TorchmarError(
            "this folder is not the source of torchmar, which the image needs",
            hint="pip wheel --no-deps -w . SOURCE makes a wheel; name it with --package torchmar-....whl",
        )
    try:
        torch = version("torch").partition("+")[0]
    except PackageNotFoundError:
        torch = ""
    folder = _store(given, model_store)
    baked = _newest(folder, bake) if bake else []
    named = [name.strip() for name in extras.split(",") if name.strip()]
    image = Image(
        config=_inside(config),
        model_store=_inside(folder),
        mount=mount,
        baked=tuple(map(_inside, baked)),
        with_runtime=tuple(_inside(path) for path in baked if "venv" in _extras(path, engine)),
        package=str(_inside(package)) if package else "",
        extras=tuple(dict.fromkeys([*named, *(extra for archive in baked for extra in _extras(archive, engine))])),
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        torch=torch,
        gpus=gpus,
        engine=engine,
    )
    text = dockerfile(image, given)
    if output is None:
        _write({None: text})
        err.print("--output . writes it to a file, with a .dockerignore that keeps tokens out of the image")
        return
    if not output.is_dir():
        raise TorchmarError(f"{output} is not a folder", hint="Dockerfile and .dockerignore are written to it")
    for path in (image.package, *(() if mount else (str(image.model_store),))):
        if path and not Path(path).exists():
            err.print(f"{path} does not exist yet; docker build needs it", markup=False)
    if given.flag("disable_token_authorization"):
        err.print(f"{config} turns tokens off: every client that reaches the port can use the models", markup=False)
    _write({output / "Dockerfile": text, output / ".dockerignore": dockerignore(image)})


@app.command()
def monitoring(
    job: Annotated[str, typer.Option(help="The name of Prometheus' job that scrapes the servers.")] = "torchmar",
    latency: Annotated[
        str, typer.Option(metavar="TIME", help="An alert is raised if 1 % of a model's requests take longer.")
    ] = "1s",
    queue: Annotated[
        str, typer.Option(metavar="TIME", help="An alert is raised if 5 % wait longer for a worker.")
    ] = "500ms",
    errors: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="The share of server errors above which an alert is raised.")
    ] = 0.01,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The folder for alerts.yaml and dashboard.json.")
    ] = Path(),
) -> None:
    """Write Prometheus' alert rules and a dashboard for Grafana."""
    from torchmar.exporting.monitoring import Limits, alerts, dashboard
    from torchmar.tuning.target import parse_duration

    if not re.fullmatch(r"[\w.:/-]+", job):
        raise typer.BadParameter(f"{job!r} is no name of a job", param_hint="--job")
    limits = Limits(
        job=job, request_seconds=parse_duration(latency), queue_seconds=parse_duration(queue), errors=errors
    )
    if not output.is_dir():
        raise TorchmarError(f"{output} is not a folder", hint="alerts.yaml and dashboard.json are written to it")
    _write({output / "alerts.yaml": alerts(limits), output / "dashboard.json": dashboard(limits)})


def _create(run_folder: Path, account: str) -> None:
    """Create a run folder; print a command if the account of a service cannot write it."""
    try:
        run_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TorchmarError(f"the run folder {run_folder} cannot be created: {error.strerror}") from None
    if account and run_folder.owner() != account:
        err.print(f"before the service starts: chown -R {account} {run_folder}", markup=False)


def _store(config: Properties, given: Path | None) -> Path:
    return given or Path(config.get("model_store") or "model_store")


def _newest(store: Path, names: list[str]) -> list[Path]:
    """Return the newest archive of each model, by name."""
    from torchmar.archive import store as archives

    return [archives.find(store, [name])[-1] for name in dict.fromkeys(names)]


def _extras(path: Path, engine: EngineName) -> list[str]:
    """Return the extras of torchmar that an archive needs: for its weights and texts, and for its environment."""
    from torchmar.archive import Archive

    with Archive(path) as archive:
        names = [member.name for member in archive.members]
        weights = archive.manifest.model.serialized_file or ""
        runtime = archive.runtime if engine == "builtin" else None
    if runtime and not runtime.server_packages:
        return ["venv"]  # the rest is in its lock file
    extras = {
        "onnx": any(name.endswith(".onnx") for name in names),
        "openvino": weights.endswith(".xml"),
        "text": "tokenizer.json" in names,
        "venv": runtime is not None,
    }
    return [extra for extra, needed in extras.items() if needed]


def _inside(path: Path) -> PurePosixPath:
    """Return a path relative to this folder, if it is below it."""
    absolute, here = path.absolute(), Path.cwd()
    return PurePosixPath(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute)


def _is_our_source() -> bool:
    project = Path("pyproject.toml")
    return project.is_file() and 'name = "torchmar"\n' in project.read_text(encoding="utf-8")


def _java_home() -> Path | None:
    """Return the home of the Java that is used here; None if a service finds it without."""
    from torchmar.engines import java

    try:
        executable = java.find().executable
    except EngineError:
        return None
    on_path = executable.parent in _PATH and not os.environ.get("JAVA_HOME")
    return None if on_path else executable.parent.parent


def _write(texts: dict[Path | None, str]) -> None:
    """Write each text to its file, atomically; None is stdout."""
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
