"""The measurements: throughput and latency, memory, the times of starting and scaling."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from harness import processes
from harness.latency import at_rate
from harness.load import Figures, check, fire
from harness.models import BATCH, Model
from harness.processes import memory
from harness.sides import Failed, Running, Side, Unanswered
from torchmar.archive import Archive
from torchmar.load.results import Step
from torchmar.worker.environment import worker_environment

_FLOOR = Path(__file__).with_name("floor.py")
_START_SECONDS = 90.0
_REST_SECONDS = 3.0


@dataclass
class Results:
    """The measurements of several rounds; the first key is the side.

    Attributes:
        loads: figures by side, model and connections.
        memories: bytes by side, model and number of workers.
        times: seconds by side and action: ``start``, ``register``, ``scale``.
        steps: latency at a rate, by side, model and rate.
        floor: requests a second of ResNet-18 without a server.
        busy: figures by number of busy neighbours, side, model and connections, in the order of the rounds.
        failures: failures of sides, as texts for the reader.
    """

    loads: dict[tuple[str, str, int], list[Figures]] = field(default_factory=dict)
    memories: dict[tuple[str, str, int], list[int]] = field(default_factory=dict)
    times: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    steps: dict[tuple[str, str, float], list[Step]] = field(default_factory=dict)
    floor: list[float] = field(default_factory=list)
    busy: dict[tuple[int, str, str, int], list[Figures]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def load(self, side: str, model: str, connections: int) -> Figures | None:
        """Return the medians over all rounds; None: there are none."""
        rounds = self.loads.get((side, model, connections))
        if not rounds:
            return None
        return Figures(*(median(getattr(run, name) for run in rounds) for name in ("rate", "p50", "p99", "cpu")))

    def step(self, side: str, model: str, rate: float) -> Step | None:
        """Return the step with the median of the 99th percentiles among the valid steps; None: there are none."""
        valid = [step for step in self.steps.get((side, model, rate), ()) if step.valid and step.latency_ms]
        valid.sort(key=lambda step: step.latency_ms.p99 if step.latency_ms else 0.0)
        return valid[len(valid) // 2] if valid else None

    def spread(self, side: str, model: str, connections: int) -> float:
        """Return the range of the rounds' rates, relative to their median."""
        rates = [run.rate for run in self.loads[side, model, connections]]
        return (max(rates) - min(rates)) / median(rates)

    def bytes(self, side: str, model: str, workers: int) -> float | None:
        """Return the median of the memory."""
        rounds = self.memories.get((side, model, workers))
        return median(rounds) if rounds else None

    def seconds(self, side: str, what: str) -> float | None:
        """Return the median of a time."""
        rounds = self.times.get((side, what))
        return median(rounds) if rounds else None


