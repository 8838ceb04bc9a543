"""A server whose settings are changed over its management API, and measured under load."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import psutil

from torchmar import engines
from torchmar.archive import Archive, derive
from torchmar.engines import EngineName
from torchmar.engines.addresses import free_addresses
from torchmar.engines.server_records import ServerRecord
from torchmar.errors import EngineError, ModelFailedError, NotFoundError, ServerError, TorchmarError
from torchmar.load import expectations
from torchmar.load.expectations import Expectations
from torchmar.load.histogram import Histogram
from torchmar.load.measuring import StepSpec, measure
from torchmar.load.results import Step
from torchmar.load.servers import cluster_of
from torchmar.load.target import Target as LoadTarget
from torchmar.load.workload import Workload
from torchmar.tuning import cluster_room
from torchmar.tuning.cluster_room import ClusterRoom
from torchmar.tuning.space import Setting
from torchmar.tuning.target import Target
from torchmar.tuning.trials import Trial

if TYPE_CHECKING:
    from typing_extensions import Self

_WARM_UP_SECONDS, _NEXT_SECONDS = 1.5, 0.5  # load before a measurement of a new setting, or of its next rate
# Java compiles code that has run some thousand times: at 40 requests a second, the 99th percentile of TorchServe falls
# by half within a minute, and later measurements look better. After a closed loop of this duration it stays the same.
_COMPILING_SECONDS, _COMPILING_CONNECTIONS = 6.0, 8
# One stall of a tenth of a second is 1 % of ten seconds: a shorter measurement shows the stall, not the setting.
LEAST_SECONDS, _MOST_SECONDS = 10.0, 20.0  # limits for the duration of a measurement
BRIEF_SECONDS = 3.0  # shortest duration of a measurement that another one confirms
_REQUESTS = 1_000  # number of requests of a measurement, unless that takes longer
_SPARE = 1.1  # factor for the number of requests that a percentile needs, because arrivals are random
_LOAD_SECONDS = 180.0
# Keys of model-config.yaml that a registration sets for each trial.
_SET_BY_TRIALS = ("minWorkers", "maxWorkers", "batchSize", "maxBatchDelay", "stages")


class LiveServer:
    """A server with one model, on free ports; a context manager.

    Args:
        engine: the kind of server.
        archive: the archive.
        workload: requests; all of them get a prediction.
        target: target with the statistic to measure.
        choose_threads: whether the archive's handler has the option ``threads``.
        choose_device: whether settings differ in their device.
        seconds: duration of each measurement; None: the rate determines it.
        head: address of the cluster's head, for the engine ray; None: that of the configuration, or a cluster of this
            machine alone.

    Attributes:
        compared: target whose statistic is the latency of the trials: ``target``, or one of a lower percentile.
    """

    def __init__(
        self,
        engine: EngineName,
        archive: Path,
        workload: Workload,
        target: Target,
        *,
        choose_threads: bool,
        choose_device: bool = False,
        seconds: float | None = None,
        head: str | None = None,
    ) -> None:
        self._head = head
        self._engine, self._archive, self._workload, self._target = engine, archive, workload, target
        self.compared = target
        self._choose_threads, self._choose_device, self._seconds = choose_threads, choose_device, seconds
        with Archive(archive) as opened:
            self._name, self._version = opened.manifest.name, opened.manifest.version
            self._digest = opened.digest
        self._cleanup = contextlib.ExitStack()
        self._variants: dict[tuple[int, int, int, int, bool], Path] = {}
        self._registered: Setting | None = None
        self._expected: Expectations | None = None

    def __enter__(self) -> Self:
        try:
            folder = Path(self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="torchmar-tune-")))
            self._store = folder / "store"
            self._store.mkdir()
            kind = engines.named(self._engine)
            overrides = {
                **free_addresses(),
                **kind.own_keys("tune", self._head),
                "enable_model_api": "true",
                "load_models": "",
                "disable_system_metrics": "true",
            }
            if self._engine != "torchserve":
                overrides["model_snapshot"] = ""  # TorchServe runs without snapshots, and does not accept this key
            self._server = self._cleanup.enter_context(kind(None, self._store, folder / "run", overrides=overrides))
        except BaseException:
            self._cleanup.close()
            raise
        record = ServerRecord.find(self._server.folder)
        if record is None:
            self._cleanup.close()
            raise EngineError(f"{engines.TITLES[self._engine]} has ended")
        self._pid = record.pid
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.close()

    def room(self, cores: int) -> ClusterRoom:
        """Return the replicas that fit on the nodes of the cluster, before the first measurement.

        Args:
            cores: number of cores of this machine.

        Raises:
            TorchmarError: there is no room for a replica, or it would run on GPUs.
        """
        with Archive(self._archive) as archive:
            address = self._server.properties.url("metrics_address")
            return cluster_room.measure(address, self._server.server, archive, cores)

    def measure(
        self,
        setting: Setting,
        rate: float,
        predicted: float,
        purpose: str,
        *,
        shortest: float = LEAST_SECONDS,
        longest: float = _MOST_SECONDS,
    ) -> Trial:
        """Change the server to a setting, and measure it at a rate.

        Args:
            setting: the setting.
            rate: requests per second.
            predicted: predicted statistic, in seconds.
            purpose: purpose of the trial.
            shortest: shortest duration of the trial in seconds.
            longest: duration in seconds up to which the trial is extended until the percentile has enough requests.

        Raises:
            ModelFailedError: a worker does not load.
            TorchmarError: answers are wrong.
            KeyboardInterrupt: the measurement was interrupted.
        """
        warm_up = _WARM_UP_SECONDS if self._apply(setting) else _NEXT_SECONDS
        load = LoadTarget(
            endpoint=self._server.server,
            model=self._name,
            pid=self._pid,
            metrics=self._server.properties.url("metrics_address"),
            engine=self._engine,
            cluster=cluster_of(self._server.properties) if self._engine == "ray" else None,
            archive_digest=self._digest,
        )
        if self._expected is None:
            self._expected = expectations.gather(load, self._workload)
            if self._engine == "torchserve":
                self._have_java_compiled(load, self._expected)
        seconds = self._seconds or trial_seconds(self._target, rate, longest, shortest=shortest)
        spec = StepSpec(rate=rate, warmup_s=warm_up, duration_s=seconds)
        before = _cpu_seconds(self._pid)
        step = measure(load, self._workload, self._expected, spec)
        cpu_s = _cpu_seconds(self._pid) - before
        if not step.complete:
            raise KeyboardInterrupt
        if step.wrong_answers:
            raise TorchmarError(
                f"{step.wrong_answers} of {step.completed} answers are wrong, with {setting}: {step.wrong_answer}",
                hint="torchmar check --run compares answers in batches with those to single requests",
            )
        return self._trial(setting, rate, predicted, purpose, step, cpu_s / (rate * (spec.warmup_s + spec.duration_s)))

    def _have_java_compiled(self, load: LoadTarget, expected: Expectations) -> None:
        """Send requests to a server in Java until its code is compiled."""
        spec = StepSpec(kind="closed", connections=_COMPILING_CONNECTIONS, warmup_s=0.0, duration_s=_COMPILING_SECONDS)
        if not measure(load, self._workload, expected, spec).complete:
            raise KeyboardInterrupt

    def _trial(self, setting: Setting, rate: float, predicted: float, purpose: str, step: Step, loop: float) -> Trial:
        latency = step.latency_ms
        statistic = None if latency is None else float(getattr(latency, self.compared.name)) / 1000
        histogram = Histogram.from_json(asdict(step.histogram))
        shares = (0.0, 0.0)
        if split := step.server:
            parts = (split.preprocess_ms or 0.0, split.inference_ms or 0.0, split.postprocess_ms or 0.0)
            if sum(parts):
                shares = parts[0] / sum(parts), parts[2] / sum(parts)
        return Trial(
            setting=setting,
            rate=rate,
            seconds=step.duration_s,
            requests=step.sent,
            latency=statistic,
            median=None if latency is None else latency.p50 / 1000,
            throughput=step.throughput,
            failed=step.failed / max(1, step.sent),
            predicted=predicted,
            statistic=self.compared.name,
            answered=histogram.count,
            within=histogram.count_below(round(self._target.seconds * 1e6)),
            loop=loop,
            client=step.client.busy_fraction * step.duration_s / max(1, step.sent),
            cores=step.processes.cpu_cores if step.processes else None,
            memory=step.processes.memory_bytes if step.processes else None,
            before_share=shares[0],
            after_share=shares[1],
            stable=step.stable,
            disturbances=step.invalid_reasons,
            purpose=purpose,
        )

    def _apply(self, setting: Setting) -> bool:
        """Register the model with a setting, or scale its workers if only their number differs.

        Returns:
            Whether the setting differs from the previous one.
        """
        management, last = self._server.management, self._registered
        if setting == last:
            return False
        key = variant_key(setting)
        workers_only = last and variant_key(last) == key and _batching(last) == _batching(setting)
        try:
            if workers_only:
                management.scale(self._name, self._version, min_worker=setting.workers, timeout=_LOAD_SECONDS)
            else:
                if key not in self._variants:
                    self._variants[key] = self._derive(setting, len(self._variants))
                if last:
                    with contextlib.suppress(NotFoundError):
                        management.unregister(self._name)
                self._registered = None
                archive = self._variants[key]
                with Archive(archive) as opened:
                    self._version = opened.manifest.version
                management.register(
                    archive.name,
                    initial_workers=setting.workers,
                    batch_size=setting.batch_size,
                    max_batch_delay=setting.delay_ms or None,
                    timeout=_LOAD_SECONDS,
                )
        except ServerError as error:
            raise ModelFailedError(
                f"{self._name} does not start with {setting}: {error.message}",
                traceback=self._server.worker_traceback(self._name, self._version),
            ) from None
        self._registered = setting
        return True

    def _derive(self, setting: Setting, number: int) -> Path:
        config = trial_config(
            self._archive,
            setting,
            choose_threads=self._choose_threads,
            choose_device=self._choose_device,
            replicas=self._engine == "ray",
        )
        with Archive(self._archive) as opened:
            version = f"{opened.manifest.version}-tune{number}"
        return derive(self._archive, self._store, version=version, config=config).path


def trial_seconds(target: Target, rate: float, longest: float, *, shortest: float = LEAST_SECONDS) -> float:
    """Return the duration of a measurement: up to 20 seconds, and longer if the percentile needs more requests.

    Args:
        target: target with the statistic to measure.
        rate: requests per second.
        longest: longest duration in seconds, for the percentile.
        shortest: shortest duration in seconds.
    """
    usual = min(max(shortest, _REQUESTS / rate), _MOST_SECONDS)
    return max(min(usual, longest), min(_SPARE * target.least_requests / rate, longest))


def variant_key(setting: Setting) -> tuple[int, int, int, int, bool]:
    """Return the values that need an archive of their own: threads, stages and device; with stages also the workers."""
    staged = setting.preprocess or setting.postprocess
    return setting.threads, setting.workers if staged else 0, setting.preprocess, setting.postprocess, setting.gpu


def trial_config(
    archive: Path, setting: Setting, *, choose_threads: bool, choose_device: bool = False, replicas: bool = False
) -> dict[str, Any]:
    """Return the changes of an archive's configuration for trials, without batching and workers.

    Args:
        archive: the archive.
        setting: setting with the threads, stages and device.
        choose_threads: whether the handler has the option ``threads``.
        choose_device: whether the device is set.
        replicas: whether workers are replicas, whose number of threads is that of their CPUs.
    """
    with Archive(archive) as opened:
        config = opened.config
    changes: dict[str, Any] = {key: None for key in _SET_BY_TRIALS if key in config}
    if choose_threads:
        options = config.get("handler")
        changes["handler"] = {**(options if isinstance(options, dict) else {}), "threads": setting.threads}
    if setting.preprocess or setting.postprocess:
        workers = {"preprocess": setting.preprocess, "inference": setting.workers, "postprocess": setting.postprocess}
        changes["stages"] = {name: number for name, number in workers.items() if number}
    if replicas:
        section = config.get("torchmar")
        section = section if isinstance(section, dict) else {}
        changes["torchmar"] = {**section, "replica": {**(section.get("replica") or {}), "cpus": setting.threads}}
    if choose_device:
        changes["deviceType"] = "gpu" if setting.gpu else "cpu"
    return changes


def _batching(setting: Setting) -> tuple[int, int]:
    return setting.batch_size, setting.delay_ms


def _cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)
