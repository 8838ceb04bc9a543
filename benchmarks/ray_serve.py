"""Models on Ray: `torchmar serve --engine ray`, compared with the same model in a service as in Ray Serve's
documentation.

The service (`harness/competitors/ray_service.py`) is a deployment with ``@serve.batch``, behind Ray's own proxy, or
behind its HAProxy mode with its settings for throughput. All sides have one replica with the same number of threads,
the same TorchScript program, batches of 16 and no dashboard. All run at once and are loaded in turn, so that other
programs on the machine affect all equally; answers are compared after each load. CPU time is the time of all processes
of a side, Ray's included, in milliseconds for a request; beside it is the same without the time of the side when it has
no requests.

The part ``nodes`` runs a cluster of several nodes on this machine, one replica on each, and shows the CPU time of each
kind of process with and without requests. The part ``paper`` calculates from these figures the load of fronts and head
in clusters that are larger than this machine can run.

    scripts/bench ray_serve [--only tiny resnet nodes] [--seconds 2] [--rounds 3]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from harness import load, models
from harness.load import Figures
from harness.machine import processor
from harness.measures import ready
from harness.models import Model
from harness.processes import cpu_seconds
from harness.rounds import interval
from harness.sides import Builtin, Failed, Ours, RayServe, Running, Side

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the environments of the tests

from tests.oracles import python_of  # noqa: E402
from tests.support.ray_cluster import LOOPBACK, ray_cluster  # noqa: E402
from torchmar.cli.terminal import show_table, table  # noqa: E402
from torchmar.engines.engine import Engine  # noqa: E402
from torchmar.errors import EngineError  # noqa: E402

PARTS = ("tiny", "resnet", "nodes")
SIDES = ("torchmar", "ray", "ray-haproxy", "builtin")
IDLE_SECONDS = 3.0
START_SECONDS = 300.0
STARTS = 4  # attempts


class OursOnRay(Ours):
    """``torchmar serve --engine ray``; without an address, it starts a cluster of this machine."""

    key, title = "torchmar", "torchmar --engine ray"

    @staticmethod
    def engine(*arguments: Any) -> Engine:
        """Return the server, not started."""
        from torchmar.engines.ray import Ray

        return Ray(*arguments, python=str(python_of("ray", borrows=True)))


class ByHand(RayServe):
    """The service behind Ray's own proxy."""

    key, title = "ray", "Ray Serve by hand"

    def environment(self, port: int, folder: Path) -> Mapping[str, str]:
        """Return Ray's settings."""
        return {**super().environment(port, folder), "SERVE_CPUS": str(cores())}


class ByHandFast(ByHand):
    """The service behind HAProxy, with Ray's settings for throughput."""

    title = "Ray Serve by hand, HAProxy"

    def environment(self, port: int, folder: Path) -> Mapping[str, str]:
        """Return Ray's settings; HAProxy's files are in the temporary folder."""
        names = {"CONFIG_FILE_LOC": "haproxy.cfg", "SOCKET_PATH": "admin.sock", "SERVER_STATE_FILE": "state"}
        files = {f"RAY_SERVE_HAPROXY_{name}": str(folder / file) for name, file in names.items()}
        return {
            **super().environment(port, folder),
            **files,
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        }


@dataclass(frozen=True)
class Cost:
    """The figures of a side, and the CPU milliseconds of a request without those of an idle side."""

    figures: Figures
    net: float


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main() -> int:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--connections", nargs="+", type=int, default=[1, 16, 64])
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds of load, for each figure")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--nodes", nargs="+", type=int, default=[1, 2, 4], help="sizes of the clusters of the part nodes"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the servers, too
    os.environ.pop("OMP_NUM_THREADS", None)
    if not shutil.which("wrk"):
        sys.exit("wrk is missing; apt install wrk (macOS: brew install wrk)")
    print(f"{processor()}, {cores()} cores, torch {torch.__version__}, {options.rounds} rounds of ", end="")
    print(f"{options.seconds:g} s; load average {os.getloadavg()[0]:.1f} at the start", flush=True)
    python = python_of("ray", borrows=True)
    OursOnRay.settings = {"torchmar_ray_cpus": str(cores())}
    with tempfile.TemporaryDirectory(prefix="ray-") as name:
        folder = Path(name)
        tiny = models.tiny(folder)
        made = (OursOnRay(), ByHand(python), ByHandFast(python), Builtin())
        sides = [side for name, side in zip(SIDES, made, strict=True) if name in options.sides]
        if "tiny" in options.only:
            compare(tiny, sides, options)
        if "resnet" in options.only:
            compare(models.resnet(folder), sides, options)
        if "nodes" in options.only:
            nodes(tiny, options)
    print(f"load average {os.getloadavg()[0]:.1f} at the end")
    return 0