class Measurement:
    """The sides, measured in turn, round by round; if a side fails, this is noted and the others continue.

    Args:
        sides: sides to compare.
        seconds: seconds of load for each figure.
        rounds: number of times that every side is started and measured.
    """

    def __init__(self, sides: Sequence[Side], seconds: float, rounds: int) -> None:
        self.sides, self.seconds, self.rounds = sides, seconds, rounds
        self.results = Results()

    def load(self, model: Model, connections: Sequence[int], sides: Sequence[Side]) -> None:
        """Measure throughput, latency and CPU by the number of connections."""
        for side in self._rounds(sides, f"{model.name} under load"):
            with self._noting(side, model.name), side.start(model) as running:
                ready(running, model)
                for count in connections:  # TorchScript and Java compile functions that are called often
                    fire(running, model, count, self.seconds)
                    check(running, model, len(model.bodies))
                for count in connections:
                    figures = fire(running, model, count, self.seconds)
                    # Answered after the requests that wrk has left in the queue; the next side must not wait for them.
                    check(running, model, len(model.bodies))
                    self.results.loads.setdefault((side.key, model.name, count), []).append(figures)

    def latency(self, model: Model, rates: Sequence[float], sides: Sequence[Side]) -> None:
        """Measure latency at rates that do not depend on the server."""
        for side in self._rounds(sides, f"latency of {model.name}"):
            with self._noting(side, f"latency of {model.name}"), side.start(model) as running:
                ready(running, model)
                for rate in rates:
                    step = at_rate(running, model, rate, self.seconds)
                    self.results.steps.setdefault((side.key, model.name, rate), []).append(step)

    def busy(self, model: Model, connections: Sequence[int], neighbours: Sequence[int]) -> None:
        """Measure throughput, latency and CPU beside busy neighbours.

        All servers run at the same time, and are loaded in turn, in each round in the opposite order: other programs on
        the machine affect all of them equally.
        """
        with contextlib.ExitStack() as servers:
            running = {}
            for side in self.sides:
                with self._noting(side, model.name):
                    running[side] = servers.enter_context(side.start(model))
                    ready(running[side], model)
            for count in neighbours:
                with processes.neighbours(count):
                    for side, side_server in running.items():
                        _tell(f"{model.name} beside {count} neighbours: {side.title} warms up")
                        for number in connections:
                            with self._noting(side, model.name), contextlib.suppress(Unanswered):
                                fire(side_server, model, number, self.seconds)
                    for turn in range(self.rounds):
                        _tell(f"{model.name} beside {count} neighbours, round {turn + 1} of {self.rounds}")
                        for number in connections:
                            for side in list(running)[:: -1 if turn % 2 else 1]:
                                with self._noting(side, f"{model.name} beside {count} neighbours"):
                                    figures = self._fire_busy(running[side], model, number)
                                    self.results.busy.setdefault((count, side.key, model.name, number), []).append(
                                        figures
                                    )

    def _fire_busy(self, running: Running, model: Model, connections: int) -> Figures:
        try:
            figures = fire(running, model, connections, self.seconds)
        except Unanswered:
            figures = Figures(rate=0.0, p50=self.seconds, p99=self.seconds, cpu=float("inf"))
        # After the requests that wrk has left in the queue; the next side must not wait for them.
        check(running, model)
        return figures

    def memory(self, model: Model) -> None:
        """Measure the memory of one and of four workers that have all answered, and are idle."""
        for side in self._rounds(self._whole, f"memory of {model.name}"):
            with self._noting(side, f"memory of {model.name}"):
                if side.managed:
                    with side.start(model) as running:
                        assert running.management
                        ready(running, model)
                        for workers in (1, 4):
                            running.management.scale(model.name, min_worker=workers)
                            self._weigh(side, running, model, workers)
                    continue
                for workers in (1, 4):
                    with side.start(model, workers=workers) as running:
                        ready(running, model)
                        self._weigh(side, running, model, workers)

    def times(self, model: Model) -> None:
        """Measure the times from start and registration to the first answer, twice, and from one worker to four."""
        for side in self._rounds(self._whole, "times"):
            with self._noting(side, "times"):
                started = time.perf_counter()
                with side.start(model) as running:
                    ready(running, model)
                    self._took(side, "start", started)
                if not side.managed:
                    continue
                with side.start(model, empty=True) as running:
                    assert running.management
                    started = time.perf_counter()
                    running.management.register(model.file, initial_workers=1)
                    ready(running, model)
                    self._took(side, "register", started)
                    running.management.unregister(model.name)
                    started = time.perf_counter()
                    running.management.register(model.file, initial_workers=1)
                    ready(running, model)
                    self._took(side, "again", started)
                    started = time.perf_counter()
                    running.management.scale(model.name, min_worker=4)
                    self._took(side, "scale", started)
                    (version,) = running.management.describe(model.name)
                    if version.ready != 4:
                        raise Failed(f"{version.ready} workers are ready after scaling to 4")
                    check(running, model)

    def floor(self, model: Model, batch: int = BATCH) -> None:
        """Measure the handler of images without a server, in batches of this number of requests."""
        with tempfile.TemporaryDirectory(prefix="floor-") as home:
            folder = Path(home, "archive")
            with Archive(model.stores["ours"] / model.file) as opened:
                opened.extract(folder)
            files = []
            for index, body in enumerate(model.bodies):
                files.append(Path(home, f"{index}.jpg"))
                files[-1].write_bytes(body)
            command = [sys.executable, str(_FLOOR), str(folder), str(batch), str(self.seconds), *map(str, files)]
            environment = worker_environment(os.environ)
            for number in range(self.rounds):
                _tell(f"floor of {model.name}, round {number + 1} of {self.rounds}")
                process = subprocess.run(command, capture_output=True, text=True, env=environment)
                if process.returncode:
                    self.results.failures.append(f"the floor: {process.stderr.strip()}")
                    return
                self.results.floor.append(float(process.stdout.split()[-1]))

    @property
    def _whole(self) -> list[Side]:
        return [side for side in self.sides if not side.only_load]

    def _rounds(self, sides: Sequence[Side], what: str) -> Iterable[Side]:
        for number in range(self.rounds):
            for side in sides:
                _tell(f"{what}, round {number + 1} of {self.rounds}: {side.title}")
                yield side

    @contextlib.contextmanager
    def _noting(self, side: Side, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.results.failures.append(f"{side.title}, {what}: {error}")
            _tell(f"  failed: {error}")

    def _weigh(self, side: Side, running: Running, model: Model, workers: int) -> None:
        with ThreadPoolExecutor(64) as clients:  # as many at once as four workers take, so that each gets requests
            list(clients.map(lambda _: check(running, model, 1), range(128)))
        time.sleep(_REST_SECONDS)
        self.results.memories.setdefault((side.key, model.name, workers), []).append(memory(running.pid))

    def _took(self, side: Side, what: str, started: float) -> None:
        self.results.times.setdefault((side.key, what), []).append(time.perf_counter() - started)


def ready(running: Running, model: Model, seconds: float = _START_SECONDS) -> None:
    """Wait for the first right answer, at most ``seconds``.

    Raises:
        Failed: the server ended, or does not answer in time.
    """
    deadline = time.perf_counter() + seconds
    while True:
        try:
            check(running, model, 1)
        except (OSError, Failed) as error:
            if problem := running.ended():
                raise Failed(problem) from None
            if time.perf_counter() > deadline:
                raise Failed(f"no answer after {seconds:.0f} s: {error}") from None
            time.sleep(0.01)
        else:
            return


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
