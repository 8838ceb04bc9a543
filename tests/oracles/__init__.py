"""Environments with other people's clients and validators, which tests run as separate processes.

``tests/oracles/NAME.txt`` lists the packages of the environment ``NAME``. It is made when a test first needs it, in
``.oracles/``, and made anew when the list changes.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import site
import subprocess
import sys
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
_ENVIRONMENTS = _HERE.parent.parent / ".oracles"
_INSTALL_SECONDS = 900


def python_of(name: str, *, borrows: bool = False) -> Path:
    """Return the interpreter of an environment, which is installed if it is not there.

    The test is skipped, with pip's last lines as the reason, where the packages cannot be installed.

    Args:
        name: of the environment.
        borrows: whether it also has the packages of this environment, behind its own, and this project.
    """
    requirements = _HERE / f"{name}.txt"
    digest = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()[:12]
    _ENVIRONMENTS.mkdir(exist_ok=True)
    folder = _ENVIRONMENTS / f"{name}-{digest}"
    # Tests in several processes may need it at once; one of them installs it.
    with (_ENVIRONMENTS / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        failure = _ENVIRONMENTS / f"{name}-{digest}.failed"
        if not (folder / "installed").exists() and not failure.exists():
            _install(folder, requirements, failure)
        if not (folder / "installed").exists():
            reason = f"{failure.read_text()} (remove {failure} to try again)"
            pytest.skip(f"the packages of {requirements.name} cannot be installed: {reason}")
    if borrows:
        (own,) = folder.glob("lib/python*/site-packages")
        root = _HERE.parent.parent
        lines = [*site.getsitepackages(), str(root), str(root / "handlers")]
        (own / "borrowed.pth").write_text("".join(f"{line}\n" for line in lines))
    return folder / "bin" / "python"


def _install(folder: Path, requirements: Path, failure: Path) -> None:
    """Install with uv, which takes a fraction of pip's CPU time; with pip where uv fails, as it knows no pip.conf."""
    for commands in (_uv_commands, _pip_commands):
        shutil.rmtree(folder, ignore_errors=True)
        output = ""
        for command in commands(folder, requirements):
            try:
                ran = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_SECONDS)
            except subprocess.TimeoutExpired:
                output = f"{command[0]} did not end within {_INSTALL_SECONDS} s"
                break
            if ran.returncode:
                output = ran.stdout + ran.stderr
                break
        else:
            (folder / "installed").touch()
            return
    # Remembered, so that not every test waits for it again; removing the file tries again.
    failure.write_text("\n".join(output.strip().splitlines()[-3:]))


def _uv_commands(folder: Path, requirements: Path) -> list[list[str]]:
    uv, python = [sys.executable, "-m", "uv"], str(folder / "bin" / "python")
    return [
        [*uv, "venv", "--no-config", "--no-project", "--no-python-downloads", "--python", sys.executable, str(folder)],
        [*uv, "pip", "install", "--no-config", "--python", python, "-r", str(requirements)],
    ]


def _pip_commands(folder: Path, requirements: Path) -> list[list[str]]:
    python = str(folder / "bin" / "python")
    install = [python, "-m", "pip", "install", "--disable-pip-version-check", "-r", str(requirements)]
    return [[sys.executable, "-m", "venv", str(folder)], install]
