"""Tune an archive: profile its handler, start a server, search for the best setting, keep a record."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from torchmar import gpus
from torchmar.archive import derive
from torchmar.errors import LoadError, TorchmarError
from torchmar.load import machine_use
from torchmar.load.workload import Workload
from torchmar.package_versions import installed_version
from torchmar.tuning.completed import Tuning
from torchmar.tuning.identity import identity
from torchmar.tuning.live_server import BRIEF_SECONDS, LEAST_SECONDS, LiveServer, trial_config, trial_seconds
from torchmar.tuning.options import TuningOptions
from torchmar.tuning.prediction import Predictor
from torchmar.tuning.profile import Profile, Subject, profile
from torchmar.tuning.search import Result, Search
from torchmar.tuning.space import Setting, Space, on_machine
from torchmar.tuning.target import Question, Target
from torchmar.tuning.trials import Record, RecordFile, Trial, numbers
from torchmar.tuning.tuned_archive import TunedArchive

_TRIAL_SECONDS = 10.0  # usual duration of a trial
_LEAST_TRIALS = 6  # number of trials that must fit into the budget, even if the percentile needs many requests
_CHANGE_SECONDS = 3.0  # part of a trial until its setting is loaded and warm


class Observer(Protocol):
    """Callbacks for the progress of a tuning."""

    def on_step(self, text: str) -> None:
        """Show what is being done."""

    def on_profile(self, measured: Profile) -> None:
        """Show a profile."""

    def on_trial(self, trial: Trial, number: int) -> None:
        """Show a measurement; trials are numbered from 1."""


class Tuner:
    """Finds the best setting of an archive for a target.

    Args:
        archive: path of the ``.mar``.
        workload: requests; those that are expected to fail are left out.
        question: goal of the search.
        options: server, time limit and settings.
        folder: folder of the records, from which an interrupted tuning continues.
        observer: receives the progress.
        anew: whether to ignore the record of an interrupted tuning.

    Attributes:
        workload: requests that are sent.
        record: all measurements so far.

    Raises:
        TorchmarError: there are no requests.
    """

    def __init__(
        self,
        archive: Path,
        workload: Workload,
        question: Question,
        options: TuningOptions,
        *,
        folder: Path,
        observer: Observer,
        anew: bool = False,
    ) -> None:
        self.workload = _succeeding(workload)
        self._question, self._options, self._observer = question, options, observer
        self._started = time.monotonic()
        self._deadline = self._started + options.seconds
        self._longest_trial = max(_TRIAL_SECONDS, options.seconds / _LEAST_TRIALS - _CHANGE_SECONDS)
        self._machine = machine_use.describe()
        self._archive = TunedArchive.read(archive)
        # The number of threads of a replica is that of its CPUs; a handler's own option has the same effect.
        self._choose_threads = self._archive.carries_handlers and (self._archive.has_threads or not options.on_cluster)
        self._space = options.space or on_machine(
            self._machine.cores,
            options.engine,
            question.target,
            handler_options=self._archive.carries_handlers,
            gpus=0 if options.on_cluster else gpus.count(),
        )
        run_identity = identity(
            self._archive, [case.request for case in self.workload.cases], question, options, self._machine
        )
        self._file = RecordFile(folder, run_identity)
        self.record = Record(question=run_identity) if anew else self._file.load()
        self._seconds_before = self.record.seconds
        if not self.record.choose_threads:
            self._leave_threads()

    @property
    def path(self) -> Path:
        """The file of the record."""
        return self._file.path

    @property
    def continued(self) -> bool:
        """Whether profiles or trials were measured by an earlier run."""
        return bool(self.record.profiles or self.record.trials)

    def run(self) -> Tuning:
        """Measure what the record does not contain yet, and return the result.

        Raises:
            LoadError: the archive does not load.
            ModelFailedError: a worker does not start on the server.
            TorchmarError: the time is used up before the first trial, or every request misses the target.
        """
        with contextlib.ExitStack() as stack:
            server = None
            if self._options.on_cluster and not self.record.complete:
                server = self._start(stack)  # first of all, because the settings depend on the cluster
                self.record.cluster = server.room(self._machine.cores)
            if self.record.cluster and self._options.space is None:
                self._space = replace(self._space, replicas=self.record.cluster.replicas)
            return self._run(stack, server)

    def _start(self, stack: contextlib.ExitStack) -> LiveServer:
        """Start the server; the stack stops it."""
        self._observer.on_step("starting the server")
        server = LiveServer(
            self._options.engine,
            self._archive.path,
            self.workload,
            self._question.target,
            choose_threads=self._choose_threads,
            choose_device=self._space.gpus > 0,
            seconds=self._options.trial_seconds,
            head=self._options.head,
        )
        return stack.enter_context(server)

    def _run(self, stack: contextlib.ExitStack, server: LiveServer | None) -> Tuning:
        self._profile()
        predictor = Predictor(
            self.record.profiles,
            self._compared(),
            engine=self._options.engine,
            cores=self.record.cluster.cores if self.record.cluster else self._machine.cores,
            memory=self._question.memory,
            queue_size=self._archive.queue_size,
        )
        self._check_memory(min(measured.memory for measured in self.record.profiles))
        if self.record.complete:
            result = replace(self._search(predictor, None), reason=self.record.reason)
        else:
            remaining = self._deadline - time.monotonic()
            if remaining < _TRIAL_SECONDS and not self.record.trials:
                raise TorchmarError(
                    "the budget was used up by the profiles, before the first trial",
                    hint="start it again: it continues with the profiles; or give it a longer --budget",
                )
            result = self._search(predictor, server or self._start(stack))
            self.record.complete, self.record.reason = not result.out_of_time, result.reason
            self._save()
        return Tuning(
            name=self._archive.name,
            version=self._archive.version,
            engine=self._options.engine,
            machine=self._machine,
            torch=installed_version("torch"),
            question=self._question,
            space=self._space,
            requests=len(self.workload.cases),
            record=self.record,
            result=result,
            seconds=self.record.seconds,
            had_stages=self._archive.has_stages,
            had_threads=self._archive.has_threads,
            predictor=predictor,
        )

    def _search(self, predictor: Predictor, server: LiveServer | None) -> Result:
        def measure(setting: Setting, rate: float, predicted: float, purpose: str) -> Trial:
            assert server
            self._observer.on_step(f"measuring {setting} at {rate:.4g} requests/s")
            remaining = self._deadline - time.monotonic() - _CHANGE_SECONDS
            longest = max(_TRIAL_SECONDS, min(self._longest_trial, remaining))
            # The highest rate is found by short measurements; a long one confirms it at the end.
            brief = self._question.rate is None and purpose != "repeat"
            shortest = BRIEF_SECONDS if brief else LEAST_SECONDS
            trial = server.measure(setting, rate, predicted, purpose, shortest=shortest, longest=longest)
            self.record.trials.append(trial)
            self._save()
            self._observer.on_trial(trial, numbers(self.record.trials, self._question.objective)[-1])
            return trial

        if server:
            server.compared = predictor.target
        self._observer.on_step("predicting all settings")
        seconds_per_trial = (self._seconds_at_rate() if self._question.rate else _TRIAL_SECONDS) + _CHANGE_SECONDS
        # The last measurement starts early enough to end in time; the first one starts in any case.
        seconds = max(1.0, self._deadline - time.monotonic() - seconds_per_trial) if server else 0.0
        search = Search(
            predictor,
            self._space,
            self._question,
            measure,
            trials=tuple(self.record.trials),
            most_trials=self._options.most_trials,
            seconds=seconds,
            trial_seconds=seconds_per_trial,
        )
        return search.run()

    def _compared(self) -> Target:
        """Return the target, or that of the next lower percentile for which a trial at the given rate suffices."""
        target = self._question.target
        if self.record.trials and (name := self.record.trials[0].statistic):
            return replace(target, name=name)
        if self._question.rate is None:
            return target
        return target.comparable(int(self._question.rate * self._seconds_at_rate()))

    def _seconds_at_rate(self) -> float:
        """Return the duration of each measurement at the given rate."""
        assert self._question.rate
        return self._options.trial_seconds or trial_seconds(
            self._question.target, self._question.rate, self._longest_trial
        )

    def _save(self) -> None:
        self.record.seconds = self._seconds_before + time.monotonic() - self._started
        self._file.save(self.record)

    def _profile(self) -> None:
        """Measure the workers without a profile in the record, in turn."""
        profiled = {(measured.threads, measured.gpu) for measured in self.record.profiles}
        missing = [
            (threads, gpu)
            for gpu in ((False, True) if self._space.gpus else (False,))
            for threads in profiled_threads(self._space, self._machine.cores)
            if (threads, gpu) not in profiled
        ]
        if not missing:
            return
        self._save()  # a folder that cannot be written is an error now, not after all measurements
        try:
            measured = self._profile_workers(missing)
        except LoadError:
            # A handler of its own beside torchmar's may lack their options.
            if not self._choose_threads or self.record.profiles:
                raise
            self._leave_threads()
            self._profile()
            return
        self.record.profiles.extend(measured)
        self._save()
        for worker_profile in measured:
            self._observer.on_profile(worker_profile)

    def _profile_workers(self, missing: Sequence[tuple[int, bool]]) -> list[Profile]:
        """Return the profiles of workers, by the number of threads and whether they have a GPU."""
        with tempfile.TemporaryDirectory(prefix="torchmar-tune-") as folder:
            subjects = []
            for number, (threads, gpu) in enumerate(missing):
                config = trial_config(
                    self._archive.path,
                    Setting(workers=1, threads=threads, batch_size=1, gpu=gpu),
                    choose_threads=self._choose_threads,
                    choose_device=self._space.gpus > 0,
                    replicas=self._options.on_cluster,
                )
                version = f"{self._archive.version}-tune{number}"
                archive = derive(self._archive.path, Path(folder), version=version, config=config).path
                subjects.append(Subject(archive=archive, threads=threads, gpu=gpu))

            def on_size(size: int) -> None:
                batches = f"batches of {size}" if size > 1 else "single requests"
                numbers = " and ".join(str(subject.threads) for subject in subjects)
                threads = "1 thread" if numbers == "1" else f"{numbers} threads"
                self._observer.on_step(f"measuring {batches} in workers with {threads}")

            self._observer.on_step("loading workers")
            requests = [case.request for case in self.workload.cases]
            longest = 1.5 * self._question.target.seconds
            return profile(subjects, requests, longest=longest, on_loaded=self._check_memory, on_size=on_size)

    def _leave_threads(self) -> None:
        """Keep the handler's threads and stages, because it does not accept torchmar's options."""
        self.record.choose_threads = self._choose_threads = False
        self._space = replace(self._space, choose_threads=False, stages=False)

    def _check_memory(self, least: int) -> None:
        """Compare the bytes of the smallest worker with the limit."""
        limit = self._question.memory
        if limit is not None and least > limit:
            raise TorchmarError(
                f"one worker of {self._archive.name} takes {least / 2**20:,.0f} MiB, more than --memory allows "
                f"({limit / 2**20:,.0f} MiB)"
            )


def profiled_threads(space: Space, cores: int) -> list[int]:
    """Return the numbers of threads to profile: one, all cores, and up to two numbers between them."""
    thread_counts = {threads for workers in space.worker_counts() for threads in space.thread_counts(workers)}
    counts = sorted({min(threads, cores) for threads in thread_counts})
    if len(counts) <= 3:
        return counts
    return sorted({counts[0], counts[len(counts) // 2], counts[-1]})


def _succeeding(workload: Workload) -> Workload:
    """Return the requests of a workload that are expected to succeed."""
    cases = tuple(case for case in workload.cases if not case.sample or case.sample.status < 300)
    if not cases:
        raise TorchmarError(
            f"{workload.source} has no request that is to succeed", hint="--requests names a folder of inputs"
        )
    return Workload(workload.source, cases)
