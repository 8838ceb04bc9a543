"""The archives of the model store for the console: results of `torchmar inspect` and `torchmar check`. No code runs."""

from __future__ import annotations

import filecmp
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from torchmar import checks
from torchmar.archive import Archive, store
from torchmar.checks import admission
from torchmar.checks.finding import Finding
from torchmar.errors import TorchmarError
from torchmar.recipe import Sample
from torchmar.server.api.console import reports
from torchmar.server.api_error import ApiError
from torchmar.server.models.registry import Registry

_MOST = 1000  # limit of the list
_MOST_MEMBERS = 2000
_MOST_SAMPLES = 200
_LONGEST_NAME = 120  # characters

Registered = Mapping[str, list[dict[str, str]]]
"""The registered models and versions, by the file name of their archives."""


def registered(registry: Registry) -> Registered:
    """Return the registered versions, by the file name of their archives."""
    by_file: dict[str, list[dict[str, str]]] = {}
    for name, model in registry.models.items():
        for version in model.versions.values():
            by_file.setdefault(Path(version.url).name, []).append({"model": name, "version": version.version})
    return by_file


def listed(folder: Path, in_use: Registered) -> dict[str, Any]:
    """Return the archives of a model store. Blocking: it opens each of them.

    Raises:
        ApiError: 404, the folder cannot be read.
    """
    try:
        paths = store.find(folder)
    except (TorchmarError, OSError) as error:
        raise ApiError(404, "ResourceNotFoundException", f"The model store cannot be read: {error}") from None
    return {
        "folder": str(folder),
        "more": max(0, len(paths) - _MOST),
        "archives": [_summary(path, in_use.get(path.name, [])) for path in paths[:_MOST]],
    }


def described(folder: Path, file: str, in_use: Registered) -> dict[str, Any]:
    """Return the content of an archive in the model store, and the findings of checks. Blocking: it reads the whole
    archive.

    Raises:
        ApiError: 404, the model store has no such archive.
    """
    path = located(folder, file)
    results = {"findings": _findings(path), "reports": reports.listed(path)}
    return {**_summary(path, in_use.get(file, [])), **_content(path), **results}


def located(folder: Path, file: str) -> Path:
    """Return the path of an archive of the model store.

    Raises:
        ApiError: 404, no archive has this name.
    """
    path = folder / file
    if "/" in file or not store.is_archive(path) or not path.exists():
        raise ApiError(404, "ResourceNotFoundException", f"The model store has no archive {file[:200]}.")
    return path


def checked(body: bytes | memoryview, file: str) -> dict[str, Any]:
    """Return the findings of checks for an archive from a browser; it is not kept. Blocking.

    Args:
        body: the archive.
        file: its name, whose suffix determines the form.
    """
    with tempfile.TemporaryDirectory(prefix="torchmar-check-") as folder:
        path = Path(folder, _file_name(file))
        path.write_bytes(body)
        results = {"findings": _findings(path), "reports": reports.listed(path)}
        return {**_summary(path, []), **_content(path), **results}


def stored(folder: Path, body: bytes | memoryview, file: str, ignored_checks: Sequence[str]) -> str:
    """Write an archive from a browser into the model store, and return its file name. Blocking.

    Args:
        folder: the model store.
        body: the archive.
        file: its name, whose suffix determines the form.
        ignored_checks: codes of checks that the server ignores.

    Raises:
        ApiError: 400, the server would not register it; 409, the model store has another file with this name; 500, it
            cannot be written.
    """
    destination = folder / _file_name(file)
    # Checks need the suffix. Hidden files are not archives of a store.
    checked = destination.with_name(f".{os.urandom(4).hex()}.{destination.name}")
    try:
        checked.write_bytes(body)
        admission.admit(checked, ignored_checks)
        os.link(checked, destination)  # unlike a rename, this does not replace an existing file
    except FileExistsError:
        if not filecmp.cmp(checked, destination, shallow=False):
            message = (
                f"The model store has another {destination.name}. Give this archive another version, or its file "
                "another name."
            )
            raise ApiError(409, "ConflictStatusException", message) from None
    except TorchmarError as error:
        message = str(error).replace(str(checked), destination.name).replace(checked.name, destination.name)
        raise ApiError(400, "BadRequestException", message) from None
    except OSError as error:
        message = f"The archive cannot be written to the model store: {error.strerror or error}."
        raise ApiError(500, "InternalServerException", message) from None
    finally:
        checked.unlink(missing_ok=True)
    return destination.name


def _file_name(file: str) -> str:
    """Return the name of an archive's file, made safe; a file without a known suffix is taken for a zip."""
    name = re.sub(r"[^\w.+ -]", "_", file)[-_LONGEST_NAME:].lstrip(".") or "archive"
    return name if name.endswith((".mar", ".model", ".tar.gz")) else f"{name}.mar"


def _summary(path: Path, models: list[dict[str, str]]) -> dict[str, Any]:
    status = path.stat()
    document: dict[str, Any] = {
        "file": path.name,
        "size": None if path.is_dir() else status.st_size,
        "modified": round(status.st_mtime, 3),
        "registered": models,
        "name": "",
        "version": "",
        "description": "",
        "error": "",
    }
    try:
        with Archive(path) as archive:
            manifest = archive.manifest
            sections = {
                "name": manifest.name,
                "version": manifest.version,
                "description": manifest.model.description or "",
            }
            return {**document, **sections}
    except (TorchmarError, OSError) as error:
        return {**document, "error": str(error).replace(str(path), path.name)}


def _content(path: Path) -> dict[str, Any]:
    try:
        with Archive(path) as archive:
            model = archive.manifest.model
            members = archive.members
            return {
                "digest": archive.digest,
                "handler": model.handler,
                "weights": model.serialized_file or "",
                "config": archive.config_text,
                "samples": [_sample(*numbered) for numbered in enumerate(archive.samples[:_MOST_SAMPLES])],
                "member_count": len(members),
                "members": [{"name": member.name, "size": member.size} for member in members[:_MOST_MEMBERS]],
            }
    except (TorchmarError, OSError):
        return {
            **dict.fromkeys(("digest", "handler", "weights", "config"), ""),
            "samples": [],
            "member_count": 0,
            "members": [],
        }


def _sample(number: int, sample: Sample) -> dict[str, Any]:
    return {
        "number": number,
        "name": PurePosixPath(sample.input).name if sample.input else "JSON",
        "explain": sample.explain,
        "status": sample.status,
        "expect": sample.expect,
    }


def _findings(path: Path) -> list[dict[str, Any]]:
    try:
        findings = checks.check(path)
    except (TorchmarError, OSError) as error:
        return [{"code": "", "severity": "error", "place": "", "cause": str(error), "remedy": ""}]
    return [_finding(finding, path) for finding in findings]


def _finding(finding: Finding, path: Path) -> dict[str, Any]:
    return {
        "code": finding.code.name,
        "severity": finding.severity,
        "place": finding.place,
        "cause": finding.cause.replace(str(path), path.name),
        "remedy": finding.remedy,
    }
