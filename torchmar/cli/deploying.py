"""Commands on desired state: what a server should serve, and how it gets there."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from torchmar.cli.connection_options import CaFile, PlainHttp
from torchmar.cli.operating import complain_of_failing
from torchmar.cli.options import Address, AsJson, Check, Ignore, KeyFile, RunFolder
from torchmar.cli.terminal import complain, err, out, wrapped
from torchmar.errors import TorchmarError

if TYPE_CHECKING:
    from torchmar.connection import Endpoint
    from torchmar.deployment.desired import Deployment
    from torchmar.deployment.executor import Report, Step
    from torchmar.deployment.plan import Plan

PANEL = "Deployment"
DIFFERENCE = 2  # exit code of plan when there is something to do

File = Annotated[Path, typer.Argument(metavar="FILE", help="The desired state.")]
Gpus = Annotated[
    str | None,
    typer.Option(help='GPUs to plan for, in place of what nvidia-smi tells: "2x80GiB".', show_default=False),
]
_COLORS = {"+": "green", "~": "yellow", "-": "red", "!": "magenta"}
_DEFAULT = Path("deployment.yaml")


def plan(
    file: File = _DEFAULT,
    as_json: AsJson = False,
    gpus: Gpus = None,
    run_folder: RunFolder = None,
) -> None:
    """Show how a server differs from what it should be, and change nothing.

    + is added, ~ changed, - removed; ! is not as it should be, and apply does
    nothing about it. Exit code 2: there is something to do. 1: there is not,
    but workers do not answer.
    """
    deployment = _read(file)
    made = _plan(deployment, file, gpus, run_folder)
    if as_json:
        typer.echo(json.dumps(made.document(), indent=2))
    else:
        _show(made)
        out.print(_summary(made, file), markup=False)
        complain_of_failing(_runs_in(deployment, file, run_folder))
    raise typer.Exit(DIFFERENCE if made.actions else int(bool(made.failing)))


def apply(
    file: File = _DEFAULT,
    check: Check = True,
    ignore: Ignore = None,
    as_json: AsJson = False,
    gpus: Gpus = None,
    run_folder: RunFolder = None,
) -> None:
    """Make a server what it should be, without losing a request.

    A new version gets its workers and has to answer its samples before it
    becomes the default; the old one answers what it had before it goes. When
    something fails, all goes back.
    """
    from torchmar.deployment import executor, planning

    ignored = (ignore or []) if check else ["MAR"]
    deployment = _read(file)
    made = _plan(deployment, file, gpus, run_folder)
    where = planning.server(deployment.server, file.parent, run_folder)
    if not as_json:
        _show(made)
    if not made.actions:
        if as_json:
            typer.echo(json.dumps(_document(executor.Report()), indent=2))
        else:
            out.print(_summary(made, file), markup=False)
            complain_of_failing(_runs_in(deployment, file, run_folder))
        raise typer.Exit(int(bool(made.failing)))
    if as_json:
        report = executor.apply(made, where, ignored_checks=ignored)
        typer.echo(json.dumps(_document(report), indent=2))
    else:
        out.print()
        with err.status("") as status:

            def watch(step: Step) -> None:
                if step.seconds is None:
                    status.update(escape(f"{step.verb} {step.text}"))
                else:
                    _show_step(step)

            try:
                report = executor.apply(made, where, watch, ignored_checks=ignored)
            except (KeyboardInterrupt, SystemExit):
                err.print(f"interrupted; torchmar plan {file} shows how the server differs now", markup=False)
                raise
        _show_outcome(report, _runs_in(deployment, file, run_folder))
    if report.failure or report.left:
        raise typer.Exit(1)
    # What has been done can only be seen on the server itself.
    again = _plan(deployment, file, gpus, run_folder)
    if again.actions:
        _show(again)
        raise TorchmarError("the server is not yet as it should be", hint="torchmar apply goes on from here")
    if again.failing:
        raise TorchmarError(
            f"all is done, but workers of {', '.join(again.failing)} do not answer", hint="torchmar logs says why"
        )
    if not as_json:
        out.print(f"the server is as {file} says", markup=False)


def capture(
    run_folder: RunFolder = None,
    address: Address = None,
    key_file: KeyFile = None,
    ca_file: CaFile = None,
    allow_plain_http: PlainHttp = False,
    model_store: Annotated[
        Path | None, typer.Option(help="The server's; default: what its run folder says.", show_default=False)
    ] = None,
) -> None:
    """Write down what a server has as the desired state: torchmar capture > deployment.yaml."""
    from torchmar.cli.connection_options import server
    from torchmar.deployment import actual, planning, store_index
    from torchmar.deployment.capture import capture as written
    from torchmar.deployment.desired import ServerPlace

    where = server("management", address, run_folder, key_file, ca_file, allow_plain_http)
    found = actual.read(where)
    if not found:
        raise TorchmarError("the server has no models to write down", hint="torchmar register ARCHIVE adds one")
    store = model_store or planning.model_store(ServerPlace(), Path(), run_folder)
    place = {"run_folder": str(run_folder)} if run_folder else {}
    place |= {"management": address} if address else {}
    place |= {"key_file": str(key_file)} if key_file else {}
    place |= {"model_store": str(model_store)} if model_store else {}
    typer.echo(written(found, store_index.read(store, found), place), nl=False)


def startup(file: File = _DEFAULT, run_folder: RunFolder = None) -> None:
    """Print the config.properties with which a restarted server comes up the same.

    It is server: config of the deployment, or else the config.properties
    beside it, and the models.
    """
    from torchmar import properties
    from torchmar.deployment import planning
    from torchmar.deployment.startup import startup as written

    deployment = _read(file)
    named = deployment.server.config
    config = file.parent / (named or planning.CONFIG)
    base = dict(properties.read(config).values) if named or config.is_file() else {}
    store = planning.model_store(deployment.server, file.parent, run_folder)
    there, chosen = planning.archives(deployment, file.parent, store)
    typer.echo(written(deployment, chosen, there, base), nl=False)


def deployment_schema() -> None:
    """Print the JSON Schema of deployment.yaml, for editors."""
    from torchmar.deployment import desired

    typer.echo(json.dumps(desired.schema(), indent=2))


def _read(file: Path) -> Deployment:
    from torchmar.deployment import desired

    return desired.read(file)


def _plan(deployment: Deployment, file: Path, gpus: str | None, run_folder: Path | None) -> Plan:
    from torchmar.deployment import planning
    from torchmar.deployment.gpu_sizes import parse

    where: Endpoint = planning.server(deployment.server, file.parent, run_folder)
    store = planning.model_store(deployment.server, file.parent, run_folder)
    with err.status("asking the server"):
        return planning.make(deployment, file.parent, where, store, parse(gpus) if gpus else None)


def _show(made: Plan) -> None:
    from torchmar.deployment.gpu_sizes import show

    for change in made.changes:
        out.print(f"[{_COLORS[change.sign]}]{change.sign} {escape(change.what)}[/]")
        for line in change.lines:
            out.print(wrapped(line), markup=False)
    for number, gpu in enumerate(made.gpus):
        there = ", ".join(f"{name} x{count}" for name, count in gpu.workers) or "nothing"
        out.print(wrapped(f"GPU {number}  {show(gpu.used)} of {show(gpu.size)}  {there}", "", "       "), markup=False)


def _summary(made: Plan, file: Path) -> str:
    if not made.actions:
        return (
            f"nothing that torchmar apply could do: workers of {', '.join(made.failing)} do not answer"
            if made.failing
            else f"nothing to do: the server is as {file} says"
        )
    from torchmar.deployment import actions

    counts: dict[str, int] = {}
    for action in made.actions:
        # A line for each thing that is drained: the wait for all of them is one.
        many = len(action.versions) if isinstance(action, actions.Drain) else 1
        counts[actions.verb(action)] = counts.get(actions.verb(action), 0) + many
    words = ", ".join(f"{verb} {count}" for verb, count in counts.items())
    return f"torchmar apply would {words}"


def _show_step(step: Step) -> None:
    mark = "  [red]failed[/]" if step.failed else ""
    text = step.text.splitlines()[0]
    out.print(f"{step.verb:<10} {escape(text):<55} {step.seconds or 0:>6.1f} s{mark}")
    if step.note:
        out.print(wrapped(step.note, " " * 10, " " * 10), markup=False)


def _show_outcome(report: Report, folder: Path) -> None:
    from torchmar.deployment import actions
    from torchmar.engines import worker_log

    if report.failure:
        failed = report.failed
        trace = ""
        if isinstance(failed, actions.Register | actions.ScaleUp):
            trace = worker_log.traceback(folder, failed.model, failed.version)
        if trace:
            err.print(trace.rstrip(), style="dim", markup=False)
        complain(report.failure)
        if report.undone:
            err.print("everything is as it was before")
    for line in report.left:
        err.print(f"left: {line}", markup=False)


def _document(report: Report) -> dict[str, object]:
    return {
        "steps": [asdict(step) for step in report.steps],
        "failure": report.failure.message if report.failure else None,
        "undone": report.undone,
        "left": report.left,
    }


def _runs_in(deployment: Deployment, file: Path, run_folder: Path | None) -> Path:
    from torchmar.connection import RUN_FOLDER

    message = deployment.server.run_folder
    return run_folder or (file.parent / message if message else RUN_FOLDER)
