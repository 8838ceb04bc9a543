"""An archive with the weights of a variant, for the user's own check."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from torchmar import manifest
from torchmar.archive import Archive, digests
from torchmar.archive.collecting import CONFIG_FILE
from torchmar.archive.packing import pack
from torchmar.optimized_section import FOLDER, KEY
from torchmar.optimizing.process.jobs import Made


def write(archive: Path, folder: Path, made: Made, files: Sequence[Path], *, name: str) -> Path:
    """Write an archive that serves the weights of a variant in the place of the original's.

    Args:
        archive: the original.
        folder: of the new file.
        made: the variant.
        files: of it; the first is loaded.
        name: of the file, without its suffix.

    Raises:
        ArchiveError: the original has flaws.
    """
    with tempfile.TemporaryDirectory(dir=folder) as scratch, Archive(archive) as source:
        model = source.manifest.model
        members = {member.name: source.source(member.name, Path(scratch)) for member in source.members}
        members.pop(digests.PATH, None)
        config = dict(source.config)
        options = {key: value for key, value in (config.get("handler") or {}).items() if key != KEY}
        changes: dict[str, Any] = {"config_file": model.config_file or CONFIG_FILE}
        if files:
            members |= {f"{FOLDER}/{file.name}": file for file in files}
            changes |= {"serialized_file": f"{FOLDER}/{files[0].name}", "model_file": None}
            config.pop("pt2", None)
            options = {key: value for key, value in options.items() if key not in _WEIGHTS_OPTIONS}
        config["handler"] = {**options, **made.options}
        members[str(changes["config_file"])] = yaml.safe_dump(config, sort_keys=False).encode()
        changed = source.manifest.model_copy(update={"model": model.model_copy(update=changes)})
        members[manifest.PATH] = changed.to_json()
        target = folder / f"{name}.mar"
        pack(members, target, lambda count: None)
        return target


# Of the original weights, see torchmar_handlers.weights.load.
_WEIGHTS_OPTIONS = ("dtype", "channels_last", "freeze", "optimize_for_inference", "compile", "providers")
