"""Commands on desired state: what a server should serve, and how it gets there."""

from __future__ import annotations

import json
import sys
import textwrap
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from torchmar.cli.connection_options import CaFile, PlainHttp
from torchmar.cli.operating import complain_of_failing
from torchmar.cli.options import WHERE, Address, Check, KeyFile, Name, RunFolder
from torchmar.cli.terminal import complain, err, out, show_table, table
from torchmar.errors import TorchmarError

if TYPE_CHECKING:
    from torchmar.connection import Server
    from torchmar.deployment.desired import Deployment
    from torchmar.deployment.evidence import Evidence
    from torchmar.deployment.plan import Plan
    from torchmar.deployment.steps import Report, Step

PANEL = "Deployment"
DIFFERENCE = 2  # exit code of plan when there is something to do

File = Annotated[Path, typer.Argument(metavar="FILE", help="The desired state.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
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

    + is added, ~ changed, - removed; ! is not as it should be, and apply does nothing about it.
    Exit code 2: there is something to do. 1: there is not, but workers do not answer.
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
    as_json: AsJson = False,
    gpus: Gpus = None,
    run_folder: RunFolder = None,
) -> None:
    """Make a server what it should be, without losing a request.

    A new version gets its workers and has to answer its samples before it becomes the
    default; the old one answers what it had before it goes. When something fails, all goes back.
    """
    from torchmar.deployment import gather, steps

    deployment = _read(file)
    made = _plan(deployment, file, gpus, run_folder)
    where = gather.server(deployment.server, file.parent, run_folder)
    if not as_json:
        _show(made)
    if not made.actions:
        if as_json:
            typer.echo(json.dumps(_document(steps.Report()), indent=2))
        else:
            out.print(_summary(made, file), markup=False)
            complain_of_failing(_runs_in(deployment, file, run_folder))
        raise typer.Exit(int(bool(made.failing)))
    if as_json:
        report = steps.apply(made, where, verify=check)
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
                report = steps.apply(made, where, watch, verify=check)
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
    from torchmar.deployment import gather, live, shelf
    from torchmar.deployment.capture import capture as written
    from torchmar.deployment.desired import ServerPlace

    where = server("management", address, run_folder, key_file, ca_file, allow_plain_http)
    found = live.read(where)
    if not found:
        raise TorchmarError("the server has no models to write down", hint="torchmar register ARCHIVE adds one")
    store = model_store or gather.model_store(ServerPlace(), Path(), run_folder)
    place = {"run_folder": str(run_folder)} if run_folder else {}
    place |= {"management": address} if address else {}
    place |= {"key_file": str(key_file)} if key_file else {}
    place |= {"model_store": str(model_store)} if model_store else {}
    typer.echo(written(found, shelf.read(store, found), place), nl=False)


def rollback(
    name: Name,
    to: Annotated[
        str | None,
        typer.Option(metavar="VERSION", help="Default: the newest that is older and has workers.", show_default=False),
    ] = None,
    run_folder: RunFolder = None,
    address: Address = None,
    key_file: KeyFile = None,
    ca_file: CaFile = None,
    allow_plain_http: PlainHttp = False,
) -> None:
    """Make the version before the default again, at once."""
    from torchmar.cli.connection_options import server
    from torchmar.deployment import rollback as back
    from torchmar.management import ManagementClient

    where = server("management", address, run_folder, key_file, ca_file, allow_plain_http)
    with ManagementClient(where) as client:
        done = back.rollback(client, name, to)
        out.print(f"{name} is back at {done.after} (it was {done.before})", markup=False)
        if done.workers_after < done.workers_before:
            with err.status(f"starting {done.workers_before} workers in place of {done.workers_after}"):
                back.reinforce(client, done)
            out.print(f"{name} {done.after} has {done.workers_before} workers, as {done.before} had", markup=False)
    err.print(f"deployment.yaml may still say {done.before}: change its default before the next apply", markup=False)


def promote(
    name: Name,
    version: Annotated[str, typer.Argument(help="A registered version with workers.", show_default=False)],
    against_current: Annotated[
        bool, typer.Option("--against-current", help="Only if it is shown to be as good as the default one.")
    ] = False,
    requests: Annotated[
        Path | None,
        typer.Option(help="A folder of requests; default: the samples in the archive.", show_default=False),
    ] = None,
    max_regression: Annotated[
        str, typer.Option(metavar="SHARE", help="How much slower its median answer may be.")
    ] = "5%",
    answers: Annotated[
        str,
        typer.Option(help="What is the same answer: exact, an absolute tolerance (0.01), or FILE.py:FUNCTION."),
    ] = "exact",
    max_differences: Annotated[
        str, typer.Option(metavar="SHARE", help="How many requests may be answered otherwise.")
    ] = "0%",
    repeat: Annotated[
        int | None,
        typer.Option(min=1, help="Pairs of timed answers for each request; default: 200 in all.", show_default=False),
    ] = None,
    as_json: AsJson = False,
    run_folder: RunFolder = None,
    key_file: KeyFile = None,
    ca_file: CaFile = None,
    allow_plain_http: PlainHttp = False,
    inference: Annotated[
        str | None, typer.Option(metavar="URL", help="The API's address.", show_default=False, rich_help_panel=WHERE)
    ] = None,
    management: Annotated[
        str | None, typer.Option(metavar="URL", help="The API's address.", show_default=False, rich_help_panel=WHERE)
    ] = None,
    model_store: Annotated[
        Path | None,
        typer.Option(help="Where the archive lies; default: what the run folder says.", show_default=False),
    ] = None,
) -> None:
    """Make a version the default if it does what it should.

    It has to answer its samples. With --against-current it and the default version get the same
    requests in turn: it has to answer alike, and its median must not be slower than allowed, with
    95 % confidence. Anything but a pass changes nothing.
    """
    from torchmar.cli.connection_options import server
    from torchmar.deployment import evidence, gather, live, trial
    from torchmar.deployment.desired import ServerPlace
    from torchmar.management import ManagementClient

    where = server("management", management, run_folder, key_file, ca_file, allow_plain_http)
    where = replace(where, inference=inference) if inference else where
    regression, allowed, agree = _share(max_regression), _share(max_differences), evidence.agreement(answers)
    with ManagementClient(where) as client:
        model = live.read_model(client, name)
        _refuse_promotion(model, version)
        there = model.versions[version]
        store = model_store or gather.model_store(ServerPlace(), Path(), run_folder)
        archive = store / there.url if store and (store / there.url).exists() else None
        asked = trial.questions(archive, None)
        timeout = there.response_timeout + 5.0
        with err.status(f"asking {name} {version} its samples"):
            at_once = min(16, there.batch_size * len(there.workers))
            tried = trial.hold(
                where, name, version, asked, warm_up=20, at_once=at_once, max_latency=None, timeout=timeout
            )
        if not as_json:
            out.print(f"{name} {version}: {tried.show()}", markup=False)
        found = None
        if against_current:
            asked = trial.questions(None, requests) if requests else asked
            pairs = repeat or max(3, -(-200 // max(1, len(asked))))
            with err.status(f"asking {name} {model.default} and {version} in turn"):
                found = evidence.compare(
                    where,
                    name,
                    model.default,
                    version,
                    asked,
                    agree,
                    repeat=pairs,
                    max_regression=regression,
                    max_differences=allowed,
                    timeout=timeout,
                )
            if not as_json:
                _show_evidence(found)
        passed = found is None or found.verdict == "pass"
        if passed:
            client.set_default(name, version)
    if as_json:
        typer.echo(json.dumps(_evidence_document(name, version, model.default, found, passed), indent=2))
    elif passed:
        out.print(f"{name} {version} is the default now; torchmar rollback {name} goes back to {model.default}")
        err.print(f"deployment.yaml may still say {model.default}: change its default before the next apply")
    if not passed:
        raise typer.Exit(1)


def startup(file: File = _DEFAULT, run_folder: RunFolder = None) -> None:
    """Print the config.properties with which a restarted server comes up the same.

    It is server: config of the deployment, or else the config.properties beside it, and the models.
    """
    from torchmar import properties
    from torchmar.deployment import gather
    from torchmar.deployment.startup import startup as written

    deployment = _read(file)
    named = deployment.server.config
    config = file.parent / (named or gather.CONFIG)
    base = dict(properties.read(config).values) if named or config.is_file() else {}
    store = gather.model_store(deployment.server, file.parent, run_folder)
    there, chosen = gather.archives(deployment, file.parent, store)
    typer.echo(written(deployment, chosen, there, base), nl=False)


def deployment_schema() -> None:
    """Print the JSON Schema of deployment.yaml, for editors."""
    from torchmar.deployment import desired

    typer.echo(json.dumps(desired.schema(), indent=2))


def _read(file: Path) -> Deployment:
    from torchmar.deployment import desired

    return desired.read(file)


def _plan(deployment: Deployment, file: Path, gpus: str | None, run_folder: Path | None) -> Plan:
    from torchmar.deployment import gather
    from torchmar.deployment.gpus import parse

    where: Server = gather.server(deployment.server, file.parent, run_folder)
    store = gather.model_store(deployment.server, file.parent, run_folder)
    with err.status("asking the server"):
        return gather.make(deployment, file.parent, where, store, parse(gpus) if gpus else None)


def _show(made: Plan) -> None:
    from torchmar.deployment.gpus import show

    for change in made.changes:
        out.print(f"[{_COLORS[change.sign]}]{change.sign} {escape(change.what)}[/]")
        for line in change.lines:
            out.print(_wrapped(line), markup=False)
    for number, gpu in enumerate(made.gpus):
        there = ", ".join(f"{name} x{count}" for name, count in gpu.workers) or "nothing"
        out.print(_wrapped(f"GPU {number}  {show(gpu.used)} of {show(gpu.size)}  {there}", "", "       "), markup=False)


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
    out.print(f"{step.verb:<9} {escape(text):<56} {step.seconds or 0:>6.1f} s{mark}")
    if step.note:
        out.print(_wrapped(step.note, " " * 10, " " * 10), markup=False)


def _show_outcome(report: Report, folder: Path) -> None:
    from torchmar.deployment import actions
    from torchmar.engines import worker_log

    if report.failure:
        failed = report.failed
        trace = ""
        if isinstance(failed, actions.Register | actions.Grow):
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

    told = deployment.server.run_folder
    return run_folder or (file.parent / told if told else RUN_FOLDER)


def _refuse_promotion(model: object, version: str) -> None:
    from torchmar.deployment.live import LiveModel

    assert isinstance(model, LiveModel)
    if version not in model.versions:
        raise TorchmarError(
            f"{model.name} {version} is not registered; {', '.join(model.versions)} are",
            hint=f"torchmar register {model.name}-{version}.mar",
        )
    if version == model.default:
        raise TorchmarError(f"{model.name} {version} is the default already")
    if not model.versions[version].ready:
        raise TorchmarError(
            f"{model.name} {version} has no workers that answer",
            hint=f"torchmar scale {model.name} 1 --version {version}",
        )


def _show_evidence(found: Evidence) -> None:
    from torchmar.deployment.evidence import percentile

    rows = []
    for version, took in zip((found.old, found.new), found.milliseconds, strict=True):
        shares = [f"{percentile(took, share):.2f}" for share in (0.5, 0.9, 0.99)]
        rows.append((version, str(len(took)), *shares))
    headings = ("version", "answers", "median ms", "90 % ms", "99 % ms")
    show_table(table(headings, rows, right=headings[1:]))
    different = len(found.differences)
    out.print(f"answers    {found.asked - different} of {found.asked} requests agree", markup=False)
    for line in found.differences[:5]:
        out.print(_wrapped(line, " " * 11, " " * 13), markup=False)
    if different > 5:
        out.print(f"           and {different - 5} more", markup=False)
    quotient = found.quotient
    out.print(
        f"median     {quotient.value:.3f} times that of {found.old} "
        f"({quotient.low:.3f} to {quotient.high:.3f} with 95 % confidence)",
        markup=False,
    )
    color = "green" if found.verdict == "pass" else "red"
    why = {
        "pass": f"at the most {1 + found.max_regression:.3f} times is allowed",
        "answers differ": f"{found.allowed} different answers are allowed",
        "slower": f"at the most {1 + found.max_regression:.3f} times is allowed",
        "undecided": f"{1 + found.max_regression:.3f} times is inside; more --repeat tells more",
    }[found.verdict]
    out.print(f"verdict    [{color}]{found.verdict}[/]: {escape(why)}")


def _evidence_document(
    name: str, version: str, before: str, found: Evidence | None, promoted: bool
) -> dict[str, object]:
    document: dict[str, object] = {"model": name, "version": version, "before": before, "promoted": promoted}
    if found:
        document |= {
            "verdict": found.verdict,
            "asked": found.asked,
            "differences": list(found.differences),
            "quotient_of_medians": asdict(found.quotient),
            "milliseconds": {found.old: found.milliseconds[0], found.new: found.milliseconds[1]},
        }
    return document


def _share(text: str) -> float:
    try:
        value = float(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise typer.BadParameter(f"{text!r} is no share: 5%, or 0.05")
    return value


def _wrapped(text: str, first: str = "    ", then: str = "    ") -> str:
    """Return a text that fits the terminal; in a pipe a line stays a line."""
    if not sys.stdout.isatty():
        return first + text
    return textwrap.fill(text, max(40, out.width), initial_indent=first, subsequent_indent=then)
