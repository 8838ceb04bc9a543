"""``python -m torchmar.deployment.job``: an operation of the console's rollout page, as a client of its server.

It is a separate process, so that plans and comparisons do not block the server's event loop. The first line of the
standard input is the `Job`; a further line interrupts it. Each line of the standard output is a message:
``{"step": ...}`` when a step starts and when it has ended, and at the end ``{"result": ...}`` or ``{"error": ...}``.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from torchmar.connection.endpoint import Endpoint, reachable
from torchmar.connection.local import is_local
from torchmar.deployment import ab_comparison, actions, actual, capture, executor, planning, promotion, store_index
from torchmar.deployment import desired as desired_state
from torchmar.deployment import rollback as back
from torchmar.deployment.context import DeploymentContext
from torchmar.deployment.desired import Deployment
from torchmar.deployment.executor import Report, Step
from torchmar.deployment.plan import Plan
from torchmar.errors import Problem, RecipeError, TorchmarError
from torchmar.management import ManagementClient
from torchmar.server.api.console.rollout_messages import Job

_RETIRING = ("drain", "scale-down", "remove")
Send = Callable[[str, Any], None]


def run(job: Job, send: Send) -> None:
    """Carry out an operation.

    Args:
        job: the operation.
        send: called with the name and the value of each message.
    """
    try:
        send("result", _OPERATIONS[job.kind](job, send))
    except RecipeError as error:
        send("error", {"message": str(error), "hint": "", "problems": [_problem(item) for item in error.problems]})
    except TorchmarError as error:
        send("error", {"message": error.message, "hint": error.hint, "problems": []})


def _overview(job: Job, send: Send) -> dict[str, Any]:
    """Return the state of the server as the text of a deployment, and the possible rollback of each model."""
    server = _endpoint(job)
    live = actual.read(server)
    index = store_index.read(Path(job.model_store), live)
    rollbacks: dict[str, dict[str, str]] = {}
    for name, model in live.items():
        try:
            rollbacks[name] = {"version": back.previous(model), "reason": ""}
        except TorchmarError as error:
            rollbacks[name] = {"version": "", "reason": error.message}
    text = capture.capture(live, index, routes=actual.read_routes(server)) if live else ""
    return {"deployment": text, "rollbacks": rollbacks}


def _plan(job: Job, send: Send) -> dict[str, Any]:
    deployment, notes = _deployment(job)
    return {**_document(planning.make(deployment, _context(job))), "notes": notes}


def _apply(job: Job, send: Send) -> dict[str, Any]:
    deployment, _ = _deployment(job)
    context = _context(job)
    plan = planning.make(deployment, context)
    if _document(plan)["digest"] != job.plan:
        raise TorchmarError(
            "the server is no longer as it was when this plan was made, so nothing was done",
            hint="show the difference again",
        )
    steps: list[Step] = []

    def on_step(step: Step) -> None:
        steps.append(step)
        send("step", asdict(step))

    send("planned", [{"verb": actions.verb(action), "text": action.text} for action in plan.actions])
    try:
        report = executor.apply(plan, context.endpoint, on_step, ignored_checks=job.ignored_checks)
    except KeyboardInterrupt:
        undone = not any(step.verb in _RETIRING or (step.verb == "undo" and step.failed) for step in steps)
        return {**_outcome(Report(undone=undone)), "stopped": True}
    if report.failure or report.left:
        return _outcome(report)
    rest = planning.make(deployment, context)
    return {**_outcome(report), "rest": _document(rest) if rest.actions or rest.failing else None}


def _outcome(report: Report) -> dict[str, Any]:
    return {
        "failure": report.failure.message if report.failure else "",
        "hint": report.failure.hint if report.failure else "",
        "failed": actions.document(report.failed) if report.failed else None,
        "undone": report.undone,
        "left": report.left,
        "stopped": False,
        "rest": None,
    }


def _promote(job: Job, send: Send) -> dict[str, Any]:
    bounds = promotion.Bounds(ab_comparison.within(job.tolerance), job.max_regression, job.max_differences)
    with _Steps(send) as steps:
        promoted = promotion.promote(
            _endpoint(job),
            job.model,
            job.version,
            model_store=Path(job.model_store),
            bounds=bounds if job.compare else None,
            on_step=lambda text: steps.begin("compare" if text.startswith("comparing") else "check", text),
        )
        steps.end(promoted.smoke_test.show() if not promoted.comparison else "")
        if promoted.passed:
            steps.begin("switch", f"{job.model} {promoted.before} to {job.version}")
    evidence = None
    if comparison := promoted.comparison:
        evidence = {
            **{key: value for key, value in comparison.document().items() if key != "milliseconds"},
            "allowed": comparison.allowed,
            "max_regression": comparison.max_regression,
            "latency": [
                {
                    "version": version,
                    "answers": len(milliseconds),
                    **{
                        f"p{round(100 * share)}_ms": ab_comparison.percentile(milliseconds, share)
                        for share in (0.5, 0.9, 0.99)
                    },
                }
                for version, milliseconds in zip((comparison.old, comparison.new), comparison.milliseconds, strict=True)
            ],
        }
    return {
        "promoted": promoted.passed,
        "before": promoted.before,
        "samples": promoted.smoke_test.requests,
        "evidence": evidence,
    }


def _rollback(job: Job, send: Send) -> dict[str, Any]:
    with ManagementClient(_endpoint(job)) as client, _Steps(send) as steps:
        steps.begin("switch", f"{job.model} to {job.version}")
        outcome = back.rollback(client, job.model, job.version)
        if outcome.workers_after < outcome.workers_before:
            number = actions.workers(outcome.workers_before)
            steps.begin("scale-up", f"{job.model} {outcome.after}, {outcome.workers_after} to {number}")
            back.restore_workers(client, outcome)
    return {"before": outcome.before, "after": outcome.after}


_OPERATIONS: dict[str, Callable[[Job, Send], dict[str, Any]]] = {
    "overview": _overview,
    "plan": _plan,
    "apply": _apply,
    "promote": _promote,
    "rollback": _rollback,
}


class _Steps:
    """Sends consecutive steps; each ends when the next starts, or with the context."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._step: Step | None = None
        self._start = 0.0

    def __enter__(self) -> _Steps:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.end(failed=kind is not None)

    def begin(self, verb: str, text: str) -> None:
        self.end()
        self._step, self._start = Step(verb, text), time.perf_counter()
        self._send("step", asdict(self._step))

    def end(self, note: str = "", *, failed: bool = False) -> None:
        if step := self._step:
            self._step = None
            seconds = time.perf_counter() - self._start
            self._send("step", asdict(Step(step.verb, step.text, seconds, note, failed)))


