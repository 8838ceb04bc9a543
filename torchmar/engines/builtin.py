"""Start the built-in server: a Python process, without Java."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import time
from pathlib import Path
from typing import ClassVar

import torchmar
from torchmar.engines import TITLES, EngineName
from torchmar.engines.engine import Engine
from torchmar.engines.server_records import MODULE
from torchmar.errors import EngineError
from torchmar.server.models import startup_report
from torchmar.server.models.startup_report import StartupReport

_POLL_SECONDS = 0.05


class Builtin(Engine):
    """The built-in server; it runs while the context is open."""

    name: ClassVar[EngineName] = "builtin"
    stopped = (0, -15)
    needed: ClassVar[tuple[str, ...]] = ("httptools", "python_multipart", "psutil", "torch", "ts")
    """The modules that the server needs."""
    install: ClassVar[str] = "pip install 'torchmar[server]', or use --engine torchserve"
    """The hint for installing them."""

    @property
    def described(self) -> str:
        """The version of torchmar."""
        return f"torchmar {torchmar.__version__}, built in"

    def wait_until_loaded(self, seconds: float) -> StartupReport | None:
        """Wait until the server has loaded all models of its configuration, or failed to.

        Args:
            seconds: longest time to wait.

        Returns:
            The server's report; None if the time is over before.

        Raises:
            EngineError: the server has ended.
        """
        deadline = time.monotonic() + seconds
        while (report := startup_report.read(self.folder)) is None and time.monotonic() < deadline:
            if self._ended(_POLL_SECONDS) is not None:
                raise self._death("while it loaded its models")
        return report

    def reload(self) -> None:
        """Let the server read fixed tokens, key and certificate again."""
        self._process.send_signal(signal.SIGHUP)

    def _launch(self) -> None:
        startup_report.remove(self.folder)  # the report of an earlier server
        super()._launch()

    def find(self) -> None:
        """Find the packages of the server."""
        if self._python != sys.executable:  # this process cannot see the packages of another interpreter
            return
        for module in self.needed:
            if importlib.util.find_spec(module) is None:
                raise EngineError(f"{TITLES[self.name]} needs {module}", hint=self.install)

    def _command(self, config: Path, temporary: Path) -> list[str]:
        return [self._python, "-m", MODULE, "-f", str(config)]

    def _environment(self, temporary: Path) -> dict[str, str]:
        # Archives are extracted to this folder; it is removed here in case the server cannot do it.
        return {**os.environ, "TMPDIR": str(temporary)}
