"""The command that finds workers, threads and batch size for a latency target."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from torchmar import byte_sizes
from torchmar.atomic import write_text
from torchmar.cli.options import ArchiveOrRecipe, AsJson, Budget, Engine, Head, check_folder
from torchmar.cli.progress import StepLine
from torchmar.cli.terminal import err, out, show_table, table, wrapped
from torchmar.engines import DEFAULT, TITLES
from torchmar.errors import TorchmarError

if TYPE_CHECKING:
    from torchmar.tuning.completed import Tuning
    from torchmar.tuning.profile import Profile
    from torchmar.tuning.target import Question, Target
    from torchmar.tuning.trials import Trial

_RECORDS = "tune"  # subfolder of the run folder
_PURPOSES = {"probe": "first", "again": "again", "repeat": "again"}  # names in the table


def tune(
    archive: ArchiveOrRecipe,
    slo: Annotated[
        str,
        typer.Option(
            metavar="TARGET",
            help="The latency target: p99<50ms. Also mean, p50, p90, p95, p999, and us or s.",
            show_default=False,
        ),
    ],
    rate: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            min=0.001,
            help="Requests per second: find the lowest latency at this rate.",
            show_default=False,
        ),
    ] = None,
    max_throughput: Annotated[
        bool, typer.Option("--max-throughput", help="Find the highest rate within the target; the default.")
    ] = False,
    cheapest: Annotated[
        bool, typer.Option("--cheapest", help="With --rate: find the least memory that keeps the target.")
    ] = False,
    engine: Engine = DEFAULT,
    head: Head = None,
    requests: Annotated[
        Path | None,
        typer.Option(help="A folder or file of inputs; default: the archive's samples.", show_default=False),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="The memory that the server may use: 8GiB.", show_default=False),
    ] = None,
    budget: Budget = "5m",
    trial: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="The time of each measurement; default: 10s, or longer if the percentile requires it.",
            show_default=False,
        ),
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Set the result in the recipe, with the evidence beside it.")
    ] = False,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw all settings, by rate and latency, as SVG.", show_default=False),
    ] = None,
    anew: Annotated[
        bool, typer.Option("--anew", help="Measure again, even if an earlier run has recorded results.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find the number of workers, the threads and the batch size for a latency target.

    Batches are timed in a worker, all settings are predicted by simulation, and
    the few that could be the best are measured on a separate server. A run
    that was interrupted continues where it ended. Exit code 1: no setting
    keeps the target.
    """
    from torchmar import recipe
    from torchmar.connection import RUN_FOLDER
    from torchmar.load import workload
    from torchmar.tuning import evidence, front_picture, recipe_writing
    from torchmar.tuning.options import TuningOptions
    from torchmar.tuning.target import parse_duration
    from torchmar.tuning.tuner import Tuner

    question = _question(slo, rate, max_throughput, cheapest, memory)
    seconds = parse_duration(budget)
    if head and engine != "ray":
        raise typer.BadParameter("only --engine ray has a cluster", param_hint="--address")
    is_recipe = recipe.is_recipe(archive)
    if write and not is_recipe:
        raise typer.BadParameter(f"{archive} is no recipe, which the result could be written to", param_hint="--write")
    if not archive.exists():
        raise TorchmarError(f"{archive} does not exist", hint="name a .mar file, or a recipe or its folder")
    check_folder(picture, "--picture")
    if write:
        check_folder(recipe.file_of(archive), "--write")
    with _built(archive, is_recipe) as path, _Display(question.target) as display:
        tuner = Tuner(
            path,
            workload.read(requests or path),
            question,
            TuningOptions(
                engine=engine, seconds=seconds, trial_seconds=parse_duration(trial) if trial else None, head=head
            ),
            folder=RUN_FOLDER / _RECORDS,
            observer=display,
            anew=anew,
        )
        if tuner.continued and not as_json:
            number = len(tuner.record.trials)
            reused = f"profiles and {number} measurement{'s' * (number != 1)}" if number else "profiles"
            err.print(f"{reused} of an earlier run are used ({tuner.path}); --anew measures again", markup=False)
        try:
            tuning = tuner.run()
        except KeyboardInterrupt:
            err.print(f"interrupted; the same command continues ({tuner.path})", markup=False)
            raise
    if as_json:
        typer.echo(evidence.text(tuning), nl=False)
    else:
        _show(tuning)
    if picture:
        write_text(front_picture.draw(tuning), picture)
        err.print(f"wrote {picture}", markup=False)
    if write and tuning.result.best:
        for file in recipe_writing.write(tuning, archive):
            err.print(f"wrote {file}", markup=False)
    raise typer.Exit(0 if tuning.result.best else 1)


