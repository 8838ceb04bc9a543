"""``torchmar bench NAME``: measure a server under load."""

from __future__ import annotations

import contextlib
import importlib.util
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from torchmar.atomic import write_text
from torchmar.cli.endpoint import ServerOptions, with_server_options
from torchmar.cli.options import WHERE, Address, AsJson, Config, ResponseTimeout, Version, check_folder, in_panel
from torchmar.cli.terminal import complain, err
from torchmar.engines import DEFAULT, TITLES, EngineName
from torchmar.errors import ConnectError, TorchmarError
from torchmar.load.kinds import Arrivals, Protocol

if TYPE_CHECKING:
    from torchmar.load.measuring import StepSpec
    from torchmar.load.results import Report
    from torchmar.load.target import Target
    from torchmar.load.workload import Workload

LOAD = "The load"
SERVER = "A server to start"
_DEFAULT_CONNECTIONS = (1, 8, 32)
_INTERRUPTED = 130
_NEEDED, _NEEDED_BY_GRPC = ("psutil",), ("google", "grpc", "hpack")  # packages of the extra
_LAST_S = 0.001  # seconds after the last request of a replay


def _numbers(text: str | None, option: str, kind: type) -> list[Any]:
    """Return the numbers of a list with commas."""
    if text is None:
        return []
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or any(not (math.isfinite(value) and value > 0) for value in values):
        expected = "whole numbers" if kind is int else "numbers"
        raise typer.BadParameter(f"{text!r}: give {expected} above 0, with commas between", param_hint=option)
    return values


@with_server_options
def measure(
    name: Annotated[
        str | None, typer.Argument(help="The model's name; with --archive the archive's.", show_default=False)
    ] = None,
    requests: Annotated[
        Path | None,
        typer.Option(
            help="The requests: an archive or the folder of a recipe, whose samples have expected answers; a folder of "
            "inputs, or one input. Default: the samples of --archive.",
            show_default=False,
        ),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            metavar="N,...",
            help="Requests a second, sent independently of the answers: an open loop. One step for each number.",
            show_default=False,
            rich_help_panel=LOAD,
        ),
    ] = None,
    connections: Annotated[
        str | None,
        typer.Option(
            metavar="N,...",
            help="Connections that each wait for an answer before the next request: a closed loop, in which a slow "
            "server gets fewer requests. One step for each number; 1,8,32 if no load is named.",
            show_default=False,
            rich_help_panel=LOAD,
        ),
    ] = None,
    replay: Annotated[
        Path | None,
        typer.Option(
            metavar="LOG",
            help="Send requests at the times at which an access log has requests for the model.",
            show_default=False,
            rich_help_panel=LOAD,
        ),
    ] = None,
    find_limit: Annotated[
        bool,
        typer.Option("--find-limit", help="Find the highest rate that the server holds.", rich_help_panel=LOAD),
    ] = False,
    arrivals: Annotated[
        Arrivals,
        typer.Option(help="The times between requests of an open loop.", rich_help_panel=LOAD),
    ] = "poisson",
    duration: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="Measured seconds of a step.", rich_help_panel=LOAD)
    ] = 10.0,
    warmup: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0, help="Load before each step that is not counted.", rich_help_panel=LOAD),
    ] = 2.0,
    timeout: Annotated[float, in_panel(ResponseTimeout, LOAD)] = 30.0,
    seed: Annotated[int, typer.Option(help="The seed of the times of Poisson arrivals.", rich_help_panel=LOAD)] = 0,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Request explanations instead of predictions.", rich_help_panel=LOAD),
    ] = False,
    protocol: Annotated[
        Protocol,
        typer.Option(
            metavar="PROTOCOL", help="torchserve: TorchServe's own API; kserve-v1, kserve-v2; grpc; grpc-v2: KServe's."
        ),
    ] = "torchserve",
    path: Annotated[
        str | None,
        typer.Option(
            metavar="/PATH",
            help="The path of requests: a route of the server, or a server with an API of its own.",
            show_default=False,
        ),
    ] = None,
    version: Version = None,
    as_json: AsJson = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the report as JSON, too.", show_default=False),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the report as a page with charts, which loads nothing.", show_default=False
        ),
    ] = None,
    engine: Annotated[
        EngineName | None,
        typer.Option(help="Start this server for the measurement.", show_default=False, rich_help_panel=SERVER),
    ] = None,
    archive: Annotated[
        Path | None,
        typer.Option(metavar="MAR", help="The archive that it serves.", show_default=False, rich_help_panel=SERVER),
    ] = None,
    config: Config = None,
    address: Annotated[
        str | None,
        in_panel(
            Address,
            WHERE,
            "The API's address; default: that of the run folder's server. With --engine ray: the head of the cluster, "
            "HOST:PORT; default: a cluster of this machine alone.",
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="The metrics API's address; default: that of the run folder's server.",
            show_default=False,
            rich_help_panel=WHERE,
        ),
    ] = None,
    server_pid: Annotated[
        int | None,
        typer.Option(
            metavar="PID",
            min=1,
            help="The process of a local server, if it is not the one that listens, as with containers.",
            show_default=False,
            rich_help_panel=WHERE,
        ),
    ] = None,
    *,
    server: ServerOptions,
) -> None:
    """Measure latency and throughput of a model under load.

    In an open loop, latency counts from the moment when a request was to be
    sent, so that a server that stalls cannot hide it. Answers are compared with
    the expected ones. A measurement that this client or other programs have
    spoiled is called invalid, and its figures are not printed.

    Exit code 1: a step is invalid, has wrong answers or no right one.
    """
    _require_packages(protocol)
    from torchmar.connection import RUN_FOLDER
    from torchmar.load import access_log, servers, workload
    from torchmar.load.measuring import StepSpec
    from torchmar.load.target import Target

    rates, counts = _steps(rate, connections, replay, find_limit=find_limit)
    _check_server(name, path, protocol, engine, archive, address)
    source = requests or archive
    if source is None:
        raise typer.BadParameter("name the requests: an archive, a folder of inputs or a file", param_hint="--requests")
    check_folder(output, "--output")
    check_folder(html, "--html")
    common = StepSpec(warmup_s=warmup, duration_s=duration, timeout_s=timeout, seed=seed, arrivals=arrivals)
    load = workload.read(source, explain=explain)
    with contextlib.ExitStack() as stack:
        if archive:
            with err.status(f"starting {TITLES[engine or DEFAULT]} with {archive.name}"):
                target = stack.enter_context(servers.started(engine or DEFAULT, archive, config, address))
            if name not in (None, target.model):
                raise typer.BadParameter(f"{archive} is the model {target.model}, not {name}", param_hint="NAME")
            target = replace(target, protocol=protocol, path=path)
        else:
            endpoint = server.endpoint("grpc_inference" if protocol.startswith("grpc") else "inference", address)
            model = cast("str", name)
            target = Target(endpoint=endpoint, model=model, version=version, protocol=protocol, path=path)
            target = servers.running(replace(target, pid=server_pid, metrics=metrics), server.run_folder or RUN_FOLDER)
        specs = [replace(common, rate=number) for number in rates]
        specs += [replace(common, kind="closed", connections=number) for number in counts]
        if replay:
            times = access_log.times(replay, target.model)
            specs = [replace(common, kind="replay", times=times, duration_s=times[-1] - times[0] + _LAST_S)]
        report, code = _run(target, load, common if find_limit else specs, rates[0] if rates else None)
    _write(report, output, html, as_json=as_json)
    bad_steps = [step for step in report.steps if not step.valid or step.wrong_answers or not step.throughput]
    raise typer.Exit(code or (1 if bad_steps else 0))


