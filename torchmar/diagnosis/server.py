"""The check of the running server, its models and tokens; its own health report is not trusted."""

from __future__ import annotations

import json
import stat
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from torchmar.connection import KEY_FILE
from torchmar.diagnosis.finding import Finding, error, ok, warning
from torchmar.engines import state
from torchmar.engines.server_records import ServerRecord, option, unmanaged_servers


def check(run_folder: Path, running: ServerRecord | None) -> Iterator[Finding]:
    """Yield findings about the server of a run folder, its models and tokens, and unmanaged servers."""
    for other in unmanaged_servers():
        # A server of TorchServe's script may register any URL, and only torchserve --stop ends it.
        by_script = not other.gone and "TorchServe" in other.what
        yield warning(
            "server",
            f"process {other.pid} is {other.what}{': its allowed_urls may be open' if by_script else ''}",
            "torchserve --stop ends the one that the torchserve script started"
            if by_script
            else f"kill {other.pid} ends it",
        )
    if running is None:
        if killed := ServerRecord.killed(run_folder):
            yield error(
                "server",
                f"the server of {run_folder} (process {killed.pid}) ended without being stopped",
                f"torchmar logs{option(run_folder)} shows its last output, dmesg whether the system was out of memory",
            )
        else:
            yield ok("server", f"no server runs with {run_folder}")
        return
    yield from tokens(run_folder / KEY_FILE)
    current = state.of(running)
    if current.error:
        yield error(
            "server",
            f"process {running.pid} runs and does not answer: {current.error}",
            f"torchmar logs{option(run_folder)} shows what it is doing",
        )
        return
    for version in current.versions:
        if notice := version.error:
            traceback = f"torchmar logs {version.model.name}{option(run_folder)} has the traceback"
            yield error("server", notice.message, notice.hint or traceback)
    for message in current.not_loaded:
        yield error(
            "server", message, f"torchmar logs{option(run_folder)} has more; /ping is Unhealthy until it is loaded"
        )
    ready = sum(version.state == "ready" for version in current.versions)
    yield ok("server", f"process {running.pid} answers; {ready} of {len(current.versions)} model versions are ready")


def tokens(file: Path) -> Iterator[Finding]:
    """Yield problems of a key file: expired tokens, or access for other users."""
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
        keys = json.loads(file.read_text(encoding="utf-8"))
        ends = {api: _timestamp(keys[api]["expiration time"]) for api in ("inference", "management")}
    except FileNotFoundError:
        return  # a server without tokens, which the check of exposure reports
    except (OSError, ValueError, KeyError, TypeError) as problem:
        yield error("tokens", f"{file} cannot be read: {problem!r}", "torchmar stop, then torchmar serve")
        return
    if mode & 0o077:
        yield error(
            "tokens", f"other users can read {file} (mode {mode:o})", f"chmod 600 {file}, and restart the server"
        )
    for api, end in ends.items():
        if end < time.time():
            yield warning(
                "tokens",
                f"the {api} token has expired: requests with it get 400",
                "any torchmar command that connects to the server renews it; scripts must read the key file again",
            )


def _timestamp(text: str) -> float:
    # Java writes nanoseconds, which Python's parser rejects.
    return datetime.fromisoformat(f"{text.partition('.')[0].rstrip('Z')}+00:00").timestamp()
