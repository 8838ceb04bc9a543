"""An optimisation: variants of an archive's weights are made, held to the original's answers, timed, and one chosen."""

from __future__ import annotations

import contextlib
import datetime
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import psutil

from torchmar import gpus
from torchmar.archive import Archive
from torchmar.checks.optimized import original_digests
from torchmar.errors import TorchmarError
from torchmar.load import machine_use
from torchmar.load.measuring import MAX_OTHERS
from torchmar.optimized_section import FOLDER
from torchmar.optimizing import agreement, choice, gate, inputs, requirements, trial_archive, user_check
from torchmar.optimizing.process.describe import describe
from torchmar.optimizing.process.jobs import Made, Weights
from torchmar.optimizing.results import Agreement, Report, Row, Timing, Verdict
from torchmar.optimizing.split import Split, split
from torchmar.optimizing.steps import StepError, Steps
from torchmar.optimizing.variants import BASELINE, PACKAGES, Variant, select
from torchmar.worker.venvs import building, specification
from torchmar.worker.venvs import folder as venvs
from torchmar.worker.venvs.folder import Venv

if TYPE_CHECKING:
    import numpy as np

SHORTEST_BUDGET = 30.0  # seconds
_LEAST_LIMIT = 60.0  # seconds that a step may take, if there is so much time left
_LIMIT_PART = 3  # of the budget: no step may take more than one of so many parts
_MEMORY_PART = 0.8  # of the memory that is free at the beginning
_RESERVE = 5.0  # seconds for the second measurement of the baseline
_DRIFT = 0.1  # of the baseline's time between its two measurements, above which the report says so
_NO_TIME = "the time was used up"
_EXPLAINED = 4  # requests whose explanations are compared, which are slow
_EXPLAIN_SECONDS = 20.0
_DISTRIBUTIONS = ("torch", "onnxruntime", "onnxruntime-gpu", "openvino", "nncf", "onnx", "onnxscript", "numpy")
_DESCRIBE_SECONDS = 60.0


class Observer(Protocol):
    """Callbacks for the progress of an optimisation."""

    def on_step(self, text: str) -> None:
        """Show what is being done; empty: nothing."""

    def on_warning(self, text: str) -> None:
        """Show what is wrong, and does not end the optimisation."""

    def on_row(self, row: Row, baseline: Row, number: int, total: int) -> None:
        """Show a row, whose verdict may still change from slower to chosen; numbers begin at 1."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the user wants.

    Attributes:
        keep: requirements of agreement, such as ``labels>=0.99``; empty: the defaults of the kind of model.
        check: a command that measures an archive; None: there is none.
        data: a folder of inputs beside the archive's samples.
        batch_sizes: that are measured; the first decides.
        threads: of the model; None: those that the handler sets.
        seconds: that it may take.
        variants: names; empty: all.
    """

    keep: tuple[str, ...] = ()
    check: str | None = None
    data: Path | None = None
    batch_sizes: tuple[int, ...] = (1,)
    threads: int | None = None
    seconds: float = 600.0
    variants: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """An optimisation that has ended.

    Attributes:
        report: all that was found.
        files: that were made, by the name of the variant; the first is the one that is loaded.
        interrupted: whether the user ended it.
    """

    report: Report
    files: Mapping[str, tuple[Path, ...]]
    interrupted: bool = False

    @property
    def chosen_files(self) -> dict[str, Path]:
        """The files of the chosen variant, by their paths in the archive; empty if the original stays."""
        chosen = self.report.chosen
        return {f"{FOLDER}/{file.name}": file for file in self.files[chosen.variant]} if chosen else {}


_Times = tuple[list[float], list[float]]
"""The seconds of calls, and the seconds that all threads computed in each."""


@dataclass
class _Measured:
    """A variant that ran: the result of its process, and its answers."""

    result: dict[str, Any]
    outputs: list[agreement.Outputs]


@dataclass(frozen=True)
class _Python:
    """The Python that runs the steps.

    Attributes:
        version: its own.
        missing: modules that variants need, and it does not have.
        versions: of distributions that it has.
        own: whether it is that of this process.
    """

    version: str
    missing: tuple[str, ...]
    versions: Mapping[str, str]
    own: bool