def _require_packages(protocol: Protocol) -> None:
    for module in (*_NEEDED, *(_NEEDED_BY_GRPC if protocol.startswith("grpc") else ())):
        if importlib.util.find_spec(module) is None:
            raise TorchmarError(f"{module} is not installed", hint="pip install 'torchmar[bench]'")


def _steps(
    rate: str | None, connections: str | None, replay: Path | None, *, find_limit: bool
) -> tuple[list[float], list[int]]:
    """Return the rates of open loops, the connections of closed loops, or the first rate of a search.

    Raises:
        typer.BadParameter: a number is wrong, or there are several kinds of load.
    """
    rates, counts = _numbers(rate, "--rate", float), _numbers(connections, "--connections", int)
    if not (rates or counts or replay or find_limit):
        counts = list(_DEFAULT_CONNECTIONS)
    if sum(map(bool, (rates and not find_limit, counts, replay, find_limit))) != 1 or (len(rates) > 1 and find_limit):
        raise typer.BadParameter(
            "give only one of --rate, --connections, --replay and --find-limit; with --find-limit, --rate is its first "
            "rate",
            param_hint="--rate",
        )
    return rates, counts


def _check_server(
    name: str | None,
    path: str | None,
    protocol: Protocol,
    engine: EngineName | None,
    archive: Path | None,
    address: str | None,
) -> None:
    """Check that the options name one server and one model.

    Raises:
        typer.BadParameter: the options name no server or model, or several.
    """
    if path is not None and (not path.startswith("/") or protocol != "torchserve"):
        raise typer.BadParameter("begins with /, and is for requests over HTTP", param_hint="--path")
    if engine and not archive:
        raise typer.BadParameter(f"a server that is started needs an archive: --engine {engine} --archive FILE.mar")
    if archive and address and engine != "ray":
        raise typer.BadParameter(
            "the server is started at a free port; only with --engine ray it is the head of a cluster",
            param_hint="--address",
        )
    if not archive and not name:
        raise typer.BadParameter("give the name of a model, or --engine and --archive", param_hint="NAME")


def _run(
    target: Target, load: Workload, specs: StepSpec | list[StepSpec], first_rate: float | None
) -> tuple[Report, int]:
    """Measure the steps, or search the limit from one step; return the report, and the exit code if that ended early.

    Raises:
        KeyboardInterrupt: no step has been measured yet.
        ConnectError: no step has been measured yet, and the server does not answer.
    """
    from torchmar.cli.bench_output import Display
    from torchmar.load.session import Session

    with Display() as display:
        session = Session(target, load, display.progress)
        display.begin(session)
        try:
            if isinstance(specs, list):
                session.run(specs)
            else:
                session.find_limit(replace(specs, rate=first_rate))
        except (KeyboardInterrupt, ConnectError) as error:
            if not session.steps:
                raise
            if isinstance(error, ConnectError):
                complain(error)
                return session.report(), 1
    return session.report(), 0 if session.complete else _INTERRUPTED


def _write(report: Report, output: Path | None, html: Path | None, *, as_json: bool) -> None:
    """Write the report to files and print it."""
    from torchmar.cli.bench_output import show
    from torchmar.load import html_report, results

    try:
        if output:
            results.write(report, output)
        if html:
            write_text(html_report.html(report), html)
    finally:  # a full disk must not cause the loss of the measurements
        if as_json:
            typer.echo(results.text(report), nl=False)
        else:
            show(report)