def compare(model: Model, sides: Sequence[Side], options: argparse.Namespace) -> None:
    """Measure a model on all sides, and print the table."""
    costs: dict[tuple[str, int], list[Cost]] = {}
    with contextlib.ExitStack() as stack:
        servers: dict[Side, Running] = {}
        resting: dict[Side, float] = {}
        for side in sides:
            print(f"{model.name}: {side.title} starts", file=sys.stderr, flush=True)
            servers[side] = running = started(side, model, stack)
            load.fire(running, model, 16, options.seconds)  # TorchScript compiles functions that are called often
            load.check(running, model, len(model.bodies))
            resting[side] = at_rest([running.pid])
        for number in range(options.rounds):
            for connections in options.connections:
                for side in sides if number % 2 else sides[::-1]:
                    figures = load.fire(servers[side], model, connections, options.seconds)
                    load.check(servers[side], model, len(model.bodies))
                    net = figures.cpu - resting[side] / figures.rate * 1000
                    costs.setdefault((side.title, connections), []).append(Cost(figures, net))
    show(model, [side.title for side in sides], options.connections, costs)


def started(side: Side, model: Model, stack: contextlib.ExitStack) -> Running:
    """Start a side until the stack is closed; repeat it if Ray gives up after 30 s, which a busy machine may need."""
    for attempt in range(STARTS):
        with contextlib.ExitStack() as own:
            try:
                running = own.enter_context(side.start(model))
                ready(running, model, START_SECONDS)
            except (EngineError, Failed):
                if attempt == STARTS - 1:
                    raise
                continue
            stack.push(own.pop_all())
            return running
    raise AssertionError


def at_rest(roots: Sequence[int]) -> float:
    """Return the CPU seconds that trees of processes use in a second without requests."""
    time.sleep(1)
    before = sum(map(cpu_seconds, roots))
    time.sleep(IDLE_SECONDS)
    return (sum(map(cpu_seconds, roots)) - before) / IDLE_SECONDS


def show(
    model: Model, titles: Sequence[str], connections: Sequence[int], costs: Mapping[tuple[str, int], Sequence[Cost]]
) -> None:
    """Print the medians of the rounds, and ratios as medians of the rounds' ratios."""
    lines = []
    ours_title = OursOnRay.title
    for count in connections:
        ours = costs[ours_title, count]
        for title in titles:
            theirs = costs[title, count]
            ratios = ["", ""]
            if title != ours_title:
                pairs = list(zip(ours, theirs, strict=True))
                rates = [a.figures.rate / b.figures.rate for a, b in pairs]
                cpu_times = [b.net / a.net for a, b in pairs]
                ratios = ["{:.2f} ({:.2f} to {:.2f})".format(*interval(values)) for values in (rates, cpu_times)]
            rate, p50, p99, cpu, net = (statistics.median(values) for values in zip(*map(_row, theirs), strict=True))
            row = (f"{rate:.0f}", f"{p50 * 1e3:.2f}", f"{p99 * 1e3:.2f}", f"{cpu:.2f}", f"{net:.2f}")
            lines.append((str(count), title, *row, *ratios))
    headings = ("connections", "server", "requests/s", "p50 ms", "p99 ms", "CPU ms", "net", "our rate", "its net CPU")
    print(f"\n{model.name}: our requests/s as a multiple of its, and its net CPU time as a multiple of ours")
    show_table(table(headings, lines, right=headings[2:7]))
    sys.stdout.flush()


def _row(cost: Cost) -> tuple[float, float, float, float, float]:
    figures = cost.figures
    return figures.rate, figures.p50, figures.p99, figures.cpu, cost.net


# Nodes.

#: Kinds of processes, by a part of their command line; the first match counts.
KINDS = {
    "gcs_server": "GCS",
    "ray::ServeController": "controller",
    "ray::Directory": "directory",
    "ray::ServeReplica": "replica",
    "agent": "agents of the node",
    "raylet": "raylet",
    "log_monitor": "agents of the node",
    "monitor": "agents of the node",
    "torchmar.cluster": "front",
}
LOADED = ("front", "replica", "worker")  # kinds that need time for each request


def account(roots: Sequence[int]) -> dict[str, float]:
    """Return the CPU seconds of the living processes of some trees, by kind."""
    seconds: dict[str, float] = defaultdict(float)

    def visit(process: psutil.Process, above: str) -> None:
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            kind = next((kind for part, kind in KINDS.items() if part in line), "other")
            if above in ("replica", "worker"):
                kind = "worker"  # with its fork server
            times = process.cpu_times()
            seconds[kind] += times.user + times.system
            for child in process.children():
                visit(child, kind)

    for root in roots:
        visit(psutil.Process(root), "")
    return seconds


