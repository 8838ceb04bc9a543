"""Measure goodput beyond the rate that a server holds: answers in time, with and without deadlines, and TorchServe.

The rate that the built-in server holds is measured with a closed loop of two full batches. Then each side gets the same
archive and Poisson arrivals at multiples of this rate (`torchmar bench`'s own core, an open loop). An answer counts
as good if it is right and comes before the deadline, three times the time of a full batch. With deadlines, each request
has the header x-request-timeout-ms, and the built-in server rejects those that it could not answer in time; the other
sides serve what their queues admit. Answers are compared under load, and a step that the client or the machine spoiled
is marked.

    scripts/bench overload [--archive archives/imagenet] [--times 0.7 1 1.5 3] [--seconds 20]
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from harness.machine import processor

from torchmar import properties
from torchmar.cli.terminal import show_table, table
from torchmar.engines.addresses import free_addresses
from torchmar.engines.builtin import Builtin
from torchmar.engines.engine import Engine
from torchmar.engines.server_records import ServerRecord
from torchmar.engines.torchserve import TorchServe
from torchmar.load import expectations, workload
from torchmar.load.histogram import bucket_range
from torchmar.load.measuring import StepSpec, measure
from torchmar.load.results import Step
from torchmar.load.target import Target
from torchmar.load.workload import Workload

_ROOT = Path(__file__).parent.parent
_BATCHES, _DEADLINE = 2, 3  # of the closed loop; in times of a full batch
_HEADER = "x-request-timeout-ms"


@dataclass(frozen=True)
class Side:
    """A server to measure, and whether its requests have deadlines."""

    title: str
    engine: type[Engine]
    deadlines: bool


SIDES = (
    Side("built-in, deadlines", Builtin, True),
    Side("built-in", Builtin, False),
    Side("TorchServe", TorchServe, False),
)


def main() -> int:
    """Measure, and print a table with all sides and rates; exit 1 if a goal of the side with deadlines is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--archive", type=Path, default=_ROOT / "archives" / "imagenet", help="the folder of a recipe")
    parser.add_argument("--batch", type=int, default=8, help="the batch size of the recipe")
    parser.add_argument("--times", type=float, nargs="+", default=[0.7, 1.0, 1.5, 3.0], help="of the rate that holds")
    parser.add_argument("--seconds", type=float, default=20.0, help="of load, for each figure")
    options = parser.parse_args()
    print(f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"{options.archive.name}; load average {os.getloadavg()[0]:.1f}")
    requests = workload.read(options.archive)
    requests = Workload(requests.source, tuple(case for case in requests.cases if _is_good(case)))
    with tempfile.TemporaryDirectory(prefix="overload-") as home:
        build = [sys.executable, "-m", "torchmar", "build", str(options.archive), "--store", f"{home}/store"]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
        with _serving(SIDES[0], Path(home)) as target:
            rate, deadline_s = _limits(target, requests, options.batch, options.seconds)
        print(f"holds {rate:.1f} requests/s; deadline {deadline_s * 1e3:.0f} ms\n")
        steps = {}
        for side in SIDES:
            with _serving(side, Path(home)) as target:
                steps[side.title] = _measure(side, target, requests, rate, deadline_s, options.times, options.seconds)
    return _report(steps, options.times, deadline_s)


def _is_good(case: workload.Case) -> bool:
    return case.sample is None or case.sample.status == 200


@contextmanager
def _serving(side: Side, home: Path) -> Iterator[Target]:
    """Serve the one archive of the store, at free ports."""
    values = {**properties.read(_ROOT / "config.properties").values, **free_addresses()}
    (home / "config.properties").write_text(properties.show(values))
    (archive,) = (home / "store").glob("*.mar")
    with side.engine(home / "config.properties", home / "store", home / "run") as engine:
        model = engine.load(archive)
        record = ServerRecord.find(home / "run")
        pid = record.pid if record else None
        yield Target(endpoint=engine.server, model=model.name, engine=side.engine.name, pid=pid)


def _limits(target: Target, requests: Workload, batch: int, seconds: float) -> tuple[float, float]:
    """Return the rate that the server holds, and the deadline in seconds."""
    expected = expectations.gather(target, requests)

    def closed(connections: int) -> Step:
        spec = StepSpec(kind="closed", connections=connections, warmup_s=5, duration_s=seconds)
        return measure(target, requests, expected, spec)

    one_batch = closed(batch).latency_ms
    if one_batch is None:
        sys.exit("the server gave no right answer")
    return closed(_BATCHES * batch).throughput, _DEADLINE * one_batch.p50 / 1e3


def _measure(
    side: Side,
    target: Target,
    requests: Workload,
    rate: float,
    deadline_s: float,
    times: Sequence[float],
    seconds: float,
) -> list[Step]:
    expected = expectations.gather(target, requests)
    if side.deadlines:
        header = {_HEADER: f"{deadline_s * 1e3:.0f}"}
        cases = (
            replace(case, request=replace(case.request, headers={**case.request.headers, **header}))
            for case in requests.cases
        )
        requests = replace(requests, cases=tuple(cases))
    return [
        measure(target, requests, expected, StepSpec(rate=rate * factor, warmup_s=5, duration_s=seconds))
        for factor in times
    ]


def _goodput(step: Step, deadline_s: float) -> float:
    """Return the answers in time, per second."""
    buckets = step.histogram.buckets
    within = sum(count for index, count in buckets if bucket_range(index)[1] <= deadline_s * 1e6)
    return step.throughput * within / max(1, step.histogram.count)


def _report(steps: dict[str, list[Step]], times: Sequence[float], deadline_s: float) -> int:
    rows, missed = [], []
    for title, measured in steps.items():
        goodputs = [_goodput(step, deadline_s) for step in measured]
        best = max(goodputs)
        for factor, step, goodput in zip(times, measured, goodputs, strict=True):
            p99 = step.latency_ms.p99 if step.latency_ms else float("nan")
            notes = [*step.invalid_reasons, *([f"{step.wrong_answers} wrong answers"] if step.wrong_answers else [])]
            rows.append(
                (
                    title,
                    f"{factor:g}",
                    f"{goodput:.1f}",
                    f"{goodput / best:.0%}" if best else "-",
                    f"{step.failed / max(1, step.sent):.0%}",
                    f"{p99:.0f} ms",
                    "; ".join(notes),
                )
            )
            if title == SIDES[0].title and factor > 1 and (goodput < 0.95 * best or p99 > deadline_s * 1e3):
                missed.append(f"{factor:g} times the rate: {goodput / best:.0%} of the best, p99 {p99:.0f} ms")
    heads = ("side", "times the rate", "good answers/s", "of its best", "rejected", "p99 of answers", "spoiled by")
    show_table(table(heads, rows))
    for line in missed:
        print(f"goal missed: {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