@dataclass
class _Session:
    """What is known while it runs."""

    steps: Steps
    python: _Python
    model: Mapping[str, Any]
    requests: Sequence[Mapping[str, Any]]
    explains: bool
    original: Weights
    size: int
    captured: Path
    sides: Split
    names: list[str]
    kind: requirements.Kind
    required: tuple[requirements.Requirement, ...]
    deadline: float
    baseline: _Measured | None = None
    metric: gate.Metric | None = None
    explanations: dict[str, np.ndarray[Any, Any]] | None = None
    times: dict[str, dict[int, list[_Times]]] = field(default_factory=dict)
    files: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    others: float = 0.0
    disturbances: list[str] = field(default_factory=list)

    @property
    def held_out(self) -> list[str]:
        return [self.names[place] for place in self.sides.held_out]

    @property
    def calibration(self) -> list[str]:
        return [self.names[place] for place in self.sides.calibration]


class Optimizer:
    """Finds the fastest weights of an archive that give the original's answers.

    Args:
        archive: the ``.mar``.
        settings: what the user wants.
        folder: of the files of variants; it must outlive their use.
        observer: gets the progress.

    Raises:
        TorchmarError: there is no such variant, or the time is too short.
    """

    def __init__(self, archive: Path, settings: Settings, folder: Path, observer: Observer) -> None:
        if settings.seconds < SHORTEST_BUDGET:
            raise TorchmarError(
                f"a budget of {settings.seconds:.0f} s is too short: the original and one variant take about "
                f"{SHORTEST_BUDGET:.0f} s",
                hint="--budget 10m is usually enough",
            )
        self._archive, self._settings, self._folder, self._observer = archive, settings, folder, observer
        self._variants = select(settings.variants)

    def run(self) -> Optimization:
        """Make and measure the variants; what an interrupt or the end of the time leaves out is skipped.

        Raises:
            ArchiveError: the archive cannot be opened.
            TorchmarError: its handler has no model that can be replaced, or the original itself gives no answers.
        """
        with contextlib.ExitStack() as stack:
            return self._run(stack)

    def _run(self, stack: contextlib.ExitStack) -> Optimization:
        # Weights that were optimised before are not what others are compared with.
        self._archive = trial_archive.original(self._archive, self._folder)
        with Archive(self._archive) as archive:
            model_dir = self._folder / "archive"
            archive.extract(model_dir)
            venv = self._venv(archive, model_dir, stack)
            started = time.monotonic()
            session = self._prepare(archive, model_dir, venv, started + self._settings.seconds)
            name, version, digest = archive.manifest.name, archive.manifest.version, archive.digest
            original = original_digests(archive, archive.manifest.model)
        self._observer.on_step(f"measuring the original with {_threads(session.original.threads)}")
        try:
            first = self._measure(session, BASELINE, session.original, answers=True)
        except StepError as error:
            hint = "--budget gives more time" if _is_over(session) else ""
            raise TorchmarError(f"{self._archive.name}: the original gives no answers: {error}", hint=hint) from None
        session.baseline = first
        if self._settings.check:
            self._observer.on_step("checking the original")
            session.metric = user_check.run(self._settings.check, self._archive, timeout_s=self._limit(session))
        baseline = self._baseline_row(session)
        rows = [baseline]
        self._observer.on_row(baseline, baseline, 1, len(self._variants))
        interrupted = ""
        for number, variant in enumerate(self._variants[1:], 2):
            if interrupted:
                row = _row(variant, Verdict.SKIPPED, interrupted)
            else:
                try:
                    row = self._variant_row(session, variant)
                except KeyboardInterrupt:
                    interrupted = "interrupted"
                    row = _row(variant, Verdict.SKIPPED, interrupted)
            rows.append(row)
            if not interrupted:
                self._observer.on_row(row, baseline, number, len(self._variants))
        if not interrupted:
            self._observer.on_step("measuring the original again")
            try:
                self._measure_again(session, first)
            except KeyboardInterrupt:
                interrupted = "interrupted"
        self._observer.on_step("")
        cpu = self._takes_cpu_time(session)
        rows = [replace(row, timings=_timings(session.times.get(row.variant, {}), cpu=cpu)) for row in rows]
        decided = choice.choose(rows, self._settings.batch_sizes)
        report = Report(
            name=name,
            version=version,
            archive=digest,
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            machine=replace(machine_use.describe(), python=session.python.version),
            threads=session.original.threads,
            batch_sizes=self._settings.batch_sizes,
            requirements=tuple(map(str, session.required)),
            inputs=len(session.held_out),
            calibration_inputs=len(session.calibration),
            original=original,
            rows=decided,
            packages=session.python.versions,
            seconds=time.monotonic() - started,
            disturbances=(*_others(session.others, cpu=cpu), *session.disturbances),
        )
        return Optimization(report=report, files=session.files, interrupted=bool(interrupted))

    def _venv(self, archive: Archive, model_dir: Path, stack: contextlib.ExitStack) -> Venv | None:
        """Return the environment of an archive, built if this machine does not have it; None: it has none.

        Raises:
            WorkerError: it cannot be built.
        """
        if not archive.runtime:
            return None

        def show(line: str) -> None:
            self._observer.on_step(f"building the environment: {line[:60]}")

        venv = building.build(specification.read(archive.runtime, model_dir), venvs.root(), show)
        stack.callback(venv.close)
        return venv

    def _described(self, steps: Steps, venv: Venv | None) -> _Python:
        job = {"modules": PACKAGES, "distributions": _DISTRIBUTIONS}
        try:
            found = describe(job) if venv is None else steps.run("describe", job, seconds=_DESCRIBE_SECONDS)
        except StepError as error:
            raise TorchmarError(f"{self._archive.name}: its environment cannot run an optimisation: {error}") from None
        return _Python(found["python"], tuple(found["missing"]), found["versions"], venv is None)

    def _prepare(self, archive: Archive, model_dir: Path, venv: Venv | None, deadline: float) -> _Session:
        """Record the inputs of the archive's model."""
        manifest, config = archive.manifest, archive.config
        requests = inputs.read(archive, self._settings.data)
        options = config.get("handler")
        options = dict(options) if isinstance(options, Mapping) else {}
        kind = requirements.kind_of(manifest.model.handler, options)
        required = requirements.required(self._settings.keep, kind, check=self._settings.check is not None)
        gpu = 0 if gpus.count() and config.get("deviceType") != "cpu" else None
        model: dict[str, Any] = {
            "name": manifest.name,
            "model_dir": str(model_dir),
            "handler": manifest.model.handler,
            "batch_size": int(archive.number("batchSize", 1)),
            "gpu": gpu,
            "envelope": manifest.model.envelope or "",
        }
        work = self._folder / "work"
        work.mkdir()
        steps = Steps(work, memory=int(psutil.virtual_memory().available * _MEMORY_PART), venv=venv)
        python = self._described(steps, venv)
        self._observer.on_step(f"recording the model's inputs for {len(requests)} requests")
        captured, written = work / "inputs.pt", list(inputs.write(requests, work))
        try:
            result = steps.run(
                "capture",
                {"model": model, "requests": written, "target": str(captured)},
                seconds=deadline - time.monotonic(),
            )
        except StepError as error:
            raise TorchmarError(
                f"{self._archive.name}: the inputs of its model cannot be recorded: {error}",
                hint="torchmar check --run shows whether the archive answers its samples",
            ) from None
        if rejected := result["rejected"]:
            first, reason = rejected[0]
            text = f"{first} is left out: the original answers it with {reason}"
            if len(rejected) > 1:
                count = f"{len(rejected)} of {len(requests)} requests"
                text = f"{count} are left out: the original answers {first} with {reason}"
            if len(rejected) == len(requests):
                raise TorchmarError(f"{self._archive.name}: no request is answered; {first}: {reason}")
            self._observer.on_warning(text)
        if not result["inputs"]:
            raise TorchmarError(f"{self._archive.name}: its handler answers without calling self.model")
        threads = self._settings.threads or int(result["threads"])
        original = Weights(
            folder=str(model_dir),
            serialized_file=manifest.model.serialized_file,
            model_file=manifest.model.model_file,
            options=options,
            pt2=config.get("pt2"),
            threads=threads,
            gpu=gpu,
        )
        return _Session(
            steps=steps,
            python=python,
            model=model,
            requests=[each for each in written if each["name"] not in dict(rejected)],
            explains=bool(result["explains"]),
            original=original,
            size=_size(model_dir, manifest.model.serialized_file),
            captured=captured,
            sides=split([digest for _, digest in result["inputs"]]),
            names=[name for name, _ in result["inputs"]],
            kind=kind,
            required=required,
            deadline=deadline,
        )

    def _variant_row(self, session: _Session, variant: Variant) -> Row:
        gpu, python = session.original.gpu is not None, session.python
        calibration = len(session.calibration)
        if reason := variant.unavailable(gpu=gpu, calibration=calibration, missing=python.missing, own=python.own):
            return _row(variant, Verdict.SKIPPED, reason)
        if time.monotonic() > session.deadline - _RESERVE:
            return _row(variant, Verdict.SKIPPED, f"{_NO_TIME}; --budget gives more")
        self._observer.on_step(f"making {variant.name}")
        folder = self._folder / variant.name
        folder.mkdir()
        # Held-out inputs must have no part in what they judge, unless there are no others to trace a model with.
        names = session.calibration or session.held_out[:1]
        job = {
            "weights": asdict(session.original),
            "inputs": str(session.captured),
            "names": names,
            "family": variant.family,
            "arguments": {**variant.arguments, **(self._calibration(session) if variant.calibrated else {})},
            "folder": str(folder),
        }
        try:
            made = Made(**session.steps.run("make", job, seconds=self._limit(session), name=variant.name))
        except StepError as error:
            if _is_over(session):
                return _row(variant, Verdict.SKIPPED, f"{_NO_TIME} while it was made; --budget gives more")
            return _row(variant, Verdict.SKIPPED if error.skipped else Verdict.FAILED, str(error))
        files = tuple(folder / name for name in made.files)
        session.files[variant.name] = files
        weights = _weights_of(session.original, made, files)
        row = _row(
            variant,
            Verdict.FAILED,
            "",
            size=sum(file.stat().st_size for file in files) if files else session.size,
            options=_section(made),
            needs=tuple(made.needs),
            packages={name: version for name, version in session.python.versions.items() if name in made.packages},
        )
        self._observer.on_step(f"measuring {variant.name}")
        try:
            measured = self._measure(session, variant.name, weights, answers=True)
        except StepError as error:
            if _is_over(session):
                reason = f"{_NO_TIME} while it was measured; --budget gives more"
                return replace(row, verdict=Verdict.SKIPPED, reason=reason)
            return replace(row, reason=str(error))
        row = replace(
            row,
            timings=_timings(session.times[variant.name]),
            load_seconds=measured.result["load_seconds"],
            memory=measured.result["memory"],
        )
        judgement = self._judge(session, measured)
        row = replace(row, agreement=judgement.agreement)
        if judgement.accepted:
            try:
                explanations = self._explanations(session, weights, measured, variant.name)
                metrics = self._metrics(session, made, files, variant.name)
            except (StepError, TorchmarError) as error:
                if _is_over(session):
                    reason = f"{_NO_TIME} while it was checked; --budget gives more"
                    return replace(row, verdict=Verdict.SKIPPED, reason=reason)
                return replace(row, reason=str(error))
            judgement = self._judge(session, measured, explanations, metrics)
        verdict = judgement.verdict or Verdict.SLOWER
        reason = f"{judgement.reason} ({made.note})" if made.note else judgement.reason
        return replace(row, verdict=verdict, reason=reason, agreement=judgement.agreement)

    def _calibration(self, session: _Session) -> dict[str, Any]:
        """Return the arguments of families that choose among several ways to calibrate."""
        return {
            "required": [str(each) for each in session.required if each.measure is not requirements.Measure.CHECK],
            "handler": session.model["handler"],
            "seconds": self._limit(session) / 2,
        }

    def _judge(
        self,
        session: _Session,
        measured: _Measured,
        explanations: Mapping[str, float] | None = None,
        metrics: tuple[gate.Metric, gate.Metric] | None = None,
    ) -> gate.Judgement:
        assert session.baseline is not None
        return gate.judge(
            session.baseline.outputs,
            measured.outputs,
            session.held_out,
            session.required,
            session.kind,
            explanations=explanations,
            metrics=metrics,
        )

    def _metrics(
        self, session: _Session, made: Made, files: Sequence[Path], name: str
    ) -> tuple[gate.Metric, gate.Metric] | None:
        """Return what the user's check measures of the original and of a variant; None: there is no check."""
        if self._settings.check is None or session.metric is None:
            return None
        self._observer.on_step(f"checking {name}")
        archive = trial_archive.write(self._archive, self._folder / "work", made, files, name=name)
        try:
            return session.metric, user_check.run(self._settings.check, archive, timeout_s=self._limit(session))
        finally:
            archive.unlink()

    def _explanations(
        self, session: _Session, weights: Weights, measured: _Measured, name: str
    ) -> dict[str, float] | None:
        """Return the rank correlations of explanations; None: there are none, or they come from the original."""
        if not session.explains or not measured.result["differentiable"]:
            return None
        self._observer.on_step(f"explaining with {name}")
        if session.explanations is None:
            session.explanations = self._explained(session, None, session.requests[:_EXPLAINED], BASELINE)
        requests = [each for each in session.requests if each["name"] in session.explanations]
        own = self._explained(session, weights, requests, name)
        return {
            request: agreement.rank_agreement(ours, own[request]) if ours.shape == own[request].shape else 0.0
            for request, ours in session.explanations.items()
            if request in own
        }

    def _explained(
        self, session: _Session, weights: Weights | None, requests: Sequence[Mapping[str, Any]], name: str
    ) -> dict[str, np.ndarray[Any, Any]]:
        import numpy as np

        file = session.captured.with_name(f"{name}-explained.npz")
        job = {
            "model": session.model,
            "weights": None if weights is None else asdict(weights),
            "requests": requests,
            "target": str(file),
            "seconds": _EXPLAIN_SECONDS,
        }
        result = session.steps.run("explain", job, seconds=self._limit(session), name=f"{name}-explained")
        with np.load(file) as arrays:
            return {request: arrays[str(place)] for place, request in enumerate(result["explained"])}

    def _measure(self, session: _Session, name: str, weights: Weights, *, answers: bool) -> _Measured:
        file = session.captured.with_name(f"{name}.npz")
        job = {
            "weights": asdict(weights),
            "inputs": str(session.captured),
            "names": session.held_out,
            "batch_sizes": self._settings.batch_sizes,
            "answers": str(file) if answers else "",
        }
        result = session.steps.run("run", job, seconds=self._limit(session), name=name)
        if result["others"] > MAX_OTHERS * len(machine_use.cores()):
            session.others = max(session.others, result["others"])
        for size, times in result["times"].items():
            session.times.setdefault(name, {}).setdefault(int(size), []).append(times)
        return _Measured(result, _outputs(file, result["outputs"], session) if answers else [])

    def _measure_again(self, session: _Session, first: _Measured) -> None:
        """Measure the original at the end, too: its interval then covers what the machine's speed did meanwhile."""
        if len(self._variants) == 1:
            return
        try:
            if time.monotonic() > session.deadline:
                raise StepError(_NO_TIME)
            again = self._measure(session, BASELINE, session.original, answers=False)
        except StepError as error:  # what was measured before is worth a report
            reason = _NO_TIME if _is_over(session) else str(error)
            session.disturbances.append(
                "the original was not measured again at the end, which shows whether the machine's speed has changed: "
                + reason
            )
            return
        cpu = self._takes_cpu_time(session)
        before, after = (
            statistics.median(_seconds(next(iter(measured.result["times"].values())), cpu=cpu))
            for measured in (first, again)
        )
        if abs(after / before - 1) > _DRIFT:
            session.disturbances.append(
                f"the original took {1000 * before:.3g} ms at the beginning and {1000 * after:.3g} ms at the end"
            )

    def _takes_cpu_time(self, session: _Session) -> bool:
        """Return whether CPU time is taken in the place of elapsed time, which other programs have made longer.

        With one thread, the two are the same on a quiet machine.
        """
        return bool(session.others) and session.original.threads == 1 and session.original.gpu is None

    def _baseline_row(self, session: _Session) -> Row:
        assert session.baseline is not None
        result = session.baseline.result
        return Row(
            variant=BASELINE,
            title=self._variants[0].title,
            verdict=Verdict.BASELINE,
            reason="",
            timings=_timings(session.times[BASELINE]),
            agreement=Agreement(
                inputs=len(session.held_out),
                labels=None if session.kind.classes is None else 1.0,
                cosine=1.0,
                relative_error=0.0,
                worst_input=session.held_out[0],
                metric=session.metric.value if session.metric else None,
            ),
            size=session.size,
            load_seconds=result["load_seconds"],
            memory=result["memory"],
        )

    def _limit(self, session: _Session) -> float:
        """Return the seconds that the next step may take."""
        left = max(1.0, session.deadline - time.monotonic())
        return min(left, max(_LEAST_LIMIT, self._settings.seconds / _LIMIT_PART))


