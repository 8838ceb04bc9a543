"""Carry a plan out; undo every action when one fails before the old versions are drained."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torchmar import archive
from torchmar.atomic import temporary_path
from torchmar.checks import admission
from torchmar.checks.finding import Code, matches
from torchmar.connection import Endpoint
from torchmar.deployment import actions, drain, smoke_test
from torchmar.deployment.actions import Action
from torchmar.deployment.plan import Plan
from torchmar.errors import ArchiveError, ConflictError, NotFoundError, ServerError, TorchmarError
from torchmar.management import ManagementClient, ModelVersion

_MARGIN = 60.0  # seconds more than the server itself allows a worker to start
_LATE = 3.0  # seconds in which the server shows a registration whose response was not awaited

Watch = Callable[["Step"], None]
_Undo = Callable[[], str]


@dataclass(frozen=True)
class Step:
    """One thing that was done or tried.

    Attributes:
        verb: ``register``, or ``undo``.
        text: what was done.
        seconds: how long it took; None: it begins now.
        note: what came of it.
        failed: whether it did not work.
    """

    verb: str
    text: str
    seconds: float | None = None
    note: str = ""
    failed: bool = False


@dataclass
class Report:
    """What applying a plan came to.

    Attributes:
        steps: everything that was done, in order; what was taken back, too.
        failure: why it did not work; None if it did.
        failed: the action that failed.
        undone: whether everything is as it was before.
        left: what could not be taken back or removed, in words.
    """

    steps: list[Step] = field(default_factory=list)
    failure: TorchmarError | None = None
    failed: Action | None = None
    undone: bool = False
    left: list[str] = field(default_factory=list)


def apply(
    plan: Plan, server: Endpoint, watch: Watch = lambda step: None, *, ignored_checks: Sequence[str] = ()
) -> Report:
    """Carry a plan out.

    Archives that are to be registered are checked before anything else, digests included.
    Until the first old version is drained everything can go back, and does when something fails,
    or on an interrupt. From then on the new versions have their traffic and have been
    checked; a failure after that is reported, and left for the next plan.

    Args:
        plan: what is to be done.
        server: where.
        watch: called with every step when it begins and when it has ended.
        ignored_checks: codes of checks, or beginnings of codes, that do not count; ``MAR`` is all of them.
    """
    with ManagementClient(server) as client:
        return _Execution(server, client, watch, tuple(ignored_checks)).run(plan)


class _Execution:
    def __init__(
        self, server: Endpoint, client: ManagementClient, watch: Watch, ignored_checks: tuple[str, ...]
    ) -> None:
        self.server, self.client, self.watch, self.ignored_checks = server, client, watch, ignored_checks
        self.report = Report()
        self.undos: list[_Undo] = []
        self.restless: dict[tuple[str, str], str] = {}

    def run(self, plan: Plan) -> Report:
        old = (actions.Drain, actions.ScaleDown, actions.Remove)
        if not all(matches(code, self.ignored_checks) for code in Code) and not self._verify(plan):
            return self.report
        try:
            for action in plan.actions:
                if isinstance(action, old):
                    self._try_old(action)
                    continue
                try:
                    self._step(action)
                except TorchmarError as error:
                    self.report.failure, self.report.failed = error, action
                    self._go_back()
                    break
        except BaseException:
            # Interrupted: what has begun must not stay half done.
            if not any(step.verb in ("drain", "scale-down", "remove") for step in self.report.steps):
                self._go_back()
            raise
        return self.report

    def _verify(self, plan: Plan) -> bool:
        """Check every archive that is to be registered; tell whether all may be."""
        archives = {one.archive for one in plan.actions if isinstance(one, actions.Register) and one.archive}
        for path in sorted(archives):
            self.watch(Step("verify", path.name))
            before = time.perf_counter()
            try:
                admission.admit(path, self.ignored_checks)
            except TorchmarError as error:
                self.report.failure, self.report.undone = error, True
            took = time.perf_counter() - before
            self._told(Step("verify", path.name, took, failed=self.report.failure is not None))
            if self.report.failure:
                return False
        return True

    def _step(self, action: Action) -> None:
        verb = actions.verb(action)
        self.watch(Step(verb, action.text))
        before = time.perf_counter()
        try:
            note = getattr(self, "_" + verb.replace("-", "_"))(action)
        except TorchmarError:
            self._told(Step(verb, action.text, time.perf_counter() - before, failed=True))
            raise
        self._told(Step(verb, action.text, time.perf_counter() - before, note or ""))

    def _told(self, step: Step) -> None:
        self.report.steps.append(step)
        self.watch(step)

    def _try_old(self, action: actions.Drain | actions.ScaleDown | actions.Remove) -> None:
        why = "" if isinstance(action, actions.Drain) else self.restless.get((action.model, action.version))
        if why:
            self.report.left.append(f"{action.text} stays: {why}")
            return
        try:
            self._step(action)
        except TorchmarError as error:
            self.report.failure = self.report.failure or error
            self.report.failed = self.report.failed or action
            self.report.left.append(f"{action.text}: {error.message}")

    def _go_back(self) -> None:
        self.report.undone = True
        for undo in reversed(self.undos):
            self.watch(Step("undo", "what was done"))
            before = time.perf_counter()
            try:
                text = undo()
            except TorchmarError as error:
                self.report.undone = False
                self.report.left.append(error.message)
                self._told(Step("undo", error.message, time.perf_counter() - before, failed=True))
            else:
                self._told(Step("undo", text, time.perf_counter() - before))

    # One method for each action; what it returns is noted beside the step.

    def _copy(self, action: actions.Copy) -> None:
        part = temporary_path(action.destination)
        try:
            if action.source.is_dir():
                shutil.copytree(action.source, part)
            else:
                shutil.copyfile(action.source, part)
            self.undos.append(lambda: _deleted(action.destination))
            part.rename(action.destination)
        except OSError as error:
            raise ArchiveError(f"{action.destination} cannot be written: {error.strerror or error}") from None
        finally:
            part.unlink(missing_ok=True) if part.is_file() else shutil.rmtree(part, ignore_errors=True)

    def _derive(self, action: actions.Derive) -> None:
        archive.derive(action.source, action.destination.parent, version=action.version, config=action.config)
        self.undos.append(lambda: _deleted(action.destination))

    def _register(self, action: actions.Register) -> str:
        answered = False

        def undo() -> str:
            deadline = time.monotonic() + (0 if answered else _LATE)
            while True:
                try:
                    self.client.unregister(action.model, action.version)
                    return f"removed {action.model} {action.version}"
                except NotFoundError:
                    if time.monotonic() >= deadline:
                        return f"{action.model} {action.version} is not registered"
                time.sleep(_LATE / 10)

        # The server goes on with what it was sent, whatever becomes of us while it does.
        self.undos.append(undo)
        try:
            self.client.register(
                action.url,
                model_name=action.model,
                initial_workers=action.min_workers,
                batch_size=action.batch_size,
                max_batch_delay=action.max_batch_delay,
                response_timeout=action.response_timeout,
                startup_timeout=action.startup_timeout,
                timeout=(action.startup_timeout or 120) + _MARGIN,
                ignored_checks=self.ignored_checks,
            )
        except ConflictError as conflict:
            self.undos.pop()
            raise TorchmarError(
                f"{action.model} {action.version} has been registered by somebody else in the meantime",
                hint="plan again",
            ) from conflict
        except ServerError as refusal:
            answered = True
            failed = refusal.status >= 500
            hint = f"torchmar run on {action.url} shows the same without a server" if failed else refusal.hint
            raise TorchmarError(f"{action.model} {action.version}: {refusal.message}", hint=hint) from refusal
        answered = True
        made = self._described(action.model, action.version)
        if (made.min_workers, made.max_workers) != (action.min_workers, action.max_workers):
            self.client.scale(
                action.model,
                action.version,
                min_worker=action.min_workers,
                max_worker=action.max_workers,
                timeout=(action.startup_timeout or 120) + _MARGIN,
            )
            made = self._described(action.model, action.version)
        _compare(action, made)
        return f"{made.ready} of {action.min_workers} answer" if made.ready < action.min_workers else ""

    def _scale_up(self, action: actions.ScaleUp) -> None:
        def back() -> str:
            more = self._described(action.model, action.version).ready > before.ready
            if more and before.ready and self.client.describe(action.model)[0].version == action.version:
                # The new ones may be at work by now, and to take them away would lose that.
                return f"{action.model} {action.version} keeps its {actions.workers(action.min_workers)}"
            self.client.scale(
                action.model, action.version, min_worker=before.min_workers, max_worker=before.max_workers
            )
            return f"{action.model} {action.version} has {actions.workers(before.min_workers)} again"

        before = self._described(action.model, action.version)
        self.undos.append(back)
        self.client.scale(
            action.model,
            action.version,
            min_worker=action.min_workers,
            max_worker=action.max_workers,
            timeout=before.startup_timeout + _MARGIN,
        )

    def _check(self, action: actions.Check) -> str:
        asked = smoke_test.questions(action.archive if action.samples else None, action.requests)
        timeout = self._described(action.model, action.version).response_timeout + 5.0
        return smoke_test.hold(
            self.server,
            action.model,
            action.version,
            asked,
            warmup_requests=action.warmup_requests,
            at_once=action.at_once,
            max_latency=action.max_latency,
            timeout=timeout,
        ).show()

    def _switch(self, action: actions.Switch) -> None:
        def undo() -> str:
            self.client.set_default(action.model, action.before)
            # It goes in a moment, and must have answered before.
            drain.wait(self.client, [actions.Drained(action.model, action.version, action.drain_seconds)])
            return f"{action.model} is back at {action.before}"

        if not action.parked and not self._described(action.model, action.version).ready:
            raise TorchmarError(f"{action.model} {action.version} has no worker that answers")
        self.undos.append(undo)
        self.client.set_default(action.model, action.version)

    def _drain(self, action: actions.Drain) -> str:
        self.restless = drain.wait(self.client, action.versions)
        return "; ".join(f"{model} {version}: {why}" for (model, version), why in self.restless.items())

    def _scale_down(self, action: actions.ScaleDown) -> None:
        self.client.scale(action.model, action.version, min_worker=action.min_workers, max_worker=action.max_workers)

    def _remove(self, action: actions.Remove) -> None:
        with contextlib.suppress(NotFoundError):
            self.client.unregister(action.model, action.version)
        if action.file:
            _deleted(action.file)

    def _described(self, model: str, version: str) -> ModelVersion:
        return self.client.describe(model, version)[0]


def _compare(action: actions.Register, made: ModelVersion) -> None:
    """Raise when the server has made something else of a registration than was meant."""
    wanted: dict[str, object] = {
        name: value
        for name in ("batch_size", "max_batch_delay", "response_timeout", "startup_timeout")
        if (value := getattr(action, name)) is not None
    }
    if action.devices is not None:
        wanted["device_ids"] = action.devices
    for name, value in wanted.items():
        if getattr(made, name) != value:
            hint = ""
            if name == "device_ids":
                hint = "it drops all of them when it has not got one of them: its number_of_gpu tells how many it uses"
            raise TorchmarError(
                f"the server made {name} {getattr(made, name)!r} of {value!r} for {action.text}", hint=hint
            )


def _deleted(path: Path) -> str:
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise ArchiveError(f"{path} cannot be deleted: {error.strerror or error}") from None
    return f"deleted {path.name}"
