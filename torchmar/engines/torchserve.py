"""The real TorchServe: Java with the jar of the torchserve package."""

from __future__ import annotations

import importlib.util
import os
import shlex
from pathlib import Path

from torchmar.engines import java
from torchmar.engines.engine import Engine
from torchmar.engines.server_records import MAIN_CLASS
from torchmar.errors import EngineError
from torchmar.worker.environment import worker_environment

VERSION = "0.12.0"  # the last release


class TorchServe(Engine):
    """TorchServe; it runs while the context is open."""

    name = "torchserve"
    stopped = (143, -15)  # exit codes after SIGTERM: that of Java, and that without Java's signal handler

    @property
    def described(self) -> str:
        """The versions of TorchServe and Java."""
        return f"TorchServe {VERSION} on Java {self.java.version} ({self.java.executable})"

    def find(self) -> None:
        """Find TorchServe and Java."""
        package = importlib.util.find_spec("ts")
        if package is None or not package.submodule_search_locations:
            raise EngineError("TorchServe is not installed", hint="pip install 'torchmar[torchserve]'")
        self._home = Path(package.submodule_search_locations[0]).parent
        self.java = java.find()

    def configuration(self) -> dict[str, str]:
        """Return the configuration of the server, with a folder for workflows."""
        # TorchServe needs a folder for workflows, which may be the model store.
        return {**super().configuration(), "workflow_store": str(self.model_store)}

    def _command(self, config: Path, temporary: Path) -> list[str]:
        arguments = shlex.split(self.properties.get("vmargs"))
        if not any(argument.startswith("-Dlog4j") for argument in arguments):
            arguments.append(f"-Dlog4j.configurationFile={Path(__file__).with_name('log4j2.xml').as_uri()}")
        return [
            str(self.java.executable),
            f"-Dmodel_server_home={self._home}",
            f"-Djava.io.tmpdir={temporary}",
            # Nothing manages its logs over JMX, which takes a sixth of the CPU time of a start.
            "-Dlog4j2.disableJmx=true",
            *arguments,
            "-cp",
            str(self._home / "ts" / "frontend" / "*"),
            MAIN_CLASS,
            "--python",
            self._python,
            "-f",
            str(config),
            # Otherwise snapshots of an earlier run would take precedence over this configuration.
            "-ncs",
        ]

    def _environment(self, temporary: Path) -> dict[str, str]:
        # For the runtime python3, TorchServe uses the first python3 on the path, which must have torch.
        path = os.pathsep.join((str(Path(self._python).parent), os.environ.get("PATH", os.defpath)))
        return {**worker_environment(super()._environment(temporary)), "PATH": path}
