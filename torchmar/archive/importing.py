"""Importing an archive as a recipe with its files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from torchmar import handler_names, manifest, recipe
from torchmar.archive import collecting, digests, runtime
from torchmar.archive.collecting import LABELS_FILE, SAMPLES_FILE
from torchmar.archive.read import Archive
from torchmar.atomic import temporary_path
from torchmar.errors import ArchiveError

HEADER = "# Made of {archive} by torchmar import.\n"


def import_archive(archive: Path, folder: Path) -> tuple[Path, list[str]]:
    """Write the recipe of an archive and its files to ``folder/NAME``.

    An archive that is built from this recipe has the same members, byte for byte, except for ``createdOn`` and
    ``archiverVersion`` in the manifest, and the list of digests.

    Args:
        archive: a ``.mar``, a ``.tar.gz`` or a folder.
        folder: parent folder for the recipe's folder, usually ``archives``.

    Returns:
        The recipe's folder, and a sentence for each part of the manifest that a recipe cannot contain.

    Raises:
        ArchiveError: the archive has flaws, or the recipe's folder exists.
        RecipeError: a recipe cannot express the archive.

    Examples:
        >>> from pathlib import Path
        >>> import torchmar
        >>> built = torchmar.build(Path("archives/lengths"), Path("model_store"))
        >>> folder, omitted = torchmar.import_archive(built.path, Path("imported"))
        >>> sorted(file.name for file in folder.iterdir())
        ['archive.yaml', 'handler.py', 'model-config.yaml']
    """
    with Archive(archive) as source:
        target = folder / source.manifest.name
        if target.exists():
            raise ArchiveError(f"{target} exists already", hint="remove it, or name another folder with --to")
        part = temporary_path(target)
        try:
            source.extract(part)
            document = _recipe(source, part)
            shutil.rmtree(part / "MAR-INF")
            text = HEADER.format(archive=archive.name) + yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
            recipe.parse(text, f"the recipe of {archive}", part)
            (part / recipe.FILE_NAME).write_text(text, encoding="utf-8")
            part.rename(target)
        except OSError as error:
            raise ArchiveError(f"{target} cannot be written: {error.strerror}") from None
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return target, _lost(source.manifest)


def _recipe(source: Archive, folder: Path) -> dict[str, Any]:
    model = source.manifest.model
    module, _, function = model.handler.partition(":")
    stem = module.removesuffix(".py")
    own_handler = f"{stem}.py:{function}" if function else f"{stem}.py"
    handler = own_handler if f"{stem}.py" in source else model.handler
    document: dict[str, Any] = {"name": source.manifest.name, "version": source.manifest.version}
    document |= {"description": model.description, "handler": handler}
    document |= {"weights": model.serialized_file, "model_file": model.model_file}
    declared = source.runtime
    requirements = None if declared and declared.requirements == model.requirements_file else model.requirements_file
    document |= {"labels": LABELS_FILE if _labels(source) else None, "requirements": requirements}
    document |= {"config": model.config_file}
    samples = [sample.document() for sample in source.samples]
    listed_members = {manifest.PATH, digests.PATH, SAMPLES_FILE, *filter(None, document.values())}
    if declared:
        document["runtime"] = declared.document()
        wheels = f"{declared.wheels}/" if declared.wheels else None
        listed_members |= {runtime.FILE, declared.requirements}
        listed_members |= {member.name for member in source.members if wheels and member.name.startswith(wheels)}
    listed_members |= {f"{stem}.py", *(sample.get("input") for sample in samples)}
    listed_members |= _same_handlers(source, folder)
    document["files"] = {member.name: member.name for member in source.members if member.name not in listed_members}
    document["samples"] = samples
    for name in [member.name for member in source.members]:
        if name == recipe.FILE_NAME:
            raise ArchiveError(f"{source.path} has a file called {name} of its own; a recipe has that name")
        if name.startswith("MAR-INF/") and name not in listed_members:
            raise ArchiveError(f"{source.path} has {name}, which no recipe can name")
    return {key: value for key, value in document.items() if value}


def _labels(source: Archive) -> bool:
    # Other JSON under this name is a normal file.
    try:
        return LABELS_FILE in source and isinstance(json.loads(source.read(LABELS_FILE)), dict)
    except (ValueError, RecursionError):
        return False


def _same_handlers(source: Archive, folder: Path) -> set[str]:
    """Return the members that a build adds by itself, if they are the same; remove their files."""
    current_files = {path: file.read_bytes() for path, file in collecting.carried().items() if isinstance(file, Path)}
    prefix = f"{handler_names.CARRIED_PACKAGE}/"
    carried = {member.name for member in source.members if member.name.startswith(prefix)}
    if carried != set(current_files) or any(source.read(path) != current_files[path] for path in current_files):
        return set()
    shutil.rmtree(folder / handler_names.CARRIED_PACKAGE)
    return set(current_files)


def _lost(original: manifest.Manifest) -> list[str]:
    extra = {**(original.model_extra or {}), **(original.model.model_extra or {})}
    lost = [f"{key}: {value}" for key, value in extra.items()]
    lost += [f"runtime: {original.runtime}"] if original.runtime not in ("python", "python3") else []
    lost += [f"{key}: {value}" for key in ("envelope", "extensions") if (value := getattr(original.model, key))]
    return lost
