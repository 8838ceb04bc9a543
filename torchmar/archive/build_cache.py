"""The build cache: it recognises an archive that is up to date without reading its sources.

A record beside the archive contains size, modification time, change time, inode and device of
every file and folder that was packed, and of the archive itself. No program can set the change
time, only the kernel: a changed file is noticed even if its modification time was set back.
There are two exceptions:

* A change at the same time as the build, within the resolution of the clock: files that
  were changed so shortly before the build are not recorded, and are read again.
* A file system without change times (some network file systems): a record is valid for a
  week, then everything is read again. ``torchmar build --force`` reads everything immediately.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torchmar
from torchmar.atomic import temporary_path

_BELIEVED = 7 * 24 * 3600.0  # seconds
_FORMAT = 1
# A clock that counts whole seconds (or two, on FAT) is recognised by its zeros.
_COARSE, _FINE = 2_500_000_000, 50_000_000  # nanoseconds

Stats = dict[str, list[int]]


def stats(paths: Iterable[Path]) -> Stats:
    """Return the file system's record of each path, by absolute path; links are not followed."""
    return {str(path.absolute()): _stat(path) for path in paths}


def load(recipe: Path, store: Path, form: str) -> dict[str, Any] | None:
    """Return the record of a recipe's archive if it is up to date; None if it must be built."""
    try:
        record = json.loads(_file(recipe, store, form).read_bytes())
        if record["made with"] != _made_with() or not 0 <= time.time() - record["read at"] < _BELIEVED:
            return None
        same = all(_stat(Path(path)) == stat for path, stat in record["files"].items())
        return dict(record["archive"]) if same else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def store(
    recipe: Path, store: Path, form: str, inputs: Stats, outputs: Iterable[Path], archive: Mapping[str, Any]
) -> None:
    """Write the record of an archive.

    Args:
        recipe: path of the recipe.
        store: folder of the archive.
        form: form of the archive.
        inputs: `stats` of all inputs, taken before they were read.
        outputs: files of the archive.
        archive: values for `load` to return.
    """
    file = _file(recipe, store, form)
    now = time.time_ns()
    if any(_too_fresh(stat, now) for stat in inputs.values()):
        file.unlink(missing_ok=True)
        return
    record = {
        "made with": _made_with(),
        "read at": time.time(),
        "archive": dict(archive),
        "files": {**inputs, **stats(outputs)},
    }
    part = temporary_path(file)
    try:
        part.write_text(json.dumps(record), encoding="utf-8")
        os.replace(part, file)
    except OSError:
        part.unlink(missing_ok=True)  # without a record, the next build reads everything


def _file(recipe: Path, store: Path, form: str) -> Path:
    # Hidden, so that TorchServe does not regard it as a model when it loads a whole store.
    key = hashlib.sha256(f"{form}:{recipe.absolute()}".encode()).hexdigest()[:16]
    return store / f".built-{key}"


def _made_with() -> list[object]:
    return [_FORMAT, torchmar.__version__, os.environ.get("SOURCE_DATE_EPOCH", "")]


def _stat(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]


def _too_fresh(stat: list[int], now: int) -> bool:
    return any(now - moment < (_FINE if moment % 1_000_000_000 else _COARSE) for moment in stat[1:3])
