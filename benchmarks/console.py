"""Measure the cost of the console for a server: its throughput and CPU time, with and without two open pages.

An open page requests only a stream of events; each of two open pages has such a stream, with log
entries.

``idle``: the CPU time of an idle server's process a second, without and with pages. The process has one thread for all
requests, so that a share of 1 % is a hundredth of the loop's throughput.

``busy``: `wrk` keeps the server saturated over several connections for some seconds: without pages, without pages a
    second
time, and with two pages; a round has each case once, in rotating order. Ratios are those of a round, and intervals
contain the median ratio with 95 % confidence. The ratio of the two cases without pages is the control: its interval is
the effect of the machine alone, and if it exceeds the limit of the goal, the run has no result. CPU times are the
kernel's times in nanoseconds, of the server with its workers.

With Chromium, the time until a page with two hundred models is drawn is measured, too.

    scripts/bench console [--seconds 20] [--rounds 12] [--block 4]
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import multiprocessing
import operator
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from harness.load import fire
from harness.machine import processor
from harness.models import Model
from harness.processes import scheduled_seconds
from harness.rounds import interval
from harness.sides import ROOT, Running

from torchmar import archive, properties, recipe
from torchmar.cli.terminal import show_table, table
from torchmar.engines.addresses import free_addresses
from torchmar.engines.builtin import Builtin

PAGES = 2
CONNECTIONS = 8
IDLE_PARTS = 7  # parts of the idle time, in turn without and with pages
GOAL = 0.98  # share of the throughput without pages
MODELS = 200
HANDLER = "def handle(rows, context):\n    return None if rows is None else [b'ok'] * len(rows)\n"
STREAM = "/console/api/v1/stream?logs=true"
SIDES = ("without", "without again", "two pages")
_ECHO = Model(
    name="echo",
    weights=Path(),
    stores={},
    content_type="text/plain",
    bodies=(b"x",),
    expected=(b"ok",),
    same=operator.eq,
)


def main() -> None:
    """Print the costs, and the time of the first paint."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--seconds", type=float, default=20, help="seconds of an idle server, for each side of a row; 0: none"
    )
    parser.add_argument("--rounds", type=int, default=12, help="rounds of a busy server; 0: none")
    parser.add_argument("--block", type=int, default=4, help="seconds of each side in a round")
    parser.add_argument("--no-paint", action="store_true", help="do not measure the first paint")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, _server(Path(name)) as running:
        print(f"{processor()}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}")
        rows = [_idle(running, chosen.seconds, 1)] if chosen.seconds else []
        if chosen.rounds:
            _show_compared(_compare(running, chosen.rounds, chosen.block))
        for number in range(MODELS):
            running.management.register("echo-1.0.mar", model_name=f"model-{number:03}", initial_workers=0)
        if chosen.seconds:
            rows.append(_idle(running, chosen.seconds, MODELS + 1))
            show_table(table(("models", "CPU idle", "two pages open", "share of the loop"), rows, right=("models",)))
        if not chosen.no_paint and (paint := _first_paint(f"{running.server.management}/console")):
            print(
                f"{MODELS} models: first contentful paint {paint[0]:.0f} ms, all rows {paint[1]:.0f} ms (medians of 7)"
            )


def _idle(running: Builtin, seconds: float, models: int) -> tuple[str, ...]:
    """Return the CPU time of the idle server per second, without and with open pages, and the share of the pages."""
    address = str(running.server.management).rpartition("/")[2]
    sides: tuple[list[float], list[float]] = ([], [])
    part = seconds / IDLE_PARTS
    for _ in range(IDLE_PARTS):
        sides[0].append(_cpu_seconds(running, part) / part)
        with _pages(address):
            sides[1].append(_cpu_seconds(running, part) / part)
    without, opened = map(statistics.median, sides)
    share, low, high = interval([one - other for other, one in zip(*sides, strict=True)])
    cells = (f"{1000 * used:.2f} ms/s" for used in (without, opened))
    return str(models), *cells, f"{share:.2%} ({low:.2%} to {high:.2%})"


def _cpu_seconds(running: Builtin, seconds: float) -> float:
    """Return the CPU time of the server's own process in some seconds."""
    pid = running._process.pid
    before = scheduled_seconds(pid)
    time.sleep(seconds)
    return scheduled_seconds(pid) - before


@dataclass(frozen=True)
class _Block:
    """The measurement of one side in one round: requests a second, and CPU microseconds of a request."""

    rate: float
    cpu_us: float


