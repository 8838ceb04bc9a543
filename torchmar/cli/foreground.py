"""Replace a command with the server that it has configured: in a container, signals and output belong to the server."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from torchmar import properties
from torchmar.connection import KEY_FILE
from torchmar.engines.server_records import MARK, MODULE, ServerRecord, new_mark, option
from torchmar.errors import EngineError


def become(values: Mapping[str, str], folder: Path, announce: Callable[[ServerRecord], None]) -> NoReturn:
    """Replace this process with torchmar's server; never returns.

    Args:
        values: the server's configuration.
        folder: the run folder.
        announce: callback with the record of the server before it starts, which prints its addresses.

    Raises:
        EngineError: a server runs in the folder already.
        OSError: the folder cannot be written.
    """
    if running := ServerRecord.find(folder):
        hint = f"torchmar stop{option(folder)} ends it; --run-folder and other ports run another beside it"
        raise EngineError(f"a server runs in {folder} already (process {running.pid})", hint=hint)
    if killed := ServerRecord.killed(folder):
        killed.stop()  # its workers may still run
    folder.mkdir(parents=True, exist_ok=True)
    (folder / KEY_FILE).unlink(missing_ok=True)
    temporary = folder / "tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    file = folder / "config.properties"
    file.write_text(properties.show(values), encoding="utf-8")
    mark = new_mark()
    record = ServerRecord.of(os.getpid(), folder, temporary, "builtin", mark=mark)
    record.save()
    announce(record)
    sys.stdout.flush()
    os.chdir(folder)
    os.execve(
        sys.executable,
        [sys.executable, "-m", MODULE, "-f", str(file), "--foreground"],
        {**os.environ, "TMPDIR": str(temporary), MARK: mark},
    )