def nodes(model: Model, options: argparse.Namespace) -> None:
    """Measure clusters of several nodes with a replica on each, print the CPU times, and calculate larger clusters."""
    at_rest_by_nodes: dict[int, dict[str, float]] = {}
    per_request: dict[int, dict[str, float]] = {}
    rates: dict[int, float] = {}
    for count in options.nodes:
        print(f"{count} nodes", file=sys.stderr, flush=True)
        with clustered(model, count) as (running, roots):
            load.fire(running, model, 16, options.seconds)
            load.check(running, model, len(model.bodies))
            time.sleep(1)
            before = account(roots)
            time.sleep(2 * IDLE_SECONDS)
            rest = {kind: value / 2 / IDLE_SECONDS for kind, value in _minus(account(roots), before).items()}
            runs = []
            for _ in range(options.rounds):
                before = account(roots)
                figures = load.fire(running, model, 16, options.seconds)
                spent = _minus(account(roots), before)
                requests = figures.rate * options.seconds
                runs.append({k: (spent[k] - rest.get(k, 0.0) * options.seconds) / requests * 1000 for k in spent})
                load.check(running, model, len(model.bodies))
            rates[count] = figures.rate
            at_rest_by_nodes[count] = rest
            per_request[count] = {k: statistics.median(run.get(k, 0.0) for run in runs) for k in runs[0]}
    show_nodes(options.nodes, rates, at_rest_by_nodes, per_request)
    paper(at_rest_by_nodes, per_request)


@contextlib.contextmanager
def clustered(model: Model, count: int) -> Iterator[tuple[Running, list[int]]]:
    """Serve a model with a replica on each node except the head; return the roots of all processes."""
    with ray_cluster(0, *[1] * count) as cluster:
        saved = dict(os.environ)
        os.environ.update(LOOPBACK)
        OursOnRay.settings = {"torchmar_ray_address": cluster.address}
        try:
            with OursOnRay().start(model) as running:
                assert running.management
                ready(running, model, START_SECONDS)
                running.management.scale(model.name, min_worker=count, max_worker=count, timeout=300)
                yield running, [running.pid, cluster.process.pid]
        finally:
            os.environ.clear()
            os.environ.update(saved)


def _minus(after: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    return {kind: value - before.get(kind, 0.0) for kind, value in after.items()}


def show_nodes(
    counts: Sequence[int],
    rates: Mapping[int, float],
    rest: Mapping[int, Mapping[str, float]],
    per_request: Mapping[int, Mapping[str, float]],
) -> None:
    """Print the CPU time of each kind of process."""
    kinds = sorted({kind for values in rest.values() for kind in values})
    head = ("process", *("1 node" if count == 1 else f"{count} nodes" for count in counts))
    print("\nCPU milliseconds of a request at 16 connections, without those at rest")
    lines = [(kind, *(f"{per_request[count].get(kind, 0.0):.3f}" for count in counts)) for kind in LOADED]
    totals = [sum(per_request[count].values()) for count in counts]
    lines.append(("all", *(f"{total:.3f}" for total in totals)))
    lines.append(("all, of one node", *(f"{total / totals[0]:.0%}" for total in totals)))
    lines.append(("requests/s", *(f"{rates[count]:.0f}" for count in counts)))
    show_table(table(head, lines, right=head[1:]))
    print("\nCPU milliseconds of a second without requests, all processes of a kind")
    lines = [(kind, *(f"{rest[count].get(kind, 0.0) * 1000:.0f}" for count in counts)) for kind in kinds]
    show_table(table(head, lines, right=head[1:]))


def paper(rest: Mapping[int, Mapping[str, float]], per_request: Mapping[int, Mapping[str, float]]) -> None:
    """Calculate large clusters from the slopes between the smallest and the largest measured one."""
    first, last = min(rest), max(rest)
    if first == last:
        return

    def slope(kind: str) -> float:
        return max(0.0, (rest[last].get(kind, 0.0) - rest[first].get(kind, 0.0)) / (last - first))

    front, replica = (per_request[last][kind] for kind in ("front", "replica"))
    print(
        f"\non paper: a front takes {front:.3f} ms of its core for a request, so that one front does "
        f"{1000 / front * (1 - rest[last].get('front', 0.0)):.0f} requests a second at most, and a replica "
        f"{1000 / replica:.0f}; eight replicas on a node"
    )
    lines = []
    for count in (1, 10, 30, 100):
        replicas = 8 * count
        shares = [rest[first].get(kind, 0.0) + slope(kind) * (replicas - first) for kind in ("controller", "GCS")]
        directory = rest[first].get("directory", 0.0) + slope("directory") * (replicas - first)
        links = rest[first].get("front", 0.0) + slope("front") * (replicas - first)
        lines.append((str(count), str(replicas), *(f"{share:.0%}" for share in (*shares, directory, links))))
    head = ("nodes", "replicas", "controller", "GCS", "directory", "front at rest")
    print("share of a core that each takes without requests")
    show_table(table(head, lines, right=head))


if __name__ == "__main__":
    sys.exit(main())
