"""Whether there is a Java that TorchServe runs on."""

from __future__ import annotations

from collections.abc import Iterator

from torchmar.diagnosis.finding import Finding, error, ok
from torchmar.engines import java
from torchmar.errors import EngineError


def check() -> Iterator[Finding]:
    """Yield which Java is used, or what was looked at."""
    try:
        found = java.find()
    except EngineError as problem:
        yield error("java", problem.message, problem.hint)
    else:
        yield ok("java", f"Java {found.version} ({found.executable})")
