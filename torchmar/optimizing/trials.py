"""The trials of an optimisation: the original and each variant, made, measured and compared, as a row of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torchmar.errors import TorchmarError
from torchmar.optimized_section import FOLDER
from torchmar.optimizing import budget, gate, requirements, trial_archive, user_check
from torchmar.optimizing.budget import Budget
from torchmar.optimizing.measuring import Measured, Measurements
from torchmar.optimizing.observer import Observer
from torchmar.optimizing.process.jobs import Made, Weights
from torchmar.optimizing.recording import Recording
from torchmar.optimizing.results import Agreement, Row, Verdict
from torchmar.optimizing.settings import Settings
from torchmar.optimizing.steps import StepError
from torchmar.optimizing.variants import BASELINE, Variant

_RESERVE = 5.0  # seconds for the second measurement of the baseline


class Trials:
    """Makes variants, measures them and compares them with the original's answers.

    Args:
        archive: the original.
        recorded: its model and recorded inputs.
        settings: settings of the user.
        folder: folder for the files of variants.
        time: time budget.
        observer: gets the progress.

    Attributes:
        measurements: all measurements.
        files: files of each variant, by its name.
    """

    def __init__(
        self, archive: Path, recorded: Recording, settings: Settings, folder: Path, time: Budget, observer: Observer
    ) -> None:
        self._archive, self._recorded, self._settings = archive, recorded, settings
        self._folder, self._budget, self._observer = folder, time, observer
        self._metric: gate.Metric | None = None
        self.measurements = Measurements(recorded, settings.batch_sizes, time)
        self.files: dict[str, tuple[Path, ...]] = {}

    def original(self, variant: Variant) -> Row:
        """Measure the original.

        Raises:
            TorchmarError: the original gives no answers, or the user's check fails.
        """
        recorded = self._recorded
        self._observer.on_step(f"measuring the original with {_threads(recorded.original.threads)}")
        try:
            self.measurements.measure_original()
        except StepError as error:
            hint = "--budget gives more time" if self._budget.used_up else ""
            raise TorchmarError(f"{self._archive.name}: the original gives no answers: {error}", hint=hint) from None
        if self._settings.check:
            self._observer.on_step("checking the original")
            self._metric = user_check.run(self._settings.check, self._archive, timeout_s=self._budget.step_limit)
        result = self.measurements.baseline.result
        return Row(
            variant=BASELINE,
            title=variant.title,
            verdict=Verdict.BASELINE,
            reason="",
            timings=self.measurements.timings(BASELINE),
            agreement=Agreement(
                inputs=len(recorded.held_out),
                labels=None if recorded.kind.classes is None else 1.0,
                cosine=1.0,
                relative_error=0.0,
                worst_input=recorded.held_out[0],
                metric=self._metric.value if self._metric else None,
            ),
            size=recorded.size,
            load_seconds=result["load_seconds"],
            memory=result["memory"],
        )

    def variant(self, variant: Variant) -> Row:
        """Make a variant, measure it and compare its answers; if a step fails, the row has the reason."""
        gpu, python = self._recorded.original.gpu is not None, self._recorded.python
        calibration = len(self._recorded.calibration)
        if reason := variant.unavailable(gpu=gpu, calibration=calibration, missing=python.missing, own=python.own):
            return variant_row(variant, Verdict.SKIPPED, reason)
        if self._budget.left < _RESERVE:
            return variant_row(variant, Verdict.SKIPPED, f"{budget.USED_UP}; --budget gives more")
        self._observer.on_step(f"making {variant.name}")
        folder = self._folder / variant.name
        folder.mkdir()
        try:
            made = self._made(variant, folder)
        except StepError as error:
            if self._budget.used_up:
                return variant_row(variant, Verdict.SKIPPED, f"{budget.USED_UP} while it was made; --budget gives more")
            return variant_row(variant, Verdict.SKIPPED if error.skipped else Verdict.FAILED, str(error))
        files = tuple(folder / name for name in made.files)
        self.files[variant.name] = files
        weights = _weights_of(self._recorded.original, made, files)
        row = variant_row(
            variant,
            Verdict.FAILED,
            "",
            size=sum(file.stat().st_size for file in files) if files else self._recorded.size,
            options=_section(made),
            needs=tuple(made.needs),
            packages={name: version for name, version in python.versions.items() if name in made.packages},
        )
        self._observer.on_step(f"measuring {variant.name}")
        try:
            measured = self.measurements.measure(variant.name, weights)
        except StepError as error:
            return self._without_result(row, error, "measured")
        row = replace(
            row,
            timings=self.measurements.timings(variant.name),
            load_seconds=measured.result["load_seconds"],
            memory=measured.result["memory"],
        )
        judgement = self._judge(measured)
        row = replace(row, agreement=judgement.agreement)
        if judgement.accepted:
            try:
                explanations = self._explanations(weights, measured, variant.name)
                metrics = self._metrics(made, files, variant.name)
            except (StepError, TorchmarError) as error:
                return self._without_result(row, error, "checked")
            judgement = self._judge(measured, explanations, metrics)
        verdict = judgement.verdict or Verdict.SLOWER
        reason = f"{judgement.reason} ({made.note})" if made.note else judgement.reason
        return replace(row, verdict=verdict, reason=reason, agreement=judgement.agreement)

    def _without_result(self, row: Row, error: Exception, step: str) -> Row:
        if self._budget.used_up:
            reason = f"{budget.USED_UP} while it was {step}; --budget gives more"
            return replace(row, verdict=Verdict.SKIPPED, reason=reason)
        return replace(row, reason=str(error))

    def _made(self, variant: Variant, folder: Path) -> Made:
        recorded = self._recorded
        calibrated = {
            "required": [
                str(requirement)
                for requirement in recorded.required
                if requirement.measure is not requirements.Measure.CHECK
            ],
            "handler": recorded.model["handler"],
            "seconds": self._budget.step_limit / 2,
        }
        job = {
            "weights": asdict(recorded.original),
            "inputs": str(recorded.captured),
            # Held-out inputs must not take part in making a variant, unless no other input can trace the model.
            "places": recorded.sides.calibration or recorded.sides.held_out[:1],
            "family": variant.family,
            "arguments": {**variant.arguments, **(calibrated if variant.calibrated else {})},
            "folder": str(folder),
        }
        return Made(**recorded.steps.run("make", job, seconds=self._budget.step_limit, name=variant.name))

    def _judge(
        self,
        measured: Measured,
        explanations: Mapping[str, float] | None = None,
        metrics: tuple[gate.Metric, gate.Metric] | None = None,
    ) -> gate.Judgement:
        return gate.judge(
            self.measurements.baseline.outputs,
            measured.outputs,
            self._recorded.held_out,
            self._recorded.required,
            self._recorded.kind,
            explanations=explanations,
            metrics=metrics,
        )

    def _metrics(self, made: Made, files: Sequence[Path], name: str) -> tuple[gate.Metric, gate.Metric] | None:
        """Return the results of the user's check for the original and for a variant; None: there is no check."""
        if self._settings.check is None or self._metric is None:
            return None
        self._observer.on_step(f"checking {name}")
        archive = trial_archive.write(self._archive, self._folder / "work", made, files, name=name)
        try:
            return self._metric, user_check.run(self._settings.check, archive, timeout_s=self._budget.step_limit)
        finally:
            archive.unlink()

    def _explanations(self, weights: Weights, measured: Measured, name: str) -> dict[str, float] | None:
        """Return the rank correlations of explanations; None: there are no explanations, or the original makes them."""
        if not self._recorded.explains or not measured.result["differentiable"]:
            return None
        self._observer.on_step(f"explaining with {name}")
        return self.measurements.explanations(name, weights)


def variant_row(variant: Variant, verdict: Verdict, reason: str, **values: Any) -> Row:
    """Return the row of a variant with its name and title."""
    return Row(variant=variant.name, title=variant.title, verdict=verdict, reason=reason, **values)


def _section(made: Made) -> dict[str, Any]:
    """Return the section ``optimized`` of a variant, without its requirements."""
    options = dict(made.options)
    return {"weights": f"{FOLDER}/{made.files[0]}", **options} if made.files else options


def _weights_of(original: Weights, made: Made, files: Sequence[Path]) -> Weights:
    """Return the weights of a variant, as the handler's option ``optimized`` loads them."""
    if files:
        return replace(original, serialized_file=str(files[0]), model_file=None, options=made.options, pt2=None)
    return replace(original, options={**original.options, **made.options})


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count != 1)}"
