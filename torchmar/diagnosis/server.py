"""Whether the server that runs does what it should, whatever it says of its health."""

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
    for one in unmanaged_servers():
        # The script of TorchServe has it fetch from anywhere, and keeps a record of its own.
        by_script = not one.gone and "TorchServe" in one.what
        yield warning(
            "server",
            f"process {one.pid} is {one.what}{': its allowed_urls may be open' if by_script else ''}",
            "torchserve --stop ends the one that the torchserve script started"
            if by_script
            else f"kill {one.pid} ends it",
        )
    if running is None:
        if killed := ServerRecord.killed(run_folder):
            yield error(
                "server",
                f"the one of {run_folder} (process {killed.pid}) ended without being stopped",
                f"torchmar logs{option(run_folder)} shows its last output, dmesg whether memory was short",
            )
        else:
            yield ok("server", f"none runs with {run_folder}")
        return
    yield from tokens(run_folder / KEY_FILE)
    seen = state.of(running)
    if seen.error:
        yield error(
            "server",
            f"process {running.pid} runs and does not answer: {seen.error}",
            f"torchmar logs{option(run_folder)} shows what it is at",
        )
        return
    for version in seen.versions:
        if notice := version.error:
            traceback = f"torchmar logs {version.model.name}{option(run_folder)} has the traceback"
            yield error("server", notice.message, notice.hint or traceback)
    for message in seen.not_loaded:
        yield error(
            "server", message, f"torchmar logs{option(run_folder)} has more; /ping is Unhealthy until it is loaded"
        )
    ready = sum(version.state == "ready" for version in seen.versions)
    yield ok("server", f"process {running.pid} answers; {ready} of {len(seen.versions)} model versions are ready")


def tokens(file: Path) -> Iterator[Finding]:
    """Yield what is wrong with a key file: tokens that have expired, or that others may read."""
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
        keys = json.loads(file.read_text(encoding="utf-8"))
        ends = {api: _moment(keys[api]["expiration time"]) for api in ("inference", "management")}
    except FileNotFoundError:
        return  # a server without tokens, which is a finding about exposure
    except (OSError, ValueError, KeyError, TypeError) as problem:
        yield error("tokens", f"{file} cannot be read: {problem!r}", "torchmar stop, then torchmar serve")
        return
    if mode & 0o077:
        yield error(
            "tokens", f"{file} may be read by others (mode {mode:o})", f"chmod 600 {file}, and restart the server"
        )
    for api, end in ends.items():
        if end < time.time():
            yield warning(
                "tokens",
                f"the {api} token has expired: who holds it is answered with 400",
                "any command of torchmar that asks the server renews it; scripts must read the key file again",
            )


def _moment(text: str) -> float:
    # Java writes nanoseconds, which Python's parser does not take.
    return datetime.fromisoformat(f"{text.partition('.')[0].rstrip('Z')}+00:00").timestamp()
