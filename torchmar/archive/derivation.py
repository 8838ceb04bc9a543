"""Deriving an archive from another: a new version, configuration or handler for the same weights."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from torchmar import handler_names, manifest, recipe, server_config
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
    folders: Mapping[str, Path] | None = None,
    begin: Begin = lambda name, total: lambda count: None,
) -> BuiltArchive:
    """Write a new version of an archive with another configuration or handler.

    Uncompressed members keep their digest and are copied without a new hash; members of a deflated archive are
    read once.

    Args:
        archive: the source: a ``.mar``, a ``.tar.gz`` or a folder.
        store: the folder for the new archive, ``NAME-VERSION.mar``.
        version: the version of the new archive.
        config: keys of ``model-config.yaml`` to set; a value of None removes the key.
        config_file: a file that replaces the whole ``model-config.yaml``; ``config`` is applied to it.
        handler: handler, in place of that of the source, as in a recipe: a Python file, a handler of torchmar or
            one of TorchServe.
        folders: folders by path in the archive; their files replace those below the path.
        begin: progress callback, as in `build`.

    Returns:
        The new archive.

    Raises:
        ArchiveError: the source has flaws, the version is that of the source or not valid, or the new
            configuration is wrong.

    Examples:
        >>> from pathlib import Path
        >>> import torchmar
        >>> store = Path("model_store")
        >>> built = torchmar.build(Path("archives/lengths"), store)
        >>> torchmar.derive(built.path, store, version="1.1", config={"batchSize": 16}).path.name
        'lengths-1.1.mar'
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
            file_name = str(config_file or archive)
            members[changes["config_file"]] = _merged(base, config, file_name) if config else base
        if handler:
            members.pop(f"{model.handler.partition(':')[0].removesuffix('.py')}.py", None)
            handler_files = _handler(str(handler))
            changes["handler"] = next(iter(handler_files), str(handler))
            members |= handler_files
            if collecting.carries(str(handler), handler_files):
                package = f"{handler_names.CARRIED_PACKAGE}/"
                members = {path: content for path, content in members.items() if not path.startswith(package)}
                members |= collecting.carried()
        for path, folder in (folders or {}).items():
            members = {name: content for name, content in members.items() if not name.startswith(f"{path}/")}
            members |= {f"{path}/{relative}": file for relative, file in collecting.files_below(folder)}
        changed_manifest = source.manifest.model_copy(update={"model": model.model_copy(update=changes)})
        members[manifest.PATH] = changed_manifest.to_json()
        name = f"{changed_manifest.name}-{version}"
        destination = store / f"{name}.mar"
        if destination.resolve() == archive.resolve():
            raise ArchiveError(f"{destination} is the archive to derive from", hint="write to another --store")
        return pack(members, destination, begin(name, sum(map(size_of, members.values()))))


def _handler(handler: str) -> dict[str, MemberContent]:
    """Return the member for a handler's file; empty for a module that needs no file."""
    if problem := handler_names.handler_problem(handler, Path()):
        raise ArchiveError(problem[0], hint=problem[1])
    return {Path(handler).name: Path(handler)} if handler.endswith(".py") else {}


def _version(version: str) -> str:
    try:
        recipe.Recipe(name="x", version=version, handler="x")
    except ValidationError:
        raise ArchiveError(f"the version {version!r} cannot stand in a URL") from None
    return version


def _merged(base: bytes, changes: Mapping[str, Any], file_name: str) -> bytes:
    try:
        config = yaml.safe_load(base) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ArchiveError(f"{file_name}: the configuration is not YAML: {error}") from None
    if not isinstance(config, dict):
        raise ArchiveError(f"{file_name}: the configuration is no mapping")
    merged = {key: value for key, value in {**config, **changes}.items() if value is not None}
    # Only the new keys are checked; the rest of the source's configuration is not changed.
    pair = ("minWorkers", "maxWorkers")
    judged = {key: merged[key] for key in (*changes, *(pair if set(pair) & set(changes) else ())) if key in merged}
    try:
        server_config.ServerConfig.model_validate(judged)
    except ValidationError as error:
        raise ArchiveError("; ".join(recipe.config_problems(error))) from None
    return yaml.safe_dump(merged, sort_keys=False, allow_unicode=True).encode()


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ArchiveError(f"{file} cannot be read: {error.strerror}") from None