def _show_compared(sides: Mapping[str, Sequence[_Block]]) -> None:
    rows = []
    verdicts = []
    for title, key in (("requests a second", "rate"), ("CPU, us a request", "cpu_us")):
        values = {name: [float(getattr(block, key)) for block in blocks] for name, blocks in sides.items()}
        # CPU times as the throughput for the same time.
        power = 1 if key == "rate" else -1
        first, second, pages = ([one**power for one in values[name]] for name in SIDES)
        both = [(one + other) / 2 for one, other in zip(first, second, strict=True)]
        ratio = interval([one / other for one, other in zip(pages, both, strict=True)])
        control = interval([one / other for one, other in zip(second, first, strict=True)])
        shown = [statistics.median(values[name]) for name in (SIDES[0], SIDES[2])]
        rows.append((title, *(f"{one:.4g}" for one in shown), _ratio(ratio), _ratio(control)))
        verdicts.append(f"{title}: {_verdict(ratio, control)}")
    show_table(table(("", "without", "two pages", "ratio (95 %)", "control (95 %)"), rows))
    print("\n".join(verdicts))


def _ratio(values: tuple[float, float, float]) -> str:
    return "{:.4f} ({:.4f} to {:.4f})".format(*values)


def _verdict(ratio: tuple[float, float, float], control: tuple[float, float, float]) -> str:
    _, low, high = ratio
    noise = max(1 - control[1], control[2] - 1)
    if noise > 1 - GOAL or not control[1] <= 1 <= control[2]:
        return f"not valid: the two sides without pages differ by up to {noise:.0%}; is the machine quiet?"
    if low >= GOAL:
        return f"at least {GOAL:.0%} is shown"
    return f"at least {GOAL:.0%} is {'not met' if high < GOAL else 'not shown: the interval is too wide'}"


@contextlib.contextmanager
def _server(folder: Path) -> Iterator[Builtin]:
    (folder / "handler.py").write_text(HANDLER)
    made = recipe.Recipe.model_validate({"name": "echo", "version": "1.0", "handler": "handler.py"})
    archive.pack(archive.collect_members(made, folder), folder / "store" / "echo-1.0.mar")
    config = folder / "config.properties"
    config.write_text(
        properties.show({**free_addresses(), "disable_token_authorization": "true", "enable_model_api": "true"})
    )
    with Builtin(config, folder / "store", folder / "run") as running:
        running.load(folder / "store" / "echo-1.0.mar")
        yield running


def _compare(running: Builtin, rounds: int, seconds: int) -> dict[str, list[_Block]]:
    sides: dict[str, list[_Block]] = {name: [] for name in SIDES}
    management = str(running.server.management).rpartition("/")[2]
    _load(running, seconds)  # the warm-up
    for turn in range(rounds):
        shift = turn % len(SIDES)
        for name in SIDES[shift:] + SIDES[:shift]:
            with _pages(management) if name == SIDES[2] else contextlib.nullcontext():
                sides[name].append(_load(running, seconds))
    return sides


def _load(running: Builtin, seconds: int) -> _Block:
    """Saturate the server for some seconds."""
    url = f"{running.server.inference}/predictions/echo"
    pid = running._process.pid
    before = scheduled_seconds(pid, children=True)
    figures = fire(Running(pid, url), _ECHO, CONNECTIONS, seconds)
    spent = scheduled_seconds(pid, children=True) - before
    return _Block(figures.rate, spent / (figures.rate * seconds) * 1e6)


@contextlib.contextmanager
def _pages(address: str) -> Iterator[None]:
    """Keep pages open, in a separate process."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_read, args=(address, theirs))
    process.start()
    ours.recv()
    time.sleep(1.5)  # the snapshots are sent: an open page costs what its seconds cost
    try:
        yield
    finally:
        process.kill()
        process.join()


def _read(address: str, pipe: Connection) -> None:
    responses = []
    for _ in range(PAGES):
        connection = http.client.HTTPConnection(address)
        connection.request("GET", STREAM)
        responses.append(connection.getresponse())
        responses[-1].read1()
    pipe.send("open")

    def read(response: http.client.HTTPResponse) -> None:
        while response.read1():
            pass

    threads = [threading.Thread(target=read, args=(response,)) for response in responses]
    for thread in threads:
        thread.start()


def _first_paint(url: str) -> tuple[float, float] | None:
    """Return the milliseconds until the first content, and until every row, is drawn; None: there is no Chromium."""
    sys.path.insert(0, str(ROOT))
    from tests.support.browser import Browser

    script = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    rows = (
        "new Promise(done => { const look = () => document.querySelectorAll('table.models tbody tr').length >= "
        f"{MODELS} ? requestAnimationFrame(() => done(performance.now())) : requestAnimationFrame(look); look(); }})"
    )
    try:
        with Browser() as browser:
            times = []
            for _ in range(7):
                browser.goto(url)
                drawn = browser.evaluate(rows)
                times.append((browser.evaluate(script), drawn))
    except BaseException as error:  # such as pytest's skip
        print(f"the first paint is not measured: {json.dumps(str(error))}")
        return None
    paints, whole = zip(*times, strict=True)
    return statistics.median(paints), statistics.median(whole)


if __name__ == "__main__":
    main()
