"""The manifest, the configuration and the digest of an archive, read without running its code."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from torchmar import manifest
from torchmar.archive import Archive, digests, file_digest
from torchmar.checks.admission import admit
from torchmar.checks.finding import Code, matches
from torchmar.errors import ArchiveError, ManifestError
from torchmar.manifest import Manifest, Model
from torchmar.recipe import Runtime
from torchmar.server.telemetry import logs

Stamp = tuple[int, int, int, int]
"""Inode, size, and times of the last changes of a file: they differ after a change of its content."""

# Fields of the manifest's model, with their keys in the file.
_MODEL_FIELDS = {
    "model_name": "modelName",
    "model_version": "modelVersion",
    "model_file": "modelFile",
    "config_file": "configFile",
    "requirements_file": "requirementsFile",
    "handler": "handler",
    "envelope": "envelope",
}


@dataclass(frozen=True, kw_only=True)
class ArchiveMetadata:
    """The metadata of a local archive.

    Attributes:
        path: path of the file or folder.
        stamp: stamp of the file when it was read; None for a folder.
        manifest: manifest of the archive; its name and handler are empty if the archive has no manifest.
        config: content of its configuration file.
        runtime: environment that it requires; None: it requires none.
        key: identifier of the content: the archive's digest; for a folder, the digest of its path.
        ignored_checks: codes of the ignored checks.
    """

    path: Path
    stamp: Stamp | None
    manifest: Manifest
    config: Mapping[str, Any]
    runtime: Runtime | None
    key: str
    ignored_checks: tuple[str, ...]


def stamp(path: Path) -> Stamp | None:
    """Return the stamp of a file; None for a folder, which is used in place and may change."""
    if path.is_dir():
        return None
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def read(path: Path, ignored_checks: tuple[str, ...]) -> ArchiveMetadata:
    """Check an archive and read its metadata.

    Args:
        path: path of a file or folder.
        ignored_checks: codes of checks, or prefixes of codes, to ignore.

    Raises:
        ArchiveError, ManifestError: it is no archive, or the checks find an error.
    """
    stamp_before = stamp(path)  # so that a change during the reading results in another stamp later
    if path.is_dir() and not (path / "MAR-INF").is_dir():
        # A model in SageMaker's layout: the registration or the configuration names the handler.
        return ArchiveMetadata(
            path=path,
            stamp=None,
            manifest=_unchecked_manifest({}),
            config={},
            runtime=None,
            key=_folder_key(path),
            ignored_checks=ignored_checks,
        )
    with Archive(path) as archive:
        has_manifest = manifest.PATH in archive
        check_digests = not matches(Code.MAR108, ignored_checks)
        if has_manifest:
            for finding in admit(path, ignored_checks):
                if finding.works:
                    logs.SERVER.warning("%s %s!%s: %s", finding.code.name, path.name, finding.place, finding.cause)
        elif check_digests and (mismatched := archive.mismatched()):
            # The other checks need a manifest, without which the registration may name the handler.
            raise ArchiveError(f"{path}: {mismatched[0]} is not what {digests.PATH} lists")
        archive_manifest = _manifest(archive) if has_manifest else _unchecked_manifest({})
        try:
            config = _config(archive, archive_manifest.model.config_file)
        except ArchiveError as error:
            if not matches(Code.MAR501, ignored_checks):
                raise
            logs.SERVER.warning("%s is served without its configuration: %s", path.name, error.message)
            config = {}
        runtime = archive.runtime
        if stamp_before is None:
            key = _folder_key(path)
        elif check_digests and digests.PATH in archive:
            key = archive.digest
        else:
            # Without this comparison, the archive's own list of digests proves nothing.
            key = file_digest.of(path)
    return ArchiveMetadata(
        path=path,
        stamp=stamp_before,
        manifest=archive_manifest,
        config=config,
        runtime=runtime,
        key=key,
        ignored_checks=ignored_checks,
    )


def _folder_key(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()


def _manifest(archive: Archive) -> Manifest:
    text = archive.read(manifest.PATH)
    try:
        return manifest.parse(text)
    except ManifestError:
        # Reached only if the checks of the manifest are ignored. TorchServe also reads it without checks.
        with contextlib.suppress(ValueError, RecursionError):
            document = json.loads(text)
            if isinstance(document, dict):
                return _unchecked_manifest(document)
        raise


def _unchecked_manifest(document: Mapping[str, Any]) -> Manifest:
    """Return a manifest with the available values, of whatever type."""
    section = document.get("model")
    content = section if isinstance(section, dict) else {}
    values = {field: str(content[name]) for field, name in _MODEL_FIELDS.items() if content.get(name)}
    model = Model.model_construct(None, **{"model_name": "", "handler": "", **values})
    return Manifest.model_construct(None, model=model, runtime=str(document.get("runtime") or "python"))


def _config(archive: Archive, name: str | None) -> Mapping[str, Any]:
    if not name:
        return {}
    try:
        config = yaml.safe_load(archive.read(name))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ArchiveError(f"{archive.path}: {name} is not YAML: {error}") from None
    return config if isinstance(config, dict) else {}
