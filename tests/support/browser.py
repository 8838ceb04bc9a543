"""A page in headless Chromium, in a separate process: `tests/oracles/browser.py`."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from tests.oracles import python_of
from tests.support.paths import ROOT

_NAMES = ("chromium", "chromium-browser", "google-chrome")


class Browser:
    """A page; every command of the driver is a method: ``browser.goto(url)``. The test is skipped without Chromium."""

    def __init__(self) -> None:
        chromium = next(filter(None, map(shutil.which, _NAMES)), None)
        if chromium is None:
            pytest.skip(f"there is no browser: none of {', '.join(_NAMES)} is installed")
        command = [str(python_of("browser")), str(ROOT / "tests" / "oracles" / "browser.py"), chromium]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.version = self._read()

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=30)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            assert self._process.stdin
            values = [str(value) if isinstance(value, Path) else value for value in arguments]
            self._process.stdin.write(json.dumps([name, *values]) + "\n")
            self._process.stdin.flush()
            return self._read()

        return call

    def _read(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "the browser has ended"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["value"]
