"""An optimisation: make variants of an archive's weights, compare them with the original, time them, choose one."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torchmar.archive import Archive
from torchmar.checks.optimized import original_digests
from torchmar.errors import TorchmarError
from torchmar.load import machine_use
from torchmar.optimized_section import FOLDER
from torchmar.optimizing import budget, choice, recording, trial_archive
from torchmar.optimizing.budget import Budget
from torchmar.optimizing.observer import Observer
from torchmar.optimizing.results import Report, Row, Verdict
from torchmar.optimizing.settings import Settings
from torchmar.optimizing.trials import Trials, variant_row
from torchmar.optimizing.variants import select
from torchmar.worker.venvs import building, specification
from torchmar.worker.venvs import folder as venvs
from torchmar.worker.venvs.folder import Venv


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """An optimisation that has ended.

    Attributes:
        report: results.
        files: files of each variant, by its name; the first file is the one to load.
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


class Optimizer:
    """Finds the fastest weights of an archive that give the original's answers.

    Args:
        archive: path of the ``.mar``.
        settings: settings of the user.
        folder: folder for the files of variants; it must exist as long as they are used.
        observer: gets the progress.

    Raises:
        TorchmarError: a variant does not exist, or the time is too short.
    """

    def __init__(self, archive: Path, settings: Settings, folder: Path, observer: Observer) -> None:
        if settings.seconds < budget.SHORTEST:
            raise TorchmarError(
                f"a budget of {settings.seconds:.0f} s is too short: the original and one variant take about "
                f"{budget.SHORTEST:.0f} s",
                hint="--budget 10m is usually enough",
            )
        self._archive, self._settings, self._folder, self._observer = archive, settings, folder, observer
        self._variants = select(settings.variants)

    def run(self) -> Optimization:
        """Make and measure the variants; after an interrupt or at the end of the time, the remaining ones are skipped.

        Raises:
            ArchiveError: the archive cannot be opened.
            TorchmarError: the handler has no model that can be replaced, or the original gives no answers.
        """
        # Weights of an earlier optimisation are not the baseline.
        path = trial_archive.original(self._archive, self._folder)
        with contextlib.ExitStack() as stack:
            with Archive(path) as archive:
                model_dir = self._folder / "archive"
                archive.extract(model_dir)
                venv = self._venv(archive, model_dir, stack)
                time = Budget(self._settings.seconds)
                work = self._folder / "work"
                work.mkdir()
                recorded = recording.record(
                    archive, model_dir, work, self._settings, venv=venv, budget=time, observer=self._observer
                )
                name, version, digest = archive.manifest.name, archive.manifest.version, archive.digest
                original = original_digests(archive, archive.manifest.model)
            trials = Trials(path, recorded, self._settings, self._folder, time, self._observer)
            rows, interrupted = self._rows(trials)
        measurements = trials.measurements
        cpu = measurements.takes_cpu_time
        report = Report(
            name=name,
            version=version,
            archive=digest,
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            machine=replace(machine_use.describe(), python=recorded.python.version),
            threads=recorded.original.threads,
            batch_sizes=self._settings.batch_sizes,
            requirements=tuple(map(str, recorded.required)),
            inputs=len(recorded.held_out),
            calibration_inputs=len(recorded.calibration),
            original=original,
            rows=choice.choose(
                [replace(row, timings=measurements.timings(row.variant, cpu=cpu)) for row in rows],
                self._settings.batch_sizes,
            ),
            packages=recorded.python.versions,
            seconds=time.spent,
            disturbances=measurements.disturbances,
        )
        return Optimization(report=report, files=trials.files, interrupted=interrupted)

    def _venv(self, archive: Archive, model_dir: Path, stack: contextlib.ExitStack) -> Venv | None:
        """Return the environment of an archive, and build it if necessary; None: the archive has none.

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

    def _rows(self, trials: Trials) -> tuple[list[Row], bool]:
        """Return the rows of all variants, and whether the user ended the optimisation."""
        baseline = trials.original(self._variants[0])
        rows = [baseline]
        self._observer.on_row(baseline, baseline, 1, len(self._variants))
        interrupted = False
        for number, variant in enumerate(self._variants[1:], 2):
            if not interrupted:
                try:
                    row = trials.variant(variant)
                except KeyboardInterrupt:
                    interrupted = True
            if interrupted:
                row = variant_row(variant, Verdict.SKIPPED, "interrupted")
            rows.append(row)
            if not interrupted:
                self._observer.on_row(row, baseline, number, len(self._variants))
        if not interrupted:
            self._observer.on_step("measuring the original again")
            try:
                if len(self._variants) > 1:
                    trials.measurements.measure_original_again()
            except KeyboardInterrupt:
                interrupted = True
        self._observer.on_step("")
        return rows, interrupted
