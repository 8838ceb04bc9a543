"""The execution of a plan; all actions are undone if one fails before the old versions are drained."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torchmar.checks import admission
from torchmar.checks.finding import Code, matches
from torchmar.connection import Endpoint
from torchmar.deployment import actions
from torchmar.deployment.action_runner import ActionRunner
from torchmar.deployment.actions import Action
from torchmar.deployment.plan import Plan
from torchmar.errors import TorchmarError
from torchmar.management import ManagementClient


@dataclass(frozen=True)
class Step:
    """One step of an execution: an action, the verification of an archive, or an undo.

    Attributes:
        verb: name of the action, ``verify`` or ``undo``.
        text: objects of the action, or effect of the undo.
        seconds: duration; None: the step starts.
        note: a remark on the result.
        failed: whether the step failed.
    """

    verb: str
    text: str
    seconds: float | None = None
    note: str = ""
    failed: bool = False


OnStep = Callable[[Step], None]


@dataclass
class Report:
    """The result of an execution.

    Attributes:
        steps: all completed steps in order, undos included.
        failure: error that ended the execution; None if there was none.
        failed: the action that failed.
        undone: whether the server is in its previous state again.
        left: texts about effects that could not be undone or removed.
    """

    steps: list[Step] = field(default_factory=list)
    failure: TorchmarError | None = None
    failed: Action | None = None
    undone: bool = False
    left: list[str] = field(default_factory=list)


def apply(
    plan: Plan, server: Endpoint, on_step: OnStep = lambda step: None, *, ignored_checks: Sequence[str] = ()
) -> Report:
    """Carry out a plan.

    First, all archives of registrations are checked, with their digests. Until the first old version is drained, every
    action can be undone, and all are undone if one fails, or after an interrupt. Later, the new versions have the
    traffic and have been checked; therefore a failure is only reported, and the next plan
    completes the work.

    Args:
        plan: the plan.
        server: the server.
        on_step: called with every step when it starts and when it has ended.
        ignored_checks: codes of checks, or prefixes of codes, to ignore; ``MAR`` is all of them.
    """
    with ManagementClient(server) as client:
        return _Execution(ActionRunner(server, client, ignored_checks), on_step, ignored_checks).run(plan)


class _Execution:
    def __init__(self, runner: ActionRunner, on_step: OnStep, ignored_checks: Sequence[str]) -> None:
        self._runner, self._on_step, self._ignored_checks = runner, on_step, ignored_checks
        self._report = Report()

    def run(self, plan: Plan) -> Report:
        if not all(matches(code, self._ignored_checks) for code in Code) and not self._verify(plan):
            return self._report
        try:
            for action in plan.actions:
                if isinstance(action, actions.Drain | actions.ScaleDown | actions.Remove):
                    self._retire(action)
                    continue
                try:
                    self._step(action)
                except TorchmarError as error:
                    self._report.failure, self._report.failed = error, action
                    self._undo()
                    break
        except BaseException:
            # After an interrupt, too, no change remains half done.
            if not any(step.verb in ("drain", "scale-down", "remove") for step in self._report.steps):
                self._undo()
            raise
        return self._report

    def _verify(self, plan: Plan) -> bool:
        """Check the archives of all registrations; return whether all are good."""
        archives = {
            action.archive for action in plan.actions if isinstance(action, actions.Register) and action.archive
        }
        for path in sorted(archives):
            self._on_step(Step("verify", path.name))
            start = time.perf_counter()
            try:
                admission.admit(path, self._ignored_checks)
            except TorchmarError as error:
                self._report.failure, self._report.undone = error, True
            seconds = time.perf_counter() - start
            self._complete(Step("verify", path.name, seconds, failed=self._report.failure is not None))
            if self._report.failure:
                return False
        return True

    def _step(self, action: Action) -> None:
        verb = actions.verb(action)
        self._on_step(Step(verb, action.text))
        start = time.perf_counter()
        try:
            note = self._runner.run(action)
        except TorchmarError:
            self._complete(Step(verb, action.text, time.perf_counter() - start, failed=True))
            raise
        self._complete(Step(verb, action.text, time.perf_counter() - start, note))

    def _complete(self, step: Step) -> None:
        self._report.steps.append(step)
        self._on_step(step)

    def _retire(self, action: actions.Drain | actions.ScaleDown | actions.Remove) -> None:
        """Carry out an action on old versions; a failure neither ends the execution nor starts the undo."""
        if not isinstance(action, actions.Drain):
            reason = self._runner.still_busy.get((action.model, action.version))
            if reason:
                self._report.left.append(f"{action.text} stays: {reason}")
                return
        try:
            self._step(action)
        except TorchmarError as error:
            self._report.failure = self._report.failure or error
            self._report.failed = self._report.failed or action
            self._report.left.append(f"{action.text}: {error.message}")

    def _undo(self) -> None:
        self._report.undone = True
        for undo in reversed(self._runner.undos):
            self._on_step(Step("undo", "the actions so far"))
            start = time.perf_counter()
            try:
                text = undo()
            except TorchmarError as error:
                self._report.undone = False
                self._report.left.append(error.message)
                self._complete(Step("undo", error.message, time.perf_counter() - start, failed=True))
            else:
                self._complete(Step("undo", text, time.perf_counter() - start))
