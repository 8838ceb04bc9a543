"""The check for a Java that TorchServe can use."""

from __future__ import annotations

from collections.abc import Iterator

from torchmar.diagnosis.finding import Finding, error, ok
from torchmar.engines import java
from torchmar.errors import EngineError


def check() -> Iterator[Finding]:
    """Yield the Java that TorchServe would use, or the rejected candidates."""
    try:
        usable = java.find()
    except EngineError as problem:
        yield error("java", problem.message, problem.hint)
    else:
        yield ok("java", f"Java {usable.version} ({usable.executable})")
