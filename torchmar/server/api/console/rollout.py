"""The operations of the rollout page: one change at a time, in its own process, with a record that outlives the server.

The code of deployments is a client of this server, and above it in the layers; therefore it is started as a process.
All pages see the same operation; another one is rejected while it runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torchmar.atomic import write_text
from torchmar.errors import TorchmarError
from torchmar.server.api.console.rollout_messages import STOP, Job
from torchmar.server.api_error import ApiError
from torchmar.server.background_tasks import BackgroundTasks
from torchmar.server.models import commands
from torchmar.server.telemetry import logs

FILE_NAME = "rollout.json"
State = Literal["running", "done", "rejected", "failed", "stopped", "interrupted"]
Change = Literal["apply", "promote", "rollback"]
_SCHEMA = "torchmar-rollout/1"
# The values in the request for each operation, and the largest number for each; None: the value is a text.
_VALUES: Mapping[Change, Mapping[str, float | None]] = {
    "apply": {"deployment": None, "plan": None},
    "promote": {
        "model": None,
        "version": None,
        "compare": 1,
        "max_regression": 10,
        "max_differences": 1,
        "tolerance": 1e9,
    },
    "rollback": {"model": None, "version": None},
}
_COMMAND = [sys.executable, "-m", "torchmar.deployment.job"]
_QUERY_SECONDS = 120.0
_STOP_SECONDS = 15.0  # time for the undo when the server stops
_LAST_LINES = 15
_MOST_STEPS = 2000


class Rollout:
    """The operations of a server.

    Args:
        template: job with the server's addresses, key file and model store.
        folder: run folder, which contains the record of the last operation.
        publish: called with the result of `shown` when it has changed.
    """

    def __init__(self, template: Job, folder: Path, publish: Callable[[dict[str, Any]], None]) -> None:
        self._template, self._file, self._publish = template, folder / FILE_NAME, publish
        self._tasks = BackgroundTasks()
        self._querying = asyncio.Lock()
        self._overview: tuple[object, dict[str, Any]] = (None, {})
        self._process: asyncio.subprocess.Process | None = None
        self._operation: dict[str, Any] | None = None
        self._applied: dict[str, Any] | None = None
        self._read()

    @property
    def running(self) -> bool:
        """Whether an operation is running."""
        return self._operation is not None and self._operation["state"] == "running"

    def shown(self) -> dict[str, Any]:
        """Return the last operation, and the time when a deployment was last applied."""
        return {"operation": self._operation, "applied": self._applied["time"] if self._applied else None}

    def applied(self) -> dict[str, Any]:
        """Return the text of the deployment that was last applied; empty: unknown."""
        return {"deployment": self._applied["deployment"] if self._applied else ""}

    async def overview(self, signature: object) -> dict[str, Any]:
        """Return the server's state as a deployment, and the version to which each model can be rolled back.

        Args:
            signature: value that changes with the models.

        Raises:
            ApiError: 500, the state cannot be determined.
        """
        async with self._querying:
            if self._overview[0] != signature:
                answer = await self._query(replace(self._template, kind="overview"))
                if error := answer.get("error"):
                    raise ApiError(500, "InternalServerException", error["message"])
                self._overview = signature, answer["result"]
            return self._overview[1]

    async def plan(self, deployment: str) -> dict[str, Any]:
        """Return the differences of the server from a deployment, or the problems of the deployment; change nothing.

        Raises:
            ApiError: 500, the process ended without an answer.
        """
        async with self._querying:
            answer = await self._query(replace(self._template, kind="plan", deployment=deployment))
        if error := answer.get("error"):
            problem = {"line": 0, "place": "", "message": error["message"], "hint": error["hint"]}
            return {"problems": error["problems"] or [problem], "plan": None}
        return {"problems": [], "plan": answer["result"]}

    def start(self, kind: Change, values: Mapping[str, Any]) -> dict[str, Any]:
        """Start an operation, and return its document.

        Args:
            kind: the operation.
            values: attributes of its `Job`, from a request.

        Raises:
            ApiError: 400, a value is missing or invalid; 409, another operation is running.
        """
        job = replace(self._template, kind=kind, **_checked(kind, values))
        if self.running:
            message = "Another change is being made; wait until it has ended."
            raise ApiError(409, "ConflictStatusException", message)
        self._operation = {
            "id": secrets.token_hex(8),
            "kind": job.kind,
            "model": job.model,
            "version": job.version,
            "state": "running",
            "started": round(time.time(), 3),
            "ended": None,
            "stopping": False,
            "planned": [],
            "steps": [],
            "outcome": None,
        }
        self._changed()
        self._tasks.start(self._carry_out(job))
        return self._operation

    def stop(self) -> None:
        """Stop the operation; it then undoes the steps that can be undone.

        Raises:
            ApiError: 409, no operation is running.
        """
        if not self.running or self._operation is None:
            raise ApiError(409, "ConflictStatusException", "No change is being made now.")
        if not self._operation["stopping"]:
            self._operation["stopping"] = True
            if self._process:
                _write(self._process, STOP)
            self._changed()

    async def close(self) -> None:
        """Stop the operation, which can undo its steps as long as the server answers, and end its process."""
        if self.running:
            with contextlib.suppress(ApiError):
                self.stop()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._tasks.wait(), _STOP_SECONDS)
        await self._tasks.close()

    # The process.

    async def _query(self, job: Job) -> dict[str, Any]:
        answer: dict[str, Any] = {}
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._run(job, answer.update), _QUERY_SECONDS)
        if "result" not in answer and "error" not in answer:
            message = "The deployment was not read within two minutes, or not at all; the server's log has the reason."
            raise ApiError(500, "InternalServerException", message)
        return answer

    async def _carry_out(self, job: Job) -> None:
        answer: dict[str, Any] = {}

        def on_message(message: Mapping[str, Any]) -> None:
            assert self._operation
            if "step" in message:
                _add_step(self._operation["steps"], message["step"])
                self._changed()
            elif "planned" in message:
                self._operation["planned"] = message["planned"]
            else:
                answer.update(message)

        def on_start(process: asyncio.subprocess.Process) -> None:
            self._process = process
            if self._operation and self._operation["stopping"]:
                _write(process, STOP)

        try:
            await self._run(job, on_message, on_start)
        except asyncio.CancelledError:
            self._end("interrupted", _outcome(message="The server was stopped in the middle of it."))
            raise
        except OSError as error:
            answer["error"] = {"message": f"its process cannot be started: {error}", "hint": ""}
        finally:
            self._process = None
        state, outcome = _judged(answer)
        if job.kind == "apply" and state == "done":
            self._applied = {"time": round(time.time(), 3), "deployment": job.deployment}
        self._end(state, outcome)

    def _end(self, state: State, outcome: dict[str, Any]) -> None:
        if self._operation:
            self._operation |= {"state": state, "ended": round(time.time(), 3), "outcome": outcome}
        self._changed()

    async def _run(
        self,
        job: Job,
        on_message: Callable[[Mapping[str, Any]], None],
        on_start: Callable[[asyncio.subprocess.Process], None] = lambda process: None,
    ) -> None:
        """Run a job in its process, and log its output except its messages."""
        other: deque[str] = deque(maxlen=_LAST_LINES)
        async with _started() as process:
            assert process.stdout
            _write(process, job.to_line())
            on_start(process)
            async for line in commands.lines_of(process.stdout):
                message = _message(line)
                if message is None:
                    other.append(line.decode("utf-8", "replace"))
                else:
                    on_message(message)
            status = await process.wait()
        if status:
            logs.SERVER.error("%s ended with %d: %s", job.kind, status, "\n".join(other))

    # The record.

    def _changed(self) -> None:
        document = {"schema": _SCHEMA, "operation": self._operation, "applied": self._applied}
        try:
            write_text(json.dumps(document, indent=1) + "\n", self._file)
        except TorchmarError as error:
            logs.SERVER.warning("the record of rollouts is not saved: %s", error)
        self._publish(self.shown())

    def _read(self) -> None:
        try:
            document = json.loads(self._file.read_bytes())
            if document["schema"] != _SCHEMA:
                return
            self._operation, self._applied = document["operation"], document["applied"]
            if self.running:
                message = "The server ended in the middle of it."
                self._operation |= {"state": "interrupted", "outcome": _outcome(message=message)}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, LookupError, TypeError) as error:
            logs.SERVER.warning("%s is not read: %s", self._file, error)


@contextlib.asynccontextmanager
async def _started() -> AsyncIterator[asyncio.subprocess.Process]:
    async with commands.supervised(
        _COMMAND,
        cwd="/",
        env=dict(os.environ),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    ) as process:
        yield process


def _checked(kind: Change, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a request; texts are required, numbers have defaults.

    Raises:
        ApiError: 400, a value is missing or invalid.
    """
    limits = _VALUES[kind]
    for name, limit in limits.items():
        value = values.get(name, "" if limit is None else 0)
        number = isinstance(value, int | float) and limit is not None and 0 <= value <= limit
        if not (number or (isinstance(value, str) and value and limit is None)):
            expected = "a text" if limit is None else f"a number from 0 to {limit:g}"
            raise ApiError(400, "BadRequestException", f"The body of {kind} needs {name}, {expected}.")
    if unknown := sorted(values.keys() - limits.keys()):
        raise ApiError(
            400, "BadRequestException", f"The body of {kind} has no {unknown[0][:100]}; it has {', '.join(limits)}."
        )
    return dict(values)


