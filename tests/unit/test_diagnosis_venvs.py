"""torchmar.diagnosis.venvs reports archives whose environment is missing and cannot be built."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from torchmar.diagnosis import venvs
from torchmar.properties import Properties

pytest.importorskip("uv")

Make = Callable[..., Path]

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
LOCK = f"tiny==1.0 --hash=sha256:{'0' * 64}\n"


def findings(store: Path, **keys: str) -> list[tuple[str, str]]:
    given = Properties(None, {"torchmar_venv_folder": str(store / "venvs"), **keys})
    return [(finding.severity, finding.cause.partition(" (")[0]) for finding in venvs.check(store, given)]


def test_an_environment_is_there_or_may_be_built(make: Make, tmp_path: Path) -> None:
    store = tmp_path / "store"
    runtime = {"python": HERE, "requirements": "lock.txt", "server_packages": True}
    make(store=store, disk={"lock.txt": LOCK}, runtime=runtime)
    make(store=store, name="plain")
    assert findings(store) == [
        ("error", "made-1.0.mar: its environment is not there, and the server must not build it")
    ]
    assert findings(store, install_py_dep_per_model="true") == [
        ("ok", "made-1.0.mar: its environment is built when it is registered")
    ]
    (finding,) = venvs.check(store, Properties(None, {}), "torchserve")
    assert finding.severity == "warning"


def test_a_python_that_cannot_be_had_is_an_error(make: Make, tmp_path: Path) -> None:
    make(store=tmp_path / "store", disk={"lock.txt": LOCK}, runtime={"python": "3.99", "requirements": "lock.txt"})
    ((severity, cause),) = findings(tmp_path / "store", install_py_dep_per_model="true")
    assert severity == "error" and cause.startswith("made-1.0.mar: this machine has no Python 3.99")
