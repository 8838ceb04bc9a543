"""Start torchmar's own server: the same Python, and no Java."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import torchmar
from torchmar.engines.engine import Engine
from torchmar.engines.running import MODULE
from torchmar.errors import EngineError

_NEEDED = ("httptools", "python_multipart", "psutil", "torch", "ts")


class Builtin(Engine):
    """The built-in server, which runs while the context is open."""

    name = "builtin"
    stopped = (0, -15)

    @property
    def described(self) -> str:
        """The version of torchmar."""
        return f"torchmar {torchmar.__version__}, built in"

    def _find(self) -> None:
        for module in _NEEDED:
            if importlib.util.find_spec(module) is None:
                raise EngineError(
                    f"the built-in server needs {module}",
                    hint="pip install 'torchmar[server]'; --engine torchserve is the other one",
                )

    def _command(self, config: Path, temporary: Path) -> list[str]:
        return [self._python, "-m", MODULE, "-f", str(config)]

    def _environment(self, temporary: Path) -> dict[str, str]:
        # Where archives are extracted; it is removed even if the server could not.
        return {**os.environ, "TMPDIR": str(temporary)}
