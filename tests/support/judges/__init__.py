"""Judges of checks: TorchServe's own Java classes, run in a process beside the tests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest


class Frontend:
    """TorchServe's frontend, for reading archives and configurations; without a Java compiler, tests are skipped."""

    def __init__(self) -> None:
        spec = find_spec("ts")
        assert spec and spec.submodule_search_locations
        jar = Path(next(iter(spec.submodule_search_locations)), "frontend", "model-server.jar")
        if not shutil.which("javac"):
            pytest.skip("no Java compiler")
        self._process = subprocess.Popen(
            ["java", "-cp", str(jar), str(Path(__file__).with_name("ArchiveJudge.java"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )

    def __enter__(self) -> Frontend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(60)

    def read(self, path: Path) -> dict[str, Any]:
        """Return the frontend's result for an archive or a configuration (``*.yaml``); ``error`` if it rejects it."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        while line := self._process.stdout.readline():
            if line.startswith("{"):  # its own log is in the output, too
                verdict: dict[str, Any] = json.loads(line)
                return verdict
        raise AssertionError("the judge has ended")
