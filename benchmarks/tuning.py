"""Tune three different archives, and measure their whole grids: is the optimum found, and how wrong are predictions?

The grid is small, so that it can be measured completely: all reasonable numbers of workers and threads, batches
of 1 and 16 (with TorchServe, delays of 1 and 10 ms). For the highest rate, each setting is measured at the rate of the
choice, then at rates that approach its limit, unless this is over 15 % lower; for the lowest latency, at the given
rate.
Settings that could be the best are measured again, in turns: until a limit is known within 3 %, or for the median of
three latencies. The same target, requests and server are used for both.

    python benchmarks/tuning.py [--cases digits imagenet iris digits-torchserve] [--grid-seconds 3]
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from harness.machine import processor

import torchmar
from torchmar.engines import EngineName
from torchmar.load import machine_use, workload
from torchmar.tuning.completed import Tuning
from torchmar.tuning.limits import Limit, limit
from torchmar.tuning.live_server import LiveServer
from torchmar.tuning.options import TuningOptions
from torchmar.tuning.profile import Profile
from torchmar.tuning.search import MOST_TRIALS
from torchmar.tuning.space import Setting, Space
from torchmar.tuning.target import Objective, Question, milliseconds, parse_target
from torchmar.tuning.trials import Trial, Verdict, numbers
from torchmar.tuning.tuner import Tuner

ROOT = Path(__file__).resolve().parents[1]
BATCHES = (1, 16)
WORSE = 0.85  # share of the highest rate: a setting that misses the target there is not measured further
NARROW = 1.03  # precision of the limits of settings that could be the best
MOST_AGAIN = 4  # further measurements of each of these settings
TURNS = 2  # turns in which the latencies of settings that could be the best are measured again
BUDGET = 300.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """An archive and a target; without a rate, the highest rate is searched."""

    archive: str
    target: str
    what: str
    rate: float | None = None
    engine: EngineName = "builtin"

    @property
    def question(self) -> Question:
        """The question of the tuning."""
        objective = Objective.LATENCY if self.rate else Objective.THROUGHPUT
        return Question(target=parse_target(self.target), objective=objective, rate=self.rate)


CASES = {
    "digits": Case(archive="digits", target="p99<25ms", what="small pictures: decoding and a small network"),
    "imagenet": Case(archive="imagenet", target="p99<250ms", what="photographs: a convolutional network"),
    "iris": Case(archive="iris", target="p99<15ms", what="four numbers: a tiny model"),
    "digits-torchserve": Case(
        archive="digits", target="p99<200ms", what="small pictures", rate=40, engine="torchserve"
    ),
}


class Silent:
    """Prints a line for each measurement."""

    def on_step(self, text: str) -> None:
        """Print nothing."""

    def on_profile(self, measured: Profile) -> None:
        """Print nothing."""

    def on_trial(self, trial: Trial, number: int) -> None:
        """Print the measurement."""
        print_trial(f"trial {number}", trial)


def main() -> int:
    """Tune, measure the grids, print both."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--grid-seconds", type=float, default=3.0, help="seconds of each measurement of the grid")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # ends the servers, too
    print(f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {version('torch')}")
    for name in options.cases:
        with tempfile.TemporaryDirectory(prefix="torchmar-tuning-") as folder:
            run(name, CASES[name], Path(folder), options.grid_seconds)
    return 0


def run(name: str, case: Case, folder: Path, seconds: float) -> None:
    """Tune one archive, then measure its grid."""
    goal = f"lowest latency at {case.rate:g}/s" if case.rate else "highest rate"
    print(f"\n{name}: {case.what}; {case.question.target}, {goal}, load average {os.getloadavg()[0]:.1f}\n", flush=True)
    built = torchmar.build(ROOT / "archives" / case.archive, folder)
    delays = (1, 10) if case.engine == "torchserve" else (0,)
    space = Space(cores=len(machine_use.cores()), batch_sizes=BATCHES, delays_ms=delays)
    tuner = Tuner(
        built.path,
        workload.read(built.path),
        case.question,
        TuningOptions(engine=case.engine, seconds=BUDGET, space=space),
        folder=folder,
        observer=Silent(),
    )
    started = time.monotonic()
    tuning = tuner.run()
    took = time.monotonic() - started
    settings = list(space.settings())
    # The measurements of the grid are short: at a low rate, they are compared by a lower percentile only.
    compared = case.question.target.comparable(int(case.rate * seconds)) if case.rate else case.question.target
    print(
        f"\nthe grid: {len(settings)} settings, compared by {compared.name}; tune: {tuning.compared.name}", flush=True
    )
    with LiveServer(
        case.engine,
        built.path,
        tuner.workload,
        case.question.target,
        choose_threads=True,
        seconds=seconds,
    ) as server:
        server.compared = compared
        measure = latencies if case.rate else highest_rates
        values = measure(server, tuning, case, settings)
    report(tuning, case, values, took)


def latencies(server: LiveServer, tuning: Tuning, case: Case, settings: Sequence[Setting]) -> dict[Setting, float]:
    """Return the latency of each setting that keeps the target, at the rate of the case."""
    assert case.rate
    found: dict[Setting, list[float]] = {}

    def measure(setting: Setting) -> None:
        assert case.rate
        # The prediction is of the statistic by which the tuning compared settings.
        same = server.compared == tuning.compared
        predicted = tuning.predictor.latency(setting, case.rate) if same else math.nan
        trial = server.measure(setting, case.rate, predicted, "search")
        print_trial("grid", trial)
        if trial.keeps(case.question.target) and trial.latency is not None:
            found.setdefault(setting, []).append(trial.latency)

    for setting in settings:
        measure(setting)
    best = min((times[0] for times in found.values()), default=0.0)
    again = [setting for setting in found if found[setting][0] <= best * 1.25 or setting == chosen(tuning)]
    for _ in range(TURNS):
        for setting in again:
            measure(setting)
    return {setting: statistics.median(times) for setting, times in found.items()}


def highest_rates(server: LiveServer, tuning: Tuning, case: Case, settings: Sequence[Setting]) -> dict[Setting, float]:
    """Return the highest rate of each setting that keeps the target at one rate, and may be the best."""
    target = case.question.target
    trials: dict[Setting, list[Trial]] = {setting: [] for setting in settings}

    def shown(setting: Setting) -> Limit:
        return limit(trials[setting], setting, target)

    def measure(setting: Setting, rate: float) -> None:
        trials[setting].append(server.measure(setting, rate, tuning.predictor.latency(setting, rate), "search"))

    def highest() -> float:
        return max(shown(setting).kept for setting in settings)

    best = tuning.result.best or tuning.result.nearest
    first = best.rate if best else 1.0
    for setting in settings:
        measure(setting, first)
        while not (shown(setting).known or shown(setting).missed < WORSE * max(first, highest())):
            measure(setting, shown(setting).next_rate(tuning.predictor.highest(setting).rate or first))
        found = shown(setting)
        text = f"{found.kept:,.0f} requests/s" if found.known else f"less than {found.missed:,.0f} requests/s"
        print(f"grid      {setting}: {text}", flush=True)
    for _ in range(MOST_AGAIN):
        wide = [setting for setting in settings if may_be_higher(shown(setting), highest(), setting == chosen(tuning))]
        if not wide:
            break
        for setting in wide:
            found = shown(setting)
            measure(setting, math.sqrt(found.kept * min(found.missed, 1.1 * found.kept)))
            print(f"again     {setting}: {shown(setting).kept:,.0f} requests/s", flush=True)
    return {setting: shown(setting).kept for setting in settings if shown(setting).kept}


def may_be_higher(found: Limit, highest: float, is_choice: bool) -> bool:
    """Return whether a limit is not known within 3 %, and may be the highest or belongs to the choice."""
    wide = found.kept > 0 and found.missed > NARROW * found.kept
    return wide and (found.missed > highest or is_choice)


def chosen(tuning: Tuning) -> Setting | None:
    """Return the chosen setting."""
    return tuning.result.best.setting if tuning.result.best else None


def report(tuning: Tuning, case: Case, known: dict[Setting, float], took: float) -> None:
    """Print the distance of the result from the best setting of the grid, and the errors of predictions."""
    best, choice = tuning.result.best, tuning.result.chosen
    if not known or best is None or choice is None:
        print("\nno setting keeps the target")
        return
    optimum = min(known, key=known.__getitem__) if case.rate else max(known, key=known.__getitem__)
    mine = known.get(best.setting)
    print(f"\noptimum of the grid    {optimum}: {shown(known[optimum], case)}")
    print(
        f"tune's choice          {best.setting}: {shown(choice.mean if case.rate else best.rate, case)} as tuned, ",
        end="",
    )
    print(f"{shown(mine, case)} in the grid" if mine else "not in the grid, or not within the target there")
    for each in tuning.result.equal:
        print(f"may be as good         {each.setting}: {shown(each.mean, case)} as tuned, ", end="")
        print(f"{shown(known.get(each.setting), case)} in the grid")
    checks: list[tuple[str, str, bool]] = []
    if mine:
        distance = mine / known[optimum] - 1 if case.rate else 1 - mine / known[optimum]
        checks.append(("distance from the optimum, 5 % at the most", f"{distance:.1%}", distance <= 0.05))
    trials = tuning.record.trials
    count = max(numbers(trials, case.question.objective))
    text = f"{count}, of {len(trials)} measurements" if count < len(trials) else str(count)
    checks.append((f"trials, {MOST_TRIALS} at the most", text, count <= MOST_TRIALS))
    checks.append(("seconds, 300 at the most", f"{took:.0f}", took <= BUDGET))
    misses = misses_of(trials, best.setting)
    if misses:
        worst = max(misses)
        checks.append(
            ("error of the predicted statistic for the choice, 20 % at the most", f"{worst:.0%}", worst <= 0.2)
        )
    all_misses = [abs(trial.miss) for trial in trials if trial.miss is not None and trial.purpose != "probe"]
    if all_misses:
        print(f"error of predictions   {statistics.median(all_misses):.0%} in the median of {len(all_misses)} measured")
    if tuning.result.noise is not None:
        noise = tuning.result.noise
        checks.append(("the choice twice, 5 % at the most or called noisy", f"{noise:.0%}, {called(noise)}", True))
    print(f"target                 {tuning.result.verdict.value}; missed in {missed(tuning)} of {len(trials)}")
    disturbed = sum(bool(trial.disturbances) for trial in trials)
    print(f"disturbed              {disturbed} of {len(trials)} measurements")
    for goal, found, met in checks:
        print(f"{'met   ' if met else 'MISSED'} {goal}: {found}", flush=True)


def missed(tuning: Tuning) -> int:
    """Return the number of measurements that missed the target."""
    return sum(trial.verdict(tuning.question.target) is Verdict.MISSED for trial in tuning.record.trials)


def misses_of(trials: Sequence[Trial], setting: Setting) -> list[float]:
    """Return the errors of the last predictions of a setting: after its refit, if there was one."""
    errors = [abs(t.miss) for t in trials if t.setting == setting and t.miss is not None and t.purpose != "probe"]
    return errors[-1:]


def called(noise: float) -> str:
    """Return the word for a difference of two measurements."""
    return "repeatable" if noise <= 0.05 else "called noisy"


def shown(each: float | None, case: Case) -> str:
    """Return a value of a setting."""
    if each is None:
        return "-"
    return milliseconds(each) if case.rate else f"{each:,.0f} requests/s"


def print_trial(label: str, trial: Trial) -> None:
    """Print a trial."""
    latency = "no answer" if trial.latency is None else milliseconds(trial.latency)
    predicted = "saturated" if math.isinf(trial.predicted) else milliseconds(trial.predicted)
    predicted = "" if math.isnan(trial.predicted) else f", predicted {predicted}"
    if trial.statistic not in ("", "p99"):
        latency = f"{trial.statistic} {latency}"
    note = f"  ({'; '.join(trial.disturbances)})" if trial.disturbances else ""
    print(f"{label:9} {trial.setting}, {trial.rate:,.0f}/s: {latency}{predicted}{note}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