def _deployment(job: Job) -> tuple[Deployment, list[str]]:
    """Return the deployment of a job, and messages about keys without effect in the console.

    Raises:
        TorchmarError: it has problems, or names files other than archives of the model store: clients with rights to
            manage models must not read, copy or send other files of the machine.
    """
    deployment = desired_state.parse(job.deployment)
    problems = []
    for name, model in deployment.models.items():
        if model.checks.requests is not None:
            message = "the console does not send files of the server's machine; torchmar apply does"
            problems.append(
                Problem(file=desired_state.FILE_NAME, line=0, place=f"models.{name}.checks.requests", message=message)
            )
        for version in model.versions:
            file = model.version(version).archive
            if file is not None and "://" not in file and Path(file).name != file:
                message = f"{file}: in the console, an archive is a file of the model store, or a URL"
                problems.append(
                    Problem(
                        file=desired_state.FILE_NAME,
                        line=0,
                        place=f"models.{name}.versions.{version}.archive",
                        message=message,
                    )
                )
    if problems:
        raise RecipeError(problems)
    unused = sorted(deployment.server.model_fields_set - {"gpus"})
    return deployment, [f"server.{key} has no effect here: the console is that of this server" for key in unused]


def _document(plan: Plan) -> dict[str, Any]:
    """Return a plan with the digest of its actions."""
    document = plan.document()
    digest = hashlib.sha256(json.dumps(document["steps"], sort_keys=True).encode()).hexdigest()
    return {**document, "failing": plan.failing, "digest": digest, "notes": []}


def _problem(problem: Problem) -> dict[str, Any]:
    return {"line": problem.line, "place": problem.place, "message": problem.message, "hint": problem.hint}


def _context(job: Job) -> DeploymentContext:
    store = Path(job.model_store)
    return DeploymentContext(endpoint=_endpoint(job), model_store=store, folder=store)


def _endpoint(job: Job) -> Endpoint:
    management = reachable(job.management)
    return Endpoint(
        inference=reachable(job.inference),
        management=management,
        key_file=Path(job.key_file) if job.key_file else None,
        tokens={},
        # The server's certificate may only be valid for its public name. There is no machine in between.
        verify=not is_local(urlsplit(management).hostname or ""),
    )


def _lines() -> Iterator[bytes]:
    """Yield lines of the standard input without Python's buffer, whose lock a blocked thread would hold at exit."""
    remainder = b""
    while chunk := os.read(sys.stdin.fileno(), 1 << 16):
        *lines, remainder = (remainder + chunk).split(b"\n")
        yield from lines


def _interrupt_on_line(lines: Iterator[bytes]) -> None:
    """Interrupt the main thread, even in a system call, when the standard input has another line."""
    if next(lines, None) is not None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def main() -> None:
    """Read a job and carry it out."""
    lines = _lines()
    job = Job.from_line(next(lines))

    def send(name: str, value: Any) -> None:
        sys.stdout.write(json.dumps({name: value}) + "\n")
        sys.stdout.flush()

    threading.Thread(target=_interrupt_on_line, args=(lines,), daemon=True).start()
    try:
        run(job, send)
    except KeyboardInterrupt:
        # A promotion changes nothing before its last call; a rollback begins with that call.
        send("result", {**_outcome(Report(undone=job.kind != "rollback")), "stopped": True})


if __name__ == "__main__":
    main()