def _row(variant: Variant, verdict: Verdict, reason: str, **values: Any) -> Row:
    return Row(variant=variant.name, title=variant.title, verdict=verdict, reason=reason, **values)


def _is_over(session: _Session) -> bool:
    """Return whether a step has ended because the time was used up, not for a reason of its own."""
    return time.monotonic() >= session.deadline


def _section(made: Made) -> dict[str, Any]:
    """Return the section ``optimized`` of a variant, without what it needs."""
    options = dict(made.options)
    return {"weights": f"{FOLDER}/{made.files[0]}", **options} if made.files else options


def _weights_of(original: Weights, made: Made, files: Sequence[Path]) -> Weights:
    """Return the weights of a variant, as the handler's option ``optimized`` loads them."""
    if files:
        return replace(original, serialized_file=str(files[0]), model_file=None, options=made.options, pt2=None)
    return replace(original, options={**original.options, **made.options})


def _others(cores: float, *, cpu: bool) -> tuple[str, ...]:
    """Return that other programs disturbed the measurements, if they did."""
    if not cores:
        return ()
    taken = "; the times are CPU times, which a quiet machine would need, too" if cpu else ""
    return (f"other programs used up to {cores:.1f} cores{taken}",)


def _timings(times: Mapping[int, Sequence[_Times]], *, cpu: bool = False) -> tuple[Timing, ...]:
    """Return the timings of the calls of each measurement, by their batch size."""
    return tuple(
        choice.timing(size, *(_seconds(both, cpu=cpu) for both in measurements))
        for size, measurements in sorted(times.items())
    )