def _write(process: asyncio.subprocess.Process, line: bytes) -> None:
    assert process.stdin
    with contextlib.suppress(OSError, RuntimeError):  # the process has ended
        process.stdin.write(line)


def _message(line: bytes) -> Mapping[str, Any] | None:
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


def _add_step(steps: list[dict[str, Any]], step: dict[str, Any]) -> None:
    """Add a new step, or complete the last one."""
    if step["seconds"] is not None and steps and steps[-1]["seconds"] is None:
        steps[-1] = step
    elif len(steps) < _MOST_STEPS:
        steps.append(step)


def _judged(answer: Mapping[str, Any]) -> tuple[State, dict[str, Any]]:
    """Return the state and the result of an operation whose process has ended."""
    if error := answer.get("error"):
        return "failed", _outcome(message=error["message"], hint=error["hint"])
    result = answer.get("result")
    if result is None:
        return "failed", _outcome(message="Its process ended without a result; the server's log has the reason.")
    if "promoted" in result:
        state: State = "done" if result["promoted"] else "rejected"
        return state, _outcome(before=result["before"], samples=result["samples"], evidence=result["evidence"])
    if "after" in result:
        return "done", _outcome(before=result["before"])
    state = "stopped" if result["stopped"] else "failed" if result["failure"] else "done"
    return state, _outcome(
        message=result["failure"],
        hint=result["hint"],
        undone=result["undone"],
        left=result["left"],
        rest=result["rest"],
    )


def _outcome(**fields: Any) -> dict[str, Any]:
    outcome = {"message": "", "hint": "", "undone": False, "left": [], "rest": None}
    return {**outcome, "before": "", "samples": None, "evidence": None, **fields}