def _question(slo: str, rate: float | None, max_throughput: bool, cheapest: bool, memory: str | None) -> Question:
    from torchmar.tuning.target import Objective, Question, parse_target

    if max_throughput and (rate or cheapest):
        raise typer.BadParameter("does not go together with --rate or --cheapest", param_hint="--max-throughput")
    if cheapest and not rate:
        raise typer.BadParameter("needs --rate: the least memory for how many requests?", param_hint="--cheapest")
    objective = Objective.COST if cheapest else Objective.LATENCY if rate else Objective.THROUGHPUT
    try:
        limit = byte_sizes.parse(memory) if memory else None
    except ValueError as error:
        raise TorchmarError(f"--memory: {memory!r} is {error}") from None
    return Question(target=parse_target(slo), objective=objective, rate=rate, memory=limit)


@contextlib.contextmanager
def _built(archive: Path, is_recipe: bool) -> Iterator[Path]:
    """Yield the archive, which is built if it is a recipe."""
    if not is_recipe:
        yield archive
        return
    from torchmar.archive import build

    with tempfile.TemporaryDirectory(prefix="torchmar-tune-") as folder:
        yield build(archive, Path(folder)).path


class _Display(StepLine):
    """The progress of a tuning: the current step, and a line for each trial."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._others = 0.0  # cores that other programs used; the profiles that were measured in turn have the same

    def on_profile(self, measured: Profile) -> None:
        from torchmar.tuning.profile import DRIFT

        self.on_step("")
        if measured.others > 0.3 and measured.others != self._others:
            self._others = measured.others
            err.print(f"[yellow]warning:[/] other programs used {measured.others:.1f} cores meanwhile")
        if abs(measured.drift) > DRIFT:
            threads = f"{measured.threads} thread{'s' * (measured.threads != 1)}"
            err.print(
                f"[yellow]warning:[/] the time of batches with {threads} changed by {measured.drift:+.0%} meanwhile: "
                "the machine is not steady"
            )

    def on_trial(self, trial: Trial, number: int) -> None:
        from torchmar.tuning.target import milliseconds
        from torchmar.tuning.trials import Verdict

        self.on_step("")
        name = trial.statistic or self._target.name
        latency = "no answer" if trial.latency is None else f"{name} {milliseconds(trial.latency)}"
        verdict = trial.verdict(self._target)
        failure = "" if verdict is Verdict.KEPT else f", {self._target} {verdict.value}"
        err.print(f"trial {number}: {trial.setting}: {latency} at {trial.rate:,.4g}/s{failure}", markup=False)


def _show(tuning: Tuning) -> None:
    from torchmar.tuning.explanation import explain
    from torchmar.tuning.target import Objective, milliseconds

    question, machine = tuning.question, tuning.machine
    out.print(
        f"{tuning.name} {tuning.version} on {TITLES[tuning.engine]}; {machine.processor}, {machine.cores} cores, torch "
        f"{tuning.torch}",
        markup=False,
    )
    goals = {
        Objective.THROUGHPUT: "the highest rate",
        Objective.LATENCY: f"the lowest latency at {question.rate or 0:g} requests/s",
        Objective.COST: f"the least memory at {question.rate or 0:g} requests/s",
    }
    if room := tuning.record.cluster:
        nodes = f"{room.nodes} node{'s' * (room.nodes != 1)}"
        out.print(f"cluster: {nodes}, room for {room.replicas[0][1]} replicas with 1 CPU", markup=False)
    out.print(f"target: {question.target}; {goals[question.objective]}", markup=False)
    if tuning.compared != question.target:
        text = f"compared by {tuning.compared.name}: trials have too few requests for {question.target.name}"
        out.print(text, markup=False)
    out.print()
    rows = []
    for profile in tuning.record.profiles:
        smallest, largest = profile.times[0], profile.times[-1]
        rows.append(
            (
                f"{profile.threads}{' + GPU' if profile.gpu else ''}",
                milliseconds(smallest.mean),
                f"{largest.size} in {milliseconds(largest.mean)}",
                f"{max(times.size / times.mean for times in profile.times):,.0f}/s",
                f"{profile.memory / 2**20:,.0f} MiB",
            )
        )
    headings = ("threads", "one request", "largest batch", "at the most", "memory")
    show_table(table(headings, rows, right=headings))
    out.print()
    show_table(
        table(
            _headings(tuning),
            _rows(tuning),
            right=_headings(tuning)[:-1],
        )
    )
    out.print()
    _show_result(tuning)
    for reason in explain(tuning):
        out.print(wrapped(reason, "- ", "  "), markup=False)


def _headings(tuning: Tuning) -> tuple[str, ...]:
    extra = (
        ("delay",)
        if tuning.engine == "torchserve"
        else ("stages",)
        if any(trial.setting.preprocess for trial in tuning.record.trials)
        else ()
    )
    return ("", "workers\nx threads", "batch", *extra, "rate", "predicted", tuning.compared.name, "target")


def _rows(tuning: Tuning) -> list[tuple[str, ...]]:
    """Return a row for each measurement; the first row of a trial has its number and its setting."""
    from torchmar.tuning.trials import numbers

    trials, rows, last = tuning.record.trials, [], 0
    for number, trial in zip(numbers(trials, tuning.question.objective), trials, strict=True):
        rows.append(_row(tuning, str(number) if number != last else "", trial))
        last = number
    return rows


def _row(tuning: Tuning, number: str, trial: Trial) -> tuple[str, ...]:
    from torchmar.tuning.target import milliseconds

    setting, target = trial.setting, tuning.question.target
    extra: tuple[str, ...] = ()
    if tuning.engine == "torchserve":
        extra = (f"{setting.delay_ms} ms",)
    elif "stages" in _headings(tuning):
        extra = (str(setting.preprocess or ""),)
    blanks = ("",) * (2 + len(extra))
    notes = [trial.verdict(target).value]
    if trial.purpose in _PURPOSES:
        notes.append(_PURPOSES[trial.purpose])
    predicted = "saturated" if trial.predicted == float("inf") else milliseconds(trial.predicted)
    return (
        number,
        *((f"{setting.workers} x {setting.threads}", str(setting.batch_size), *extra) if number else blanks),
        f"{trial.rate:,.0f}" if trial.rate >= 10 else f"{trial.rate:.2f}",
        predicted,
        "no answer" if trial.latency is None else milliseconds(trial.latency),
        ", ".join(notes) + (" *" if trial.disturbances else ""),
    )


def _show_result(tuning: Tuning) -> None:
    from torchmar.tuning.target import milliseconds
    from torchmar.tuning.trials import Verdict

    best, nearest, target = tuning.result.best, tuning.result.nearest, tuning.question.target
    if best:
        assert tuning.result.chosen
        latency = milliseconds(tuning.result.chosen.mean)
        memory = f", {best.memory / 2**20:,.0f} MiB" if best.memory else ""
        out.print(f"[bold]{escape(str(best.setting))}[/]")
        figures = f"{best.rate:,.4g} requests/s with {tuning.compared.name} {latency}{memory}"
        out.print(f"{figures}, found in {tuning.seconds:.0f} s\n", markup=False)
        if tuning.result.verdict is Verdict.UNPROVEN:
            err.print(f"[yellow]warning:[/] whether it keeps {escape(str(target))} is not shown: too few requests")
        return
    wanted_rate = tuning.question.rate or 0.0
    if any(trial.keeps(target) and trial.rate >= 0.99 * wanted_rate for trial in tuning.record.trials):
        err.print(f"[red]error:[/] no setting kept {escape(str(target))} each time that it was measured")
        err.print("[cyan]hint:[/] measure on a quieter machine, with --anew, or give a lower rate with --rate")
        return
    err.print(f"[red]error:[/] no setting keeps {escape(str(target))}")
    if nearest and nearest.latency:
        err.print(
            f"the best that was measured: {tuning.compared.name} {milliseconds(nearest.latency)} at "
            f"{nearest.rate:,.4g} requests/s, with {nearest.setting}",
            markup=False,
        )
