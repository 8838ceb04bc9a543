"""The environment of an archive with a runtime: built in a separate process, shared by archives with its lock file."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from torchmar.recipe import Runtime
from torchmar.server.models import commands
from torchmar.server.telemetry import logs
from torchmar.worker.venvs import MISSING
from torchmar.worker.venvs import folder as folders
from torchmar.worker.venvs.folder import Venv

_TRIES = 3
_LINE_LENGTH = 500


class VenvError(Exception):
    """The environment cannot be built; the message is the reason."""


async def prepare(
    runtime: Runtime,
    *,
    content: Path,
    place: Path,
    may_build: bool,
    model_name: str,
    environment: Mapping[str, str],
) -> Venv:
    """Return the environment of an archive, and build it if it is not complete; the caller closes it.

    A cancellation ends the build.

    Args:
        runtime: runtime of the archive.
        content: folder with the archive's content.
        place: folder of environments.
        may_build: whether it may be built; otherwise it must be complete.
        model_name: name for the log, which gets uv's output.
        environment: environment variables of uv.

    Raises:
        VenvError: it cannot be built, or it is not complete and must not be built.
    """
    command = [sys.executable, "-m", "torchmar.worker.venvs", str(content), runtime.model_dump_json(), str(place)]
    command += [] if may_build else ["use"]

    def log(line: str) -> None:
        if not line.startswith("{"):  # a line with { is the result
            logs.SERVER.info("uv for %s: %s", model_name, line[:_LINE_LENGTH])

    for _ in range(_TRIES):
        _, lines = await commands.run(command, log, folder=Path("/"), environment=environment)
        result = _result(lines)
        if result.get("error") == MISSING:
            raise VenvError(
                f"it needs an environment of its own (Python {runtime.python}, {runtime.requirements}), which this "
                "server does not have and must not build: set install_py_dep_per_model=true, or build it with "
                "torchmar venv build"
            )
        if error := result.get("error"):
            raise VenvError("; ".join(filter(None, (error, result.get("hint")))))
        # It may be removed before this server holds its lock.
        if venv := await asyncio.to_thread(folders.use, Path(result["folder"])):
            return venv
    raise VenvError("its environment is removed again and again")


def _result(lines: list[str]) -> dict[str, str]:
    try:
        return dict(json.loads(lines[-1]))
    except (IndexError, ValueError):
        return {"error": "\n".join(lines) or "the process that builds it has ended"}
