"""Time servers: torchmar's, compared with TorchServe and with other servers of PyTorch models.

All sides serve the same TorchScript programs on the same machine in one run, one after the other in
every round, and are measured with the same client: `wrk` (Debian and Ubuntu: apt install wrk; macOS: brew
install wrk), with one thread, beside the server. Archives and services have the same batches (16
requests, 1 ms) and one worker, except TorchServe as shipped; the number of threads is not set, and Pillow decodes
on all sides. Each server is warmed up with load that is not counted; its answers are compared before and
after, and a figure counts only if every request was answered with 2xx. Figures are medians of the
rounds, and the spread is their range: if it is large, or the load average at the start
is, other programs used the machine, and the figures mean little. Memory is the proportional set size of all
processes of a server.

The part `latency` is measured with torchmar's own open-loop client at rates that no server slows down: latency counts
from the time when a request should be sent, and every answer is compared. wrk measures only closed loops.

TorchServe has two rows, with ratios to both. "As shipped" is the installation of pip, with tokens
off: its own script, logging and defaults (as many workers as cores, which take threads from each other,
and batches of one), and the handler of its documentation for the case. The other row is the same
server with an archive configured like those of the other sides: its remaining difference from the built-in
server is not due to the configuration. The other frameworks are in a separate environment
(--competitors; otherwise .venv/serving is made), as small services in benchmarks/harness/competitors/
written as in their documentation; frameworks that are not installed are skipped with a message.

With --neighbours, servers are measured beside other programs instead: the built-in server and mosec (or the
sides that --engines names), the perceptron and ResNet-18, beside this number of processes that each keep a core busy.
All servers run at once and are loaded in turn, and ratios are medians of the rounds' ratios, so that other programs on
the machine affect all sides equally.

    scripts/bench serving [--only tiny] [--engines torchserve builtin] [--seconds 3] [--picture docs/serving.png]
    scripts/bench serving --neighbours 1 --seconds 3   # some 6 minutes for each number of neighbours
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from harness import models, report
from harness.machine import processor
from harness.measures import Measurement
from harness.sides import COMPETITORS, ROOT, TORCHSERVES, Side, environment_of_competitors

from torchmar import byte_sizes

_BUSY = ("builtin", "builtin-stock", "mosec")  # the sides that are measured beside neighbours
_WITH_WRK = ("tiny", "resnet", "explain")
PARTS = ("tiny", "resnet", "latency", "explain", "memory", "times")


def main() -> int:
    """Measure the selected parts, print the tables, draw the picture; exit 1 if a side failed."""
    engines = [side.key for side in (*TORCHSERVES, *COMPETITORS)]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--engines", nargs="+", choices=engines)
    parser.add_argument(
        "--neighbours", nargs="+", type=int, help="numbers of busy processes to measure beside, in turn"
    )
    parser.add_argument("--connections", nargs="+", type=int, default=[1, 8, 16, 64])
    parser.add_argument("--rates", nargs="+", type=float, default=[200, 800], help="rates of the part latency")
    parser.add_argument("--seconds", type=int, default=5, help="seconds of load, for each figure")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, in each of which every side is started again")
    parser.add_argument("--large", default="1GB", help="size of the weights of the model for the memory")
    parser.add_argument("--competitors", type=Path, help="the Python of an environment with the other frameworks")
    parser.add_argument("--picture", type=Path, help="write the figures as a PNG")
    options = parser.parse_args()
    if set(_WITH_WRK) & set(options.only) and not shutil.which("wrk"):
        sys.exit("wrk is missing; apt install wrk (macOS: brew install wrk)")
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the servers, too
    os.environ.pop("OMP_NUM_THREADS", None)  # torchmar's handlers set their threads, others use this variable
    chosen = options.engines or (engines if options.neighbours is None else _BUSY)
    sides = _sides(chosen, options.competitors)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{processor()}, {cores} cores, Python {platform.python_version()}, torch {torch.__version__}")
    print(f"{options.seconds:g} s of load a figure, median of {options.rounds}; load average {os.getloadavg()[0]:.1f}")
    measurement = Measurement(sides, options.seconds, options.rounds)
    with tempfile.TemporaryDirectory(prefix="serving-") as home:
        if options.neighbours is None:
            _measure(
                measurement,
                Path(home),
                options.only,
                options.connections,
                options.rates,
                byte_sizes.parse(options.large),
            )
        else:
            for name, make in (("tiny", models.tiny), ("resnet", models.resnet)):
                if name in options.only:
                    measurement.busy(make(Path(home)), options.connections, options.neighbours)
    results = measurement.results
    report.show(results, sides, ("tiny", "resnet", "digits"), options.connections)
    if options.picture:
        report.draw(results, sides, options.picture)
        print(f"\nwrote {options.picture}")
    return 1 if results.failures else 0


def _measure(
    measurement: Measurement,
    home: Path,
    parts: Sequence[str],
    connections: Sequence[int],
    rates: Sequence[float],
    large: int,
) -> None:
    sides = measurement.sides
    tiny = models.tiny(home)
    if "tiny" in parts:
        measurement.load(tiny, connections, sides)
    if "latency" in parts:
        measurement.latency(tiny, rates, sides)
    resnet = models.resnet(home) if {"resnet", "memory"} & set(parts) else None
    if resnet and "resnet" in parts:
        measurement.floor(resnet)
        measurement.load(resnet, connections, sides)
    if "explain" in parts:
        explaining = [side for side in sides if side.managed and not side.only_load]
        measurement.load(models.digits(home), connections, explaining)
    if resnet and "memory" in parts:
        measurement.memory(resnet)
        measurement.memory(models.big(home, large))
    if "times" in parts:
        measurement.times(tiny)


def _sides(engines: Sequence[str], python: Path | None) -> list[Side]:
    """Return the selected sides that are installed; print the reasons for the others."""
    chosen: list[Side] = [side() for side in TORCHSERVES if side.key in engines]
    others = [side for side in COMPETITORS if side.key in engines]
    if others:
        found = python or environment_of_competitors(ROOT / ".venv" / "serving")
        # Not resolved: the link itself makes it the Python of the environment.
        chosen += [side(found.absolute()) for side in others]
    there = []
    for side in chosen:
        if problem := side.missing():
            print(f"left out: {problem}")
        else:
            there.append(side)
    return there


if __name__ == "__main__":
    sys.exit(main())
