"""A whole measurement: its steps or the search for the limit, and the report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone

import torchmar
from torchmar.load import expectations, limit, machine_use
from torchmar.load.expectations import Expectations
from torchmar.load.measuring import OnProgress, StepSpec, measure
from torchmar.load.results import Limit, Report, RequestsInfo, Step, TargetInfo
from torchmar.load.target import Target
from torchmar.load.workload import Workload

_PROBE_S = 2.0
_PROBE_CONNECTIONS = 16
_SETTLE_S = 30.0
_SETTLED = 3.0  # factor up to which the latency of a single request shows that the server has no queue
_SETTLED_S = 0.05


class Session:
    """A measurement of one target with one workload.

    Args:
        target: the server and model.
        workload: the requests.
        on_progress: called twice a second while a step is measured.

    Attributes:
        steps: the measured steps.
        complete: whether everything was measured as requested.

    Raises:
        ConnectError: no server answers.
        ServerError: the server rejects the requests.
    """

    def __init__(self, target: Target, workload: Workload, on_progress: OnProgress | None = None) -> None:
        self.target, self.workload, self._on_progress = target, workload, on_progress
        self.expectations: Expectations = expectations.gather(target, workload)
        self._alone_s = self._latency_alone()
        self.steps: list[Step] = []
        self.limit: Limit | None = None
        self.complete = False

    def run(self, specs: Sequence[StepSpec]) -> None:
        """Measure steps; Ctrl-C ends the measurement after the step that it interrupts."""
        for spec in specs:
            self._settle()
            step = measure(self.target, self.workload, self.expectations, spec, on_progress=self._on_progress)
            if step.windows:  # not interrupted in the first window
                self.steps.append(step)
            if not step.complete:
                return
        self.complete = True

    def find_limit(self, spec: StepSpec) -> None:
        """Find the highest rate that the server holds.

        Args:
            spec: an open loop; without a rate, the search starts at half of the throughput of a short closed loop.
        """

        def step(rate: float) -> Step:
            self._settle()
            at_rate = replace(spec, rate=rate)
            return measure(
                self.target,
                self.workload,
                self.expectations,
                at_rate,
                on_progress=self._on_progress,
                stop=limit.stop_at(rate),
            )

        first = spec.rate or limit.first_rate(self._probe(spec))
        self.limit = limit.find_limit(step, first, self.steps)
        self.steps = [step for step in self.steps if step.windows]
        self.complete = self.limit.reason != limit.INTERRUPTED

    def report(self) -> Report:
        """Return the report of the steps so far."""
        target = self.target
        return Report(
            created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            torchmar=torchmar.__version__,
            machine=machine_use.describe(),
            target=TargetInfo(
                url=target.url,
                protocol=target.protocol,
                engine=target.engine,
                model=target.model,
                model_version=target.version or "",
                local=target.local,
                archive_digest=target.archive_digest,
            ),
            requests=RequestsInfo(
                source=self.workload.source,
                count=len(self.workload.cases),
                bytes=self.workload.mean_bytes,
                compared=self.expectations.compared,
            ),
            steps=tuple(self.steps),
            limit=self.limit,
            complete=self.complete,
        )

    def _probe(self, spec: StepSpec) -> float:
        """Return the throughput of a short closed loop."""
        probe = replace(
            spec, kind="closed", connections=_PROBE_CONNECTIONS, duration_s=_PROBE_S, warmup_s=min(1.0, spec.warmup_s)
        )
        return measure(self.target, self.workload, self.expectations, probe).throughput

    def _settle(self) -> None:
        """Wait until the server has emptied the queue of an earlier step."""
        deadline = time.monotonic() + _SETTLE_S
        while self._latency_alone() > max(_SETTLED * self._alone_s, _SETTLED_S) and time.monotonic() < deadline:
            time.sleep(0.1)

    def _latency_alone(self) -> float:
        """Return the latency of a single request in seconds."""
        began = time.monotonic()
        expectations.send_one(self.target, self.workload.cases[0])
        return time.monotonic() - began
