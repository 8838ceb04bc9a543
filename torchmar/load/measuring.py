"""The measurement of one step: a load on a server for some time, and the checks whether its figures are reliable."""

from __future__ import annotations

import contextlib
import gc
import math
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from torchmar import metrics
from torchmar.cluster.processes import node_addresses
from torchmar.errors import TorchmarError
from torchmar.load import machine_use, other_machines, schedule, server_split, statistics
from torchmar.load.event_loop import EventLoop, clock, precise_timers
from torchmar.load.expectations import Expectations
from torchmar.load.generator import Generator
from torchmar.load.kinds import Arrivals, Kind
from torchmar.load.recorder import Recorder, counts
from torchmar.load.results import SelfCheck, ServerProcesses, Step
from torchmar.load.target import Target, Wire
from torchmar.load.workload import Workload

#: Use of the client's core above which the client itself may be the limit.
MAX_BUSY = 0.85
#: The share of the machine's cores that other programs may use.
MAX_OTHERS = 0.15
#: Limit for the lateness of the latest hundredth of the requests: in milliseconds, or as a share of the 99th percentile
#: of latency if that is more.
MAX_DELAY_MS, MAX_DELAY_SHARE = 0.5, 0.1
#: A rate that a client in one process cannot reach; its requests would be ever later.
MOST_RATE = 100_000
_PROGRESS_S = 0.5
_OTHER_FILES = 64  # open files in addition to connections


