"""The build cache: recognise an archive that is up to date without reading its sources.

A record beside the archive notes size, modification time, change time, inode and device of
every file and folder that went in, and of the archive itself. The change time is the
kernel's own: no program sets it, so that a file with an old date put on it is noticed all
the same. Two things this cannot see, and what is done about them:

* A change in the very moment of the build, within the resolution of the clock: files that
  were touched so shortly before the build are not recorded at all, and are read again.
* A file system that keeps no change time (some network ones): a record is believed for a
  week, then everything is read again. ``torchmar build --force`` reads everything at once.
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
# A clock that counts whole seconds (or two, on FAT) shows in its zeros.
_COARSE, _FINE = 2_500_000_000, 50_000_000  # nanoseconds

Stats = dict[str, list[int]]


def stats(paths: Iterable[Path]) -> Stats:
    """Return the file system's record of each path, by absolute path; links are not followed."""
    return {str(path.absolute()): _stat(path) for path in paths}


def load(recipe: Path, store: Path, form: str) -> dict[str, Any] | None:
    """Return what was noted of the archive of a recipe if it is up to date; None when it must be built."""
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
    """Note what an archive was made of.

    Args:
        recipe: the recipe's path.
        store: where the archive lies.
        form: of the archive.
        inputs: `stats` of everything that went in, taken before it was read.
        outputs: the files of the archive.
        archive: what `load` is to return.
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
        part.unlink(missing_ok=True)  # no record, no harm


def _file(recipe: Path, store: Path, form: str) -> Path:
    # Hidden, so that TorchServe does not take it for a model when it loads a whole store.
    key = hashlib.sha256(f"{form}:{recipe.absolute()}".encode()).hexdigest()[:16]
    return store / f".built-{key}"


def _made_with() -> list[object]:
    return [_FORMAT, torchmar.__version__, os.environ.get("SOURCE_DATE_EPOCH", "")]


def _stat(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]


def _too_fresh(stat: list[int], now: int) -> bool:
    return any(now - moment < (_FINE if moment % 1_000_000_000 else _COARSE) for moment in stat[1:3])
