"""Measure what the console costs a server: the CPU time of its process, with and without two open pages.

A page is a stream of events, which is all that it requests while it is open; of two open pages each has one, with log
entries. What they cost is the CPU time of an idle server's process, which has one thread for all requests: a share of
1 % is a hundredth of its throughput. With ``--rounds``, requests come from one process over several connections, as
fast as they are answered, and sides take turns; this needs a quiet machine. With Chromium installed, the time until a
page with two hundred models is drawn is measured, too.

    scripts/bench console [--seconds 20] [--rounds 0] [--requests 4000]
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
from harness.machine import processor
from harness.rounds import interval
from harness.sides import ROOT

from torchmar import archive, properties, recipe
from torchmar.cli.terminal import show_table, table
from torchmar.engines.addresses import free_addresses
from torchmar.engines.builtin import Builtin

PAGES = 2
CONNECTIONS = 8
MODELS = 200
HANDLER = "def handle(rows, context):\n    return None if rows is None else [b'ok'] * len(rows)\n"
STREAM = "/console/api/v1/stream?logs=true"


def main() -> None:
    """Print the ratio of the two sides, and the time of the first paint."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=20, help="of an idle server, for each row")
    parser.add_argument("--rounds", type=int, default=0, help="of requests with and without open pages")
    parser.add_argument("--requests", type=int, default=4000, help="of each side in a round")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, _server(Path(name)) as running:
        print(f"{processor()}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}")
        rows = [_idle(running, chosen.seconds, 1)]
        if chosen.rounds:
            _show_compared(*_compare(running, chosen.rounds, chosen.requests))
        for number in range(MODELS):
            running.management.register("echo-1.0.mar", model_name=f"model-{number:03}", initial_workers=0)
        rows.append(_idle(running, chosen.seconds, MODELS + 1))
        show_table(table(("models", "CPU idle", "two pages open", "share of the loop"), rows, right=("models",)))
        if paint := _first_paint(f"{running.server.management}/console"):
            print(
                f"{MODELS} models: first contentful paint {paint[0]:.0f} ms, all rows {paint[1]:.0f} ms (medians of 7)"
            )


def _idle(running: Builtin, seconds: float, models: int) -> tuple[str, ...]:
    """Return the CPU time of the idle server a second, without and with open pages, and the share that these cost."""
    address = str(running.server.management).rpartition("/")[2]
    without = _cpu_seconds(running, seconds)
    with _pages(address):
        opened = _cpu_seconds(running, seconds)
    share = max(0.0, opened - without) / seconds
    return str(models), *(f"{1000 * used / seconds:.2f} ms/s" for used in (without, opened)), f"{share:.2%}"


def _cpu_seconds(running: Builtin, seconds: float) -> float:
    server = psutil.Process(running._process.pid)
    before = server.cpu_times()
    time.sleep(seconds)
    after = server.cpu_times()
    return after.user + after.system - before.user - before.system


def _show_compared(cpu: tuple[list[float], list[float]], rates: tuple[list[float], list[float]]) -> None:
    rows = []
    for title, sides in (("CPU of the server, us a request", cpu), ("requests a second", rates)):
        without, with_pages = (statistics.median(values) for values in sides)
        ratio, low, high = interval([one / other for one, other in zip(*sides, strict=True)])
        if title.startswith("requests"):
            ratio, low, high = 1 / ratio, 1 / high, 1 / low
        rows.append((title, f"{without:.4g}", f"{with_pages:.4g}", f"{ratio:.3f}", f"{low:.3f} to {high:.3f}"))
    show_table(table(("", "without", "two pages open", "ratio", "95 % interval"), rows, right=("ratio",)))


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


def _compare(
    running: Builtin, rounds: int, requests: int
) -> tuple[tuple[list[float], list[float]], tuple[list[float], list[float]]]:
    """Return CPU microseconds of a request, and requests a second, of both sides."""
    address = str(running.server.inference).rpartition("/")[2]
    server = psutil.Process(running._process.pid)
    cpu: tuple[list[float], list[float]] = ([], [])
    rates: tuple[list[float], list[float]] = ([], [])
    _send(address, requests)
    for turn in range(rounds):
        for side in (0, 1) if turn % 2 else (1, 0):
            with _pages(str(running.server.management).rpartition("/")[2]) if side else contextlib.nullcontext():
                before, began = server.cpu_times(), time.perf_counter()
                _send(address, requests)
                seconds, after = time.perf_counter() - began, server.cpu_times()
            used = after.user + after.system - before.user - before.system
            cpu[side].append(used / requests * 1e6)
            rates[side].append(requests / seconds)
    return cpu, rates


def _send(address: str, count: int) -> None:
    def send(share: int) -> None:
        connection = http.client.HTTPConnection(address)
        for _ in range(share):
            connection.request("POST", "/predictions/echo", b"x")
            response = connection.getresponse()
            assert (response.status, response.read()) == (200, b"ok")
        connection.close()

    threads = [threading.Thread(target=send, args=(count // CONNECTIONS,)) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextlib.contextmanager
def _pages(address: str) -> Iterator[None]:
    """Keep pages open, in a process of its own."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_read, args=(address, theirs))
    process.start()
    ours.recv()
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
    """Return the milliseconds until something, and until every row, is drawn; None without Chromium."""
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
    except BaseException as error:  # pytest's skip is one
        print(f"the first paint is not measured: {json.dumps(str(error))}")
        return None
    paints, whole = zip(*times, strict=True)
    return statistics.median(paints), statistics.median(whole)


if __name__ == "__main__":
    main()
