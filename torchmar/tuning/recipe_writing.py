"""Write the result of a tuning into the recipe, and the evidence beside it, so that the archive contains both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchmar import recipe
from torchmar.atomic import write_text
from torchmar.errors import TorchmarError
from torchmar.tuning import evidence
from torchmar.tuning.completed import Tuning
from torchmar.tuning.space import Setting
from torchmar.yaml_editing import REMOVED, edit


def write(tuning: Tuning, path: Path) -> list[Path]:
    """Set the chosen setting in a recipe, and write the evidence beside it; return the written files.

    Args:
        tuning: tuning that has a chosen setting.
        path: an ``archive.yaml``, or its folder.

    Raises:
        TorchmarError: no setting meets the target, or a file cannot be edited.
        RecipeError: the recipe has problems.
    """
    best = tuning.result.best
    if best is None:
        raise TorchmarError("no setting keeps the target, so that there is nothing to write")
    content, folder = recipe.read(path)
    file = recipe.file_of(path)
    changes = settings_of(best.setting, tuning)
    paths: list[Path] = []
    text = file.read_text(encoding="utf-8")
    if isinstance(content.config, str):  # the configuration is a file that the recipe names
        config_file = folder / content.config
        config = edit(config_file.read_text(encoding="utf-8"), changes, str(config_file))
        paths.append(_write(config_file, config))
    else:
        text = edit(text, {("config", *keys): value for keys, value in changes.items()}, str(file))
    if content.files.get(evidence.FILE_NAME) != evidence.FILE_NAME:
        text = edit(text, {("files", evidence.FILE_NAME): evidence.FILE_NAME}, str(file))
    paths.append(_write(folder / evidence.FILE_NAME, evidence.text(tuning)))
    recipe.parse(text, str(file), folder)
    paths.append(_write(file, text))
    return paths


def settings_of(setting: Setting, tuning: Tuning) -> dict[Sequence[str], Any]:
    """Return the keys of ``model-config.yaml``, by their paths, that give a server this setting."""
    changes: dict[Sequence[str], Any] = {
        ("minWorkers",): setting.workers,
        ("maxWorkers",): setting.workers,
        ("batchSize",): setting.batch_size,
    }
    if setting.delay_ms:
        changes["maxBatchDelay",] = setting.delay_ms
    if setting.preprocess or setting.postprocess:
        stages = {
            "preprocess": setting.preprocess,
            "inference": setting.workers,
            "postprocess": setting.postprocess,
        }
        changes["stages",] = {name: workers for name, workers in stages.items() if workers}
    elif tuning.had_stages:
        changes["stages",] = REMOVED
    if tuning.engine == "ray":
        changes["torchmar", "replica", "cpus"] = setting.threads
        if tuning.had_threads:
            changes["handler", "threads"] = setting.threads
    elif tuning.space.choose_threads:
        share = max(1, tuning.space.cores // setting.workers)
        # The default of the handler needs no option, and adapts to the cores of another machine.
        needs_option = setting.threads != share or bool(setting.preprocess or setting.postprocess)
        if needs_option or tuning.had_threads:
            changes["handler", "threads"] = setting.threads
    if tuning.space.gpus:
        changes["deviceType",] = "gpu" if setting.gpu else "cpu"
    return changes


def _write(file: Path, text: str) -> Path:
    write_text(text, file)
    return file
