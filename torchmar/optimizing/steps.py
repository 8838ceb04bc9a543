"""Start the steps of an optimisation, each in a process of its own with limits of time and memory."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

import torchmar
from torchmar.worker import START
from torchmar.worker.environment import worker_environment
from torchmar.worker.process.messages import RunCommand, to_wire
from torchmar.worker.venvs.folder import Venv

_START_IN_VENV = Path(__file__).with_name("process") / "start.py"
_POLL_SECONDS = 0.25
_LOG_TAIL = 4000


class StepError(Exception):
    """A step without a result; the text is the reason. ``skipped``: the variant of this step is not possible."""

    def __init__(self, reason: str, *, skipped: bool = False) -> None:
        super().__init__(reason)
        self.skipped = skipped


class Steps:
    """Starts steps with the same limits.

    Args:
        folder: folder for the files of jobs and results.
        memory: limit for the memory of a step's processes in bytes.
        venv: the archive's environment, whose Python runs the steps; None: the Python of this process.
    """

    def __init__(self, folder: Path, *, memory: int, venv: Venv | None = None) -> None:
        self._folder, self._memory, self._venv = folder, memory, venv

    def run(self, step: str, job: Mapping[str, Any], *, seconds: float, name: str = "") -> Any:
        """Run a step and return its result; all its processes end with it.

        Args:
            step: a module of `torchmar.optimizing.process`.
            job: arguments of the step, as JSON.
            seconds: time limit.
            name: name of the variant, for the name of its log.

        Raises:
            StepError: the step failed, crashed, or reached a limit.
        """
        work = Path(tempfile.mkdtemp(prefix=f"{name or step}-", dir=self._folder))
        job_file, result_file, log = work / "job.json", work / "result.json", work / "log.txt"
        job_file.write_text(json.dumps(job), encoding="utf-8")
        command, variables = self._python()
        command += [step, str(job_file), str(result_file)]
        # The cache of inductor belongs to the variant, and is removed with it.
        environment = {**worker_environment(variables), "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor")}
        child_end, lifeline = os.pipe()
        process: subprocess.Popen[bytes] | None = None
        try:
            with log.open("wb") as output:
                process = subprocess.Popen(
                    [sys.executable, str(START), json.dumps(to_wire(RunCommand(child_end, command)))],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=work,
                    env=environment,
                    pass_fds=[child_end],
                    start_new_session=True,
                )
            os.close(child_end)
            child_end = -1
            limit = self._wait(process, seconds)
        finally:
            for descriptor in (child_end, lifeline):
                if descriptor >= 0:
                    os.close(descriptor)
            if process is not None:  # it has not ended by itself: its supervisor ends all its processes now
                process.wait()
        if limit:
            raise StepError(limit)
        return self._result(result_file, log, process.returncode)

    def _python(self) -> tuple[list[str], dict[str, str]]:
        """Return the command that runs a step, without its arguments, and its environment variables."""
        if self._venv:
            return [str(self._venv.python), str(_START_IN_VENV)], self._venv.variables(os.environ)
        paths = [str(Path(torchmar.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        return [sys.executable, "-m", "torchmar.optimizing.process"], variables

    def _wait(self, process: subprocess.Popen[bytes], seconds: float) -> str:
        """Wait until a process ends; return the limit that it has reached, or an empty text."""
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_SECONDS)
                return ""
            if time.monotonic() > deadline:
                return f"it took more than {seconds:.0f} s"
            memory = _memory(process.pid)
            if memory > self._memory:
                return f"it took more than {self._memory / 2**30:.1f} GiB of memory"

    def _result(self, file: Path, log: Path, status: int) -> Any:
        try:
            document = json.loads(file.read_bytes())
        except (OSError, ValueError):
            text = log.read_bytes()[-_LOG_TAIL:].decode("utf-8", "replace").strip().splitlines()
            cause = f"by signal {signal.Signals(-status).name}" if status < 0 else f"with exit code {status}"
            raise StepError(f"its process ended {cause}" + (f": {text[-1]}" if text else "")) from None
        if "value" in document:
            return document["value"]
        skipped = "not_applicable" in document
        raise StepError(document["not_applicable" if skipped else "failed"], skipped=skipped)


def _memory(pid: int) -> int:
    """Return the resident bytes of a process and its descendants."""
    total = 0
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
    return total
