"""Measure goodput beyond a server's highest rate: answers in time, with and without deadlines, and for TorchServe.

The highest rate of the built-in server is measured with a closed loop of two full batches. Then each side gets the same
archive and Poisson arrivals at multiples of this rate (`torchmar bench`'s own core, an open loop). An answer counts
as good if it is right and arrives before the deadline, three times the time of a full batch. With deadlines, each
request has the header x-request-timeout-ms, and the built-in server rejects requests that it could not answer in time;
the other sides serve all requests that their queues admit. Answers are compared under load, and a step that the client
or the machine spoiled is marked. Intervals have 95 % confidence. The client has its own core, and each server with its
workers has the others, as if clients were on another machine; with --client-cores 0, they share all cores. The cost of
a rejected request is the CPU time of the server's main process, which increases with the rate; here it is divided by
the number of all requests.

    scripts/bench overload [--archive archives/imagenet] [--times 0.7 1 1.5 3] [--seconds 20] [--client-cores 1]
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
from harness.machine import processor

from torchmar import properties
from torchmar.cli.terminal import show_table, table
from torchmar.engines.addresses import free_addresses
from torchmar.engines.builtin import Builtin
from torchmar.engines.engine import Engine
from torchmar.engines.server_records import ServerRecord
from torchmar.engines.torchserve import TorchServe
from torchmar.load import expectations, statistics, workload
from torchmar.load.histogram import bucket_range
from torchmar.load.measuring import StepSpec, measure
from torchmar.load.results import Step
from torchmar.load.statistics import Interval
from torchmar.load.target import Target
from torchmar.load.workload import Workload

_ROOT = Path(__file__).parent.parent
_BATCHES, _DEADLINE = 2, 3  # batches of the closed loop; the deadline in times of a full batch
_HEADER = "x-request-timeout-ms"


@dataclass(frozen=True)
class Side:
    """A server to measure, and whether its requests have deadlines."""

    title: str
    engine: type[Engine]
    deadlines: bool


@dataclass(frozen=True)
class Cores:
    """The cores of the client, and those of each server with its workers."""

    client: frozenset[int]
    server: frozenset[int]

    @classmethod
    def divided(cls, client: int) -> Cores:
        """Give the client this number of the cores of this process; with 0, both have all cores."""
        each = sorted(os.sched_getaffinity(0))
        if not 0 <= client < len(each):
            sys.exit(f"--client-cores {client}: of {len(each)} cores, 0 to {len(each) - 1} can be the client's")
        everything = frozenset(each)
        own = frozenset(each[len(each) - client :]) or everything
        return cls(own, everything - own or everything)

    @contextmanager
    def of_server(self) -> Iterator[None]:
        """Run processes that are started here on the server's cores, which they inherit."""
        os.sched_setaffinity(0, self.server)
        try:
            yield
        finally:
            os.sched_setaffinity(0, self.client)


@dataclass(frozen=True)
class Figure:
    """A step, and the CPU seconds of each request in the server's main process; None: there is no such process."""

    step: Step
    server_cpu: float | None

    def goodput(self, deadline_s: float) -> Interval:
        """Return the answers in time, per second."""
        step = self.step
        within = sum(count for index, count in step.histogram.buckets if bucket_range(index)[1] <= deadline_s * 1e6)
        share = within / max(1, step.histogram.count)
        low, high = step.throughput_interval or (step.throughput, step.throughput)
        return Interval(share * step.throughput, share * low, share * high)

    @property
    def client_cpu(self) -> float:
        """CPU seconds of each request in the client."""
        return self.step.client.busy_fraction * self.step.duration_s / max(1, self.step.sent)


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
    parser.add_argument(
        "--times", type=float, nargs="+", default=[0.7, 1.0, 1.5, 3.0], help="multiples of the highest rate"
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="seconds of load, for each figure")
    parser.add_argument(
        "--client-cores", type=int, default=1, help="cores that no server uses; 0: all cores are shared"
    )
    options = parser.parse_args()
    cores = Cores.divided(options.client_cores)
    print(f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"the client on {_named(cores.client)}, servers on {_named(cores.server)}")
    print(f"{options.archive.name}; load average {os.getloadavg()[0]:.1f}")
    requests = workload.read(options.archive)
    requests = Workload(requests.source, tuple(case for case in requests.cases if _is_good(case)))
    with tempfile.TemporaryDirectory(prefix="overload-") as home:
        build = [sys.executable, "-m", "torchmar", "build", str(options.archive), "--store", f"{home}/store"]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
        with _serving(SIDES[0], Path(home), cores) as target:
            rate, deadline_s = _limits(target, requests, options.batch, options.seconds)
        print(f"holds {rate:.1f} requests/s; deadline {deadline_s * 1e3:.0f} ms\n")
        figures = {}
        for side in SIDES:
            with _serving(side, Path(home), cores) as target:
                figures[side.title] = _measure(side, target, requests, rate, deadline_s, options.times, options.seconds)
    return _report(figures, options.times, deadline_s)


