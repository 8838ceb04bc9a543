"""Commands on desired state: plan, apply, capture and startup."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from torchmar.cli.endpoint import ServerOptions, with_server_options
from torchmar.cli.operating import complain_of_failing
from torchmar.cli.options import (
    Address,
    AsJson,
    Check,
    Ignore,
    RunFolder,
    ServerModelStore,
)
from torchmar.cli.terminal import complain, err, out, wrapped
from torchmar.errors import TorchmarError

if TYPE_CHECKING:
    from torchmar.deployment.context import DeploymentContext
    from torchmar.deployment.desired import Deployment
    from torchmar.deployment.executor import Report, Step
    from torchmar.deployment.plan import Plan

PANEL = "Deployment"
DIFFERENCE = 2  # exit code of plan if there are changes to make

File = Annotated[Path, typer.Argument(metavar="FILE", help="The desired state.")]
Gpus = Annotated[
    str | None,
    typer.Option(help='The GPUs to plan for, in place of those of nvidia-smi: "2x80GiB".', show_default=False),
]
_COLORS = {"+": "green", "~": "yellow", "-": "red", "!": "magenta"}
_DEFAULT = Path("deployment.yaml")


def plan(
    file: File = _DEFAULT,
    as_json: AsJson = False,
    gpus: Gpus = None,
    run_folder: RunFolder = None,
) -> None:
    """Show how a server differs from its desired state; change nothing.

    + is added, ~ changed, - removed. ! is a difference that apply leaves as it
    is. Exit code 2: there is something to do. 1: there is nothing to do, but
    workers do not answer.
    """
    deployment, context = _read(file, run_folder)
    plan = _plan(deployment, context, gpus)
    if as_json:
        typer.echo(json.dumps(plan.document(), indent=2))
    else:
        _show(plan)
        out.print(_summary(plan, file), markup=False)
        complain_of_failing(context.run_folder)
    raise typer.Exit(DIFFERENCE if plan.actions else int(bool(plan.failing)))


def apply(
    file: File = _DEFAULT,
    check: Check = True,
    ignore: Ignore = None,
    as_json: AsJson = False,
    gpus: Gpus = None,
    run_folder: RunFolder = None,
) -> None:
    """Bring a server to its desired state, without losing a request.

    A new version gets its workers and has to answer its samples before it
    becomes the default. The old one is removed when it has answered all its
    requests. If a step fails, all steps before it are undone.
    """
    from torchmar.deployment import executor

    ignored = (ignore or []) if check else ["MAR"]
    deployment, context = _read(file, run_folder)
    plan = _plan(deployment, context, gpus)
    if not as_json:
        _show(plan)
    if not plan.actions:
        if as_json:
            typer.echo(json.dumps(_document(executor.Report()), indent=2))
        else:
            out.print(_summary(plan, file), markup=False)
            complain_of_failing(context.run_folder)
        raise typer.Exit(int(bool(plan.failing)))
    if as_json:
        report = executor.apply(plan, context.endpoint, ignored_checks=ignored)
        typer.echo(json.dumps(_document(report), indent=2))
    else:
        report = _carry_out(plan, context, file, ignored)
        _show_outcome(report, context.run_folder)
    if report.failure or report.left:
        raise typer.Exit(1)
    # A second plan shows whether the server is really in its desired state.
    _check_done(_plan(deployment, context, gpus))
    if not as_json:
        out.print(f"the server is as {file} says", markup=False)


@with_server_options
def capture(
    address: Address = None,
    model_store: ServerModelStore = None,
    *,
    server: ServerOptions,
) -> None:
    """Print the state of a server as a desired state: torchmar capture > deployment.yaml."""
    from torchmar.deployment import actual, store_index
    from torchmar.deployment.capture import capture as text_of
    from torchmar.deployment.context import local_model_store

    endpoint, run_folder = server.endpoint("management", address), server.run_folder
    live = actual.read(endpoint)
    if not live:
        raise TorchmarError("the server has no models", hint="torchmar register ARCHIVE adds one")
    index = store_index.read(model_store or local_model_store(run_folder), live)
    options = {"run_folder": run_folder, "management": address, "key_file": server.key_file, "model_store": model_store}
    section = {key: str(value) for key, value in options.items() if value}
    typer.echo(text_of(live, index, section, actual.read_routes(endpoint)), nl=False)


def startup(file: File = _DEFAULT, run_folder: RunFolder = None) -> None:
    """Print a config.properties with which a restarted server has the same models.

    It is the deployment's server: config, or else the config.properties in the
    same folder, with the models added.
    """
    from torchmar import properties
    from torchmar.deployment import planning
    from torchmar.deployment.startup import startup as text_of

    deployment, context = _read(file, run_folder)
    config_name = deployment.server.config
    config = file.parent / (config_name or properties.FILE_NAME)
    base = dict(properties.read(config).values) if config_name or config.is_file() else {}
    index, archives = planning.archives(deployment, context.folder, context.model_store)
    typer.echo(text_of(deployment, archives, index, base), nl=False)


def deployment_schema() -> None:
    """Print the JSON Schema of deployment.yaml, for editors."""
    from torchmar.deployment import desired

    typer.echo(json.dumps(desired.schema(), indent=2))


def _read(file: Path, run_folder: Path | None) -> tuple[Deployment, DeploymentContext]:
    """Return the desired state in a file, and its server."""
    from torchmar.deployment import context, desired

    deployment = desired.read(file)
    return deployment, context.resolve(deployment.server, file.parent, run_folder)


def _plan(deployment: Deployment, context: DeploymentContext, gpus: str | None) -> Plan:
    from torchmar.deployment import planning
    from torchmar.deployment.gpu_sizes import parse

    sizes = parse(gpus) if gpus else None
    with err.status("reading the state of the server"):
        return planning.make(deployment, context, sizes)


def _show(plan: Plan) -> None:
    from torchmar.deployment.gpu_sizes import show

    for change in plan.changes:
        out.print(f"[{_COLORS[change.sign]}]{change.sign} {escape(change.what)}[/]")
        for line in change.lines:
            out.print(wrapped(line), markup=False)
    for number, gpu in enumerate(plan.gpus):
        workers = ", ".join(f"{name} x{count}" for name, count in gpu.workers) or "no workers"
        out.print(
            wrapped(f"GPU {number}  {show(gpu.used)} of {show(gpu.size)}  {workers}", "", "       "), markup=False
        )


def _summary(plan: Plan, file: Path) -> str:
    if not plan.actions:
        if plan.without_routes:
            return f"nothing else to do: but for its routes, the server is as {file} says"
        return (
            f"nothing that torchmar apply can do: workers of {', '.join(plan.failing)} do not answer"
            if plan.failing
            else f"nothing to do: the server is as {file} says"
        )
    from torchmar.deployment import actions

    counts: dict[str, int] = {}
    for action in plan.actions:
        # One action drains all versions at once.
        number = len(action.versions) if isinstance(action, actions.Drain) else 1
        counts[actions.verb(action)] = counts.get(actions.verb(action), 0) + number
    words = ", ".join(f"{verb} {count}" for verb, count in counts.items())
    return f"torchmar apply would {words}"


def _carry_out(plan: Plan, context: DeploymentContext, file: Path, ignored: Sequence[str]) -> Report:
    """Apply a plan, and print each step."""
    from torchmar.deployment import executor

    out.print()
    with err.status("") as status:

        def on_step(step: Step) -> None:
            if step.seconds is None:
                status.update(escape(f"{step.verb} {step.text}"))
            else:
                _show_step(step)

        try:
            return executor.apply(plan, context.endpoint, on_step, ignored_checks=ignored)
        except (KeyboardInterrupt, SystemExit):
            err.print(f"interrupted; torchmar plan {file} shows how the server differs now", markup=False)
            raise


def _check_done(rest: Plan) -> None:
    """Raise TorchmarError if the plan after all steps has further steps, or workers do not answer."""
    if rest.actions:
        _show(rest)
        raise TorchmarError("the server is not yet in its desired state", hint="torchmar apply continues from here")
    if rest.failing:
        raise TorchmarError(
            f"all is done, but workers of {', '.join(rest.failing)} do not answer",
            hint="torchmar logs shows the reason",
        )


def _show_step(step: Step) -> None:
    mark = "  [red]failed[/]" if step.failed else ""
    text = step.text.splitlines()[0]
    out.print(f"{step.verb:<10} {escape(text):<55} {step.seconds or 0:>6.1f} s{mark}")
    if step.note:
        out.print(wrapped(step.note, " " * 11, " " * 11), markup=False)


def _show_outcome(report: Report, folder: Path) -> None:
    from torchmar.deployment import actions
    from torchmar.engines import worker_log

    if report.failure:
        action = report.failed
        trace = ""
        if isinstance(action, actions.Register | actions.ScaleUp):
            trace = worker_log.traceback(folder, action.model, action.version)
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
