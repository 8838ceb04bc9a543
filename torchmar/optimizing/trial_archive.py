"""Archives that serve the weights of a variant or the original weights, for the user's own check."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from torchmar import manifest, optimized_section
from torchmar.archive import Archive, digests
from torchmar.archive.collecting import CONFIG_FILE
from torchmar.archive.packing import pack
from torchmar.optimized_section import FOLDER
from torchmar.optimizing.process.jobs import Made


def original(archive: Path, folder: Path) -> Path:
    """Return an archive that serves the original weights: the archive, or a copy without its optimised weights.

    Args:
        archive: archive, with or without optimised weights.
        folder: folder for the copy.

    Raises:
        ArchiveError: the archive has flaws.
    """
    with Archive(archive) as source:
        model, config = source.manifest.model, optimized_section.without(source.config)
        if config == source.config:
            return archive
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            members = {member.name: source.source(member.name, Path(scratch)) for member in source.members}
            members.pop(digests.PATH, None)
            members = {name: content for name, content in members.items() if not name.startswith(f"{FOLDER}/")}
            members[str(model.config_file)] = yaml.safe_dump(config, sort_keys=False).encode()
            target = folder / "original.mar"
            pack(members, target)
            return target


def write(archive: Path, folder: Path, made: Made, files: Sequence[Path], *, name: str) -> Path:
    """Write an archive that serves the weights of a variant in place of the original weights.

    Args:
        archive: the original.
        folder: folder for the new file.
        made: the variant.
        files: files of the variant; the first is loaded.
        name: name of the file, without its suffix.

    Raises:
        ArchiveError: the original has flaws.
    """
    with tempfile.TemporaryDirectory(dir=folder) as scratch, Archive(archive) as source:
        model = source.manifest.model
        members = {member.name: source.source(member.name, Path(scratch)) for member in source.members}
        members.pop(digests.PATH, None)
        config = dict(source.config)
        options = dict(config.get("handler") or {})
        changes: dict[str, Any] = {"config_file": model.config_file or CONFIG_FILE}
        if files:
            members |= {f"{FOLDER}/{file.name}": file for file in files}
            changes |= {"serialized_file": f"{FOLDER}/{files[0].name}", "model_file": None}
            config.pop("pt2", None)
            options = {key: value for key, value in options.items() if key not in _WEIGHTS_OPTIONS}
        config["handler"] = {**options, **made.options}
        members[str(changes["config_file"])] = yaml.safe_dump(config, sort_keys=False).encode()
        changed_manifest = source.manifest.model_copy(update={"model": model.model_copy(update=changes)})
        members[manifest.PATH] = changed_manifest.to_json()
        target = folder / f"{name}.mar"
        pack(members, target, lambda count: None)
        return target


# Keys for the original weights, see torchmar_handlers.weights.load.
_WEIGHTS_OPTIONS = ("dtype", "channels_last", "freeze", "optimize_for_inference", "compile", "providers")