def _seconds(times: _Times, *, cpu: bool) -> list[float]:
    """Return the seconds of calls; with ``cpu`` those that a quiet machine would need.

    CPU time is longer than elapsed time where an engine's own threads wait actively for each other.
    """
    return [min(both) for both in zip(*times, strict=True)] if cpu else times[0]


def _outputs(file: Path, names: Sequence[str], session: _Session) -> list[agreement.Outputs]:
    """Return the answers in a file of `run`, without the dimension of the batch, named as the original's."""
    import numpy as np

    own = list(session.baseline.result["outputs"]) if session.baseline else list(names)
    called = [name or "output" for name in (own if len(own) == len(names) else names)]

    def row(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        alone: np.ndarray[Any, Any] = array[0] if array.ndim and array.shape[0] == 1 else array
        return alone

    with np.load(file) as arrays:
        return [
            {name: row(arrays[f"{place}.{number}"]) for number, name in enumerate(called)}
            for place in range(len(session.held_out))
        ]


def _size(folder: Path, serialized_file: str | None) -> int:
    """Return the bytes of the original weights, with what lies beside them."""
    if serialized_file is None:
        return 0
    file = folder / serialized_file
    beside = file.with_suffix(".bin")
    files = {file, beside} if file.suffix == ".xml" and beside.is_file() else {file}
    return sum(each.stat().st_size for each in files)


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count != 1)}"