def _named(cores: frozenset[int]) -> str:
    return f"{'core' if len(cores) == 1 else 'cores'} {', '.join(map(str, sorted(cores)))}"


def _is_good(case: workload.Case) -> bool:
    return case.sample is None or case.sample.status == 200


@contextmanager
def _serving(side: Side, home: Path, cores: Cores) -> Iterator[Target]:
    """Serve the only archive of the store, at free ports."""
    values = {**properties.read(_ROOT / "config.properties").values, **free_addresses()}
    (home / "config.properties").write_text(properties.show(values))
    (archive,) = (home / "store").glob("*.mar")
    with ExitStack() as stack:
        with cores.of_server():
            engine = stack.enter_context(side.engine(home / "config.properties", home / "store", home / "run"))
            model = engine.load(archive)
        record = ServerRecord.find(home / "run")
        pid = record.pid if record else None
        yield Target(endpoint=engine.server, model=model.name, engine=side.engine.name, pid=pid)


def _limits(target: Target, requests: Workload, batch: int, seconds: float) -> tuple[float, float]:
    """Return the server's highest rate, and the deadline in seconds."""
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
) -> list[Figure]:
    expected = expectations.gather(target, requests)
    if side.deadlines:
        header = {_HEADER: f"{deadline_s * 1e3:.0f}"}
        cases = (
            replace(case, request=replace(case.request, headers={**case.request.headers, **header}))
            for case in requests.cases
        )
        requests = replace(requests, cases=tuple(cases))
    return [_figure(target, requests, expected, rate * factor, seconds) for factor in times]


def _figure(
    target: Target, requests: Workload, expected: expectations.Expectations, rate: float, seconds: float
) -> Figure:
    process = psutil.Process(target.pid) if target.pid else None
    spec = StepSpec(rate=rate, warmup_s=5, duration_s=seconds)
    before = _cpu_seconds(process)
    step = measure(target, requests, expected, spec)
    used = _cpu_seconds(process) - before
    return Figure(step, used / (rate * (spec.warmup_s + spec.duration_s)) if process else None)


def _cpu_seconds(process: psutil.Process | None) -> float:
    if process is None:
        return 0.0
    times = process.cpu_times()
    return float(times.user + times.system)


def _report(figures: dict[str, list[Figure]], times: Sequence[float], deadline_s: float) -> int:
    rows, missed = [], []
    for title, measured in figures.items():
        goodputs = [figure.goodput(deadline_s) for figure in measured]
        best = max(goodputs, key=lambda goodput: goodput.value)
        for factor, figure, goodput in zip(times, measured, goodputs, strict=True):
            step = figure.step
            share = statistics.ratio_interval(goodput, best) if best.value and goodput is not best else None
            p99 = step.latency_ms.p99 if step.latency_ms else float("nan")
            notes = [*step.invalid_reasons, *([f"{step.wrong_answers} wrong answers"] if step.wrong_answers else [])]
            rows.append(
                (
                    title,
                    f"{factor:g}",
                    f"{goodput.value:.1f}",
                    f"{share.value:.0%} ({share.low:.0%} to {share.high:.0%})"
                    if share
                    else "100%"
                    if best.value
                    else "-",
                    f"{step.failed / max(1, step.sent):.0%}",
                    f"{p99:.0f} ms",
                    "" if figure.server_cpu is None else f"{figure.server_cpu * 1e3:.2f}",
                    f"{figure.client_cpu * 1e3:.2f}",
                    "; ".join(notes),
                )
            )
            late = p99 > deadline_s * 1e3
            if title == SIDES[0].title and factor > 1 and (goodput.value < 0.95 * best.value or late):
                missed.append(
                    f"{factor:g} times the rate: {goodput.value / best.value:.0%} of the best, p99 {p99:.0f} ms"
                )
    heads = (
        *("side", "times the rate", "good answers/s", "of its best (95 %)", "rejected", "p99 of answers"),
        *("server CPU ms", "client CPU ms", "spoiled by"),
    )
    show_table(table(heads, rows))
    for line in missed:
        print(f"goal missed: {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