@dataclass(frozen=True, kw_only=True)
class StepSpec:
    """A step to measure.

    Attributes:
        kind: ``open``: requests at ``rate``; ``closed``: ``connections`` that wait for the answer to each request;
            ``replay``: requests at ``times``.
        rate: requests per second of an open loop.
        arrivals: distribution of the times between requests of an open loop.
        connections: number of connections of a closed loop.
        times: start times of a replay's requests, in seconds, in ascending order; a replay has no warm-up.
        warmup_s: seconds of load before the measurement.
        duration_s: measured seconds.
        timeout_s: seconds after which a request without an answer fails.
        max_connections: limit of connections in an open loop or a replay.
        seed: seed of the Poisson process.
    """

    kind: Kind = "open"
    rate: float | None = None
    arrivals: Arrivals = "poisson"
    connections: int = 1
    times: tuple[float, ...] = ()
    warmup_s: float = 2.0
    duration_s: float = 10.0
    timeout_s: float = 30.0
    max_connections: int = 1024
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The state of a step that is being measured.

    Attributes:
        spec: the step.
        elapsed_s: seconds since the end of the warm-up; negative during it.
        sent: number of requests so far.
        answered: number of answers so far.
        failed: number of failed requests so far.
        wrong: number of wrong answers so far.
        in_flight: number of requests without an answer.
        p50_ms: median latency of the last window; None without answers.
        p99_ms: 99th percentile of the latency in the last window.
    """

    spec: StepSpec
    elapsed_s: float
    sent: int
    answered: int
    failed: int
    wrong: int
    in_flight: int
    p50_ms: float | None
    p99_ms: float | None


OnProgress = Callable[[Progress], None]
#: Called with the record of a step about every 50 ms; a returned reason ends the step.
Stop = Callable[[Recorder, float], str]


def measure(
    target: Target,
    workload: Workload,
    expectations: Expectations,
    spec: StepSpec,
    *,
    on_progress: OnProgress | None = None,
    stop: Stop | None = None,
) -> Step:
    """Measure one step.

    Ctrl-C ends it early; the step then contains the results so far, with ``complete`` false.

    Args:
        target: the server and model.
        workload: the requests, which are sent in turn.
        expectations: their expected answers, from `torchmar.load.expectations.gather`.
        spec: the load.
        on_progress: called twice a second; it has to return within some microseconds.
        stop: ends the step early if it returns a reason.

    Returns:
        The step.

    Raises:
        TorchmarError: the rate or another value of the step is not more than 0, or the address is invalid.
    """
    _check(spec)
    _allow_descriptors(spec.connections if spec.kind == "closed" else spec.max_connections)
    wire = Wire(target, workload.cases)
    multiplex = spec.kind != "closed"
    pid = target.pid if target.local else None
    with EventLoop() as loop, precise_timers(), _without_garbage_collection():
        warmup_s = 0.0 if spec.kind == "replay" else spec.warmup_s
        start = clock()
        recorder = Recorder(start + warmup_s, spec.duration_s, from_due=spec.kind != "closed")
        generator = Generator(
            loop,
            lambda owner: wire.connect(loop, owner, multiplex=multiplex),
            list(expectations.expected),
            recorder,
            spec.timeout_s,
            spec.connections if spec.kind == "closed" else spec.max_connections,
        )
        run = _Run(target, spec, recorder, generator, pid, on_progress, stop)
        interrupted = False
        try:
            if spec.kind == "closed":
                generator.run_closed(spec.connections, recorder.end, run.watch)
            else:
                times = (
                    schedule.recorded(spec.times)
                    if spec.kind == "replay"
                    else schedule.at_rate(spec.arrivals, spec.rate or 1.0, spec.seed)
                )
                generator.run_open(start, times, recorder.end, run.watch)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            generator.close()
        generator.check.finish()
        return run.step(interrupted)


class _Run:
    """One measurement: its readings of metrics and CPU times, and the resulting step."""

    def __init__(
        self,
        target: Target,
        spec: StepSpec,
        recorder: Recorder,
        generator: Generator,
        pid: int | None,
        on_progress: OnProgress | None,
        stop: Stop | None,
    ) -> None:
        self._target, self._spec, self._recorder, self._generator = target, spec, recorder, generator
        self._pid, self._on_progress, self._stop = pid, on_progress, stop
        self._next_progress = 0.0
        self._metrics_before = server_split.read(target.metrics, target.endpoint)
        self._processes = None if pid is None else machine_use.server_processes(pid, target.cluster)
        self._began = clock()
        self._before: machine_use.Reading | None = None
        self._after: machine_use.Reading | None = None
        self.reason = ""  # why the step ended early
        self._ended_at = math.inf

    def watch(self, now: float) -> bool:
        """Take the readings when they are due; return whether the step should end."""
        recorder = self._recorder
        if self._before is None and now >= recorder.start:
            self._before = self._reading()
        if self._after is None and now >= recorder.end:
            self._after = self._reading()  # known processes only; a search would delay requests
        if self._on_progress is not None and now >= self._next_progress:
            self._next_progress = now + _PROGRESS_S
            self._on_progress(self._progress(now))
        if self._stop is not None and now >= recorder.start and (reason := self._stop(recorder, now)):
            self.reason, self._ended_at = reason, now
            return True
        return False

    def _progress(self, now: float) -> Progress:
        recorder = self._recorder
        p50, p99 = recorder.latest(now).percentiles((50, 99))
        return Progress(
            spec=self._spec,
            elapsed_s=now - recorder.start,
            sent=recorder.sent,
            answered=recorder.answered,
            failed=recorder.failed,
            wrong=recorder.wrong,
            in_flight=recorder.sent - recorder.ended,
            p50_ms=None if math.isnan(p50) else p50 / 1000,
            p99_ms=None if math.isnan(p99) else p99 / 1000,
        )

    def _reading(self) -> machine_use.Reading:
        return machine_use.Reading(self._processes, self._target.local)

    def _server_processes(
        self, cores: float | None, now: metrics.Reading | None, seconds: float
    ) -> ServerProcesses | None:
        """Return the use of a local server's processes, and of replicas on other machines since the start.

        Args:
            cores: cores that the server's processes on this machine used.
            now: current metrics of the server.
            seconds: seconds since the start of the load.
        """
        if self._processes is None or cores is None:
            return None
        local = machine_use.describe_processes(self._processes, cores)
        if local is None or self._metrics_before is None or self._target.cluster is None:
            return local
        nodes = node_addresses(self._processes)
        if not other_machines.has_any(now, nodes):
            return local
        time.sleep(other_machines.SETTLED_SECONDS)  # without load, so that the reading only adds the load's own time
        settled = server_split.read(self._target.metrics, self._target.endpoint)
        if settled is None:
            return local
        others = other_machines.between(self._metrics_before, settled, nodes)
        return replace(
            local,
            cpu_cores=local.cpu_cores + others.cpu_seconds / seconds,
            memory_bytes=local.memory_bytes + others.memory_bytes,
            replicas_elsewhere=others.replicas,
        )

    def step(self, interrupted: bool) -> Step:
        """Return the step with the results so far."""
        recorder, spec, target = self._recorder, self._spec, self._target
        now = clock()
        metrics_now = server_split.read(target.metrics, target.endpoint)
        after = self._after or self._reading()
        if self._pid is not None:
            self._processes = machine_use.server_processes(self._pid, target.cluster)
            after.add(self._processes)
        use = (self._before or after).use_until(after)
        complete = not interrupted and not self.reason
        windows = recorder.windows(math.inf if complete else min(now, self._ended_at))
        count = len(windows)
        throughput, interval = recorder.throughput(count)
        latency = recorder.latency(count)
        stability = statistics.stability(
            {
                "p50 ms": [math.nan if window.p50_ms is None else window.p50_ms for window in windows],
                "answers/s": recorder.rates(count),
            },
            recorder.window_s,
        )
        client = SelfCheck(
            send_delay_p99_ms=recorder.send_delay_p99_ms,
            busy_fraction=use.client_cores,
            other_load_cores=use.other_cores,
        )
        p99_ms = latency.p99 if latency else 0.0
        reasons = invalid_reasons(client, p99_ms, len(machine_use.cores()), scheduled=spec.kind != "closed")
        return Step(
            kind=spec.kind,
            arrivals=spec.arrivals if spec.kind == "open" else None,
            rate=spec.rate if spec.kind == "open" else len(spec.times) / spec.duration_s if spec.times else None,
            connections=spec.connections if spec.kind == "closed" else self._generator.opened,
            warmup_s=0.0 if spec.kind == "replay" else spec.warmup_s,
            duration_s=recorder.window_s * count,
            complete=complete,
            sent=sum(window.sent for window in windows) if not complete else recorder.sent,
            completed=sum(window.completed for window in windows) if not complete else recorder.answered,
            throughput=throughput,
            throughput_interval=interval,
            latency_ms=latency,
            histogram=counts(recorder.histogram(count)),
            windows=windows,
            errors=recorder.failures(),
            wrong_answers=recorder.wrong,
            wrong_answer=self._generator.check.example if recorder.wrong else "",
            server=server_split.between(self._metrics_before, metrics_now, target.model, target.version or ""),
            processes=self._server_processes(use.server_cores, metrics_now, now - self._began),
            client=client,
            stable=stability.stable,
            unstable_reason=stability.reason,
            valid=not reasons,
            invalid_reasons=tuple(reasons),
        )


def invalid_reasons(client: SelfCheck, p99_ms: float, cores: int, *, scheduled: bool = True) -> list[str]:
    """Return the reasons why a measurement says nothing about the server; empty if there are none.

    Args:
        client: state of the client and of the machine.
        p99_ms: 99th percentile of latency.
        cores: number of cores of the machine.
        scheduled: whether requests have scheduled times. In a closed loop, the requests after answers that arrive
            together are sent one after another; only a client without idle time spoils such a measurement.
    """
    reasons = []
    limit = max(MAX_DELAY_MS, MAX_DELAY_SHARE * p99_ms)
    if scheduled and client.send_delay_p99_ms > limit:
        reasons.append(f"1 % of the requests left more than {client.send_delay_p99_ms:.3g} ms late")
    if client.busy_fraction > MAX_BUSY:
        reasons.append(f"the client used {client.busy_fraction:.0%} of its core")
    if client.other_load_cores is not None and client.other_load_cores > MAX_OTHERS * cores:
        reasons.append(f"other programs used {client.other_load_cores:.1f} of {cores} cores")
    return reasons


def _check(spec: StepSpec) -> None:
    if spec.kind == "open" and spec.rate and MOST_RATE < spec.rate < math.inf:
        raise TorchmarError(
            f"{spec.rate:g} requests a second are more than one client sends: {MOST_RATE:,} at the most",
            hint="--find-limit finds the highest rate that the server holds",
        )
    if spec.kind == "open" and not (spec.rate and spec.rate > 0 and math.isfinite(spec.rate)):
        raise TorchmarError(f"a rate is more than 0 requests a second, not {spec.rate or 0:g}")
    if spec.kind == "closed" and spec.connections < 1:
        raise TorchmarError(f"a closed loop needs at least one connection, not {spec.connections}")
    if spec.kind == "replay" and not spec.times:
        raise TorchmarError("there are no requests to replay")
    if spec.duration_s <= 0 or spec.warmup_s < 0 or spec.timeout_s <= 0:
        raise TorchmarError("a duration and a timeout are more than 0 seconds, a warm-up is not negative")


def _allow_descriptors(connections: int) -> None:
    """Raise this process's limit of open files, as far as the system allows, to the number needed for connections.

    Raises:
        TorchmarError: the limit cannot be raised far enough.
    """
    required = connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= required:
        return
    if hard != resource.RLIM_INFINITY and hard < required:
        raise TorchmarError(
            f"{connections} connections need {required} open files, and this process may have {hard}",
            hint="fewer connections, or a higher limit: ulimit -n",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (required, hard))


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Switch the garbage collector off, which would stop the client for milliseconds; the client makes no cycles."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
