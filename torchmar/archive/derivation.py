"""Derive an archive from another: a new version, configuration or handler around the same weights."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from torchmar import manifest, recipe
from torchmar.archive import collecting, digests
from torchmar.archive.built_archive import BuiltArchive
from torchmar.archive.collecting import CONFIG_FILE
from torchmar.archive.copying import MemberContent, size_of
from torchmar.archive.packing import pack
from torchmar.archive.read import Archive
from torchmar.errors import ArchiveError

if TYPE_CHECKING:
    from torchmar.archive.building import Begin


def derive(
    archive: Path,
    store: Path,
    *,
    version: str,
    config: Mapping[str, Any] | None = None,
    config_file: Path | None = None,
    handler: str | Path | None = None,
    begin: Begin = lambda name, total: lambda count: None,
) -> BuiltArchive:
    """Write ``store/NAME-VERSION.mar`` with the content of ``archive``, changed as asked.

    Members that stand in the source as they are keep their digest and are copied without being
    read again; those of deflated archives are read once.

    Args:
        archive: the source, of any form.
        store: where the new archive goes.
        version: of the new archive.
        config: keys of the server configuration to set; a value of None removes the key.
        config_file: a whole configuration, in place of the source's.
        handler: in place of the source's: a Python file, one of torchmar's handlers or one of TorchServe's,
            as in a recipe.
        begin: for progress.

    Raises:
        ArchiveError: the source has flaws, the version is its own or none that TorchServe
            takes, or the configuration that would come out is wrong.
    """
    with tempfile.TemporaryDirectory(prefix="torchmar-derive-") as scratch, Archive(archive) as source:
        if version == source.manifest.version:
            raise ArchiveError(f"{archive} is version {version} already", hint="give the new archive another --version")
        model = source.manifest.model
        changes: dict[str, Any] = {"model_version": _version(version)}
        members = {member.name: source.source(member.name, Path(scratch)) for member in source.members}
        members.pop(digests.PATH, None)
        if config_file or config:
            changes["config_file"] = model.config_file or CONFIG_FILE
            base = _read(config_file) if config_file else source.config_text.encode()
            where = str(config_file or archive)
            members[changes["config_file"]] = _merged(base, config, where) if config else base
        if handler:
            members.pop(f"{model.handler.partition(':')[0].removesuffix('.py')}.py", None)
            added = _handler(str(handler))
            changes["handler"] = next(iter(added), str(handler))
            members |= added
            if collecting.carries(str(handler), added):
                own = f"{recipe.CARRIED_PACKAGE}/"
                members = {path: kept for path, kept in members.items() if not path.startswith(own)}
                members |= collecting.carried()
        changed = source.manifest.model_copy(update={"model": model.model_copy(update=changes)})
        members[manifest.PATH] = changed.to_json()
        name = f"{changed.name}-{version}"
        destination = store / f"{name}.mar"
        if destination.resolve() == archive.resolve():
            raise ArchiveError(f"{destination} is the archive to derive from", hint="write to another --store")
        return pack(members, destination, begin(name, sum(map(size_of, members.values()))))


def _handler(handler: str) -> dict[str, MemberContent]:
    """Return the member that a handler is; none where it is a module that needs no file."""
    if problem := recipe.handler_problem(handler, Path()):
        raise ArchiveError(problem[0], hint=problem[1])
    return {Path(handler).name: Path(handler)} if handler.endswith(".py") else {}


def _version(version: str) -> str:
    try:
        recipe.Recipe(name="x", version=version, handler="x")
    except ValidationError:
        raise ArchiveError(f"the version {version!r} cannot stand in a URL") from None
    return version


def _merged(base: bytes, changes: Mapping[str, Any], where: str) -> bytes:
    try:
        config = yaml.safe_load(base) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ArchiveError(f"{where}: the configuration is not YAML: {error}") from None
    if not isinstance(config, dict):
        raise ArchiveError(f"{where}: the configuration is no mapping")
    merged = {key: value for key, value in {**config, **changes}.items() if value is not None}
    # Only what is set here is judged: what the source says otherwise is its own affair.
    pair = ("minWorkers", "maxWorkers")
    judged = {key: merged[key] for key in (*changes, *(pair if set(pair) & set(changes) else ())) if key in merged}
    try:
        recipe.ServerConfig.model_validate(judged)
    except ValidationError as error:
        raise ArchiveError("; ".join(recipe.config_problems(error))) from None
    return yaml.safe_dump(merged, sort_keys=False, allow_unicode=True).encode()


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ArchiveError(f"{file} cannot be read: {error.strerror}") from None
