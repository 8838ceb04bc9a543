"""The cache of conversions: one folder for each, named by the digest of all its inputs."""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torchmar
from torchmar.errors import ArchiveError

_KEPT = 30 * 24 * 3600.0  # seconds for which a conversion is kept after its last use
_CHUNK = 1 << 20


def root() -> Path:
    """Return the folder of conversions; a temporary folder if it is not writable."""
    return _folder("converted")


def instructions() -> Path:
    """Return the folder with torch's results about compilers; a temporary folder if it is not writable."""
    return _folder("instructions")


def _folder(name: str) -> Path:
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        path = cache.absolute() / "torchmar" / name
        path.mkdir(parents=True, exist_ok=True)
        if os.access(path, os.W_OK):
            return path
    except (OSError, RuntimeError):
        pass
    folder = tempfile.mkdtemp(prefix=f"torchmar-{name}-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def key(source: Path, job: Mapping[str, Any], versions: Mapping[str, str]) -> str:
    """Return the digest of all inputs of a conversion.

    Args:
        source: the model.
        job: job for the process of the conversion.
        versions: versions of the packages that the conversion uses.

    Raises:
        ArchiveError: the model cannot be read.
    """
    digest = hashlib.sha256()
    files = [source] if not source.is_dir() else sorted(path for path in source.rglob("*") if path.is_file())
    try:
        for file in files:
            digest.update(json.dumps([file.relative_to(source).as_posix(), file.stat().st_size]).encode())
            with file.open("rb") as stream:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
    except OSError as error:
        raise ArchiveError(f"{source} cannot be read: {error.strerror}") from None
    code = [file.read_bytes() for file in sorted(Path(__file__).parent.rglob("*.py"))]
    facts = [source.stem, torchmar.__version__, dict(job), dict(versions), sys.version_info[:2]]
    digest.update(b"".join(hashlib.sha256(part).digest() for part in [json.dumps(facts).encode(), *code]))
    return digest.hexdigest()[:32]


def load(entry: Path) -> dict[str, Any] | None:
    """Return the record of a conversion; None if there is none, or if one of its files is damaged."""
    try:
        record = json.loads((entry / "record.json").read_bytes())
        if any((entry / name).stat().st_size != size for name, size in record["files"].items()):
            return None
        os.utime(entry)
        return dict(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def store(entry: Path, convert: Callable[[Path, Path], dict[str, Any]]) -> dict[str, Any]:
    """Store a conversion; remove old ones.

    Args:
        entry: folder of the conversion.
        convert: writes files into its first argument, a folder, and returns their record; its second argument is an
            empty folder for its process.

    Raises:
        OSError: the folder cannot be written.
    """
    _prune(entry.parent)
    part = Path(tempfile.mkdtemp(prefix=".part-", dir=entry.parent))
    try:
        work = part / "work"
        work.mkdir()
        record = convert(part, work)
        shutil.rmtree(work)
        record["files"] = {file.name: file.stat().st_size for file in part.iterdir()}
        (part / "record.json").write_text(json.dumps(record), encoding="utf-8")
        if entry.exists():  # damaged, or another process was faster
            shutil.rmtree(entry, ignore_errors=True)
        try:
            part.rename(entry)
        except OSError:
            if load(entry) is None:
                raise
        return record
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _prune(root: Path) -> None:
    """Remove conversions that were not used for a month, and files of killed processes."""
    for entry in root.iterdir():
        try:
            if time.time() - entry.stat().st_mtime > _KEPT:
                shutil.rmtree(entry, ignore_errors=True)
        except OSError:
            continue
