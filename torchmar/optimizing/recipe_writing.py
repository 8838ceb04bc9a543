"""Write the chosen variant, with the report as evidence, into a recipe or a new version of an archive."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import yaml

from torchmar import archive as archives
from torchmar import handler_names, recipe
from torchmar.archive.built_archive import BuiltArchive
from torchmar.archive.collecting import carries
from torchmar.atomic import temporary_path, write_text
from torchmar.errors import TorchmarError
from torchmar.handler_names import CARRIED_PACKAGE
from torchmar.optimized_section import FOLDER, KEY, PROOF
from torchmar.optimizing import results
from torchmar.optimizing.results import Report
from torchmar.recipe import Recipe
from torchmar.yaml_editing import REMOVED, edit

if TYPE_CHECKING:
    from torchmar.archive.building import Begin

_PICTURE = "proof.svg"


def write(report: Report, files: Mapping[str, Path], path: Path, *, picture: str | None = None) -> list[Path]:
    """Put the chosen variant into a recipe, and its files and the report into the folder ``optimized`` beside it.

    The folder is replaced as a whole; the recipe is written after it.

    Args:
        report: report that has a chosen variant.
        files: files of the variant, by their paths in the archive, such as ``optimized/model.xml``.
        path: an ``archive.yaml``, or its folder.
        picture: the report as SVG; None: there is none.

    Returns:
        The written paths: the folder, the recipe, and the file of its configuration if it has one.

    Raises:
        TorchmarError: nothing was chosen, the handler does not read the section, or a file cannot be edited or written;
            no file has changed then.
        RecipeError: the recipe has problems.
    """
    section = section_of(report, files)
    content, folder = recipe.read(path)
    file = recipe.file_of(path)
    if any(name.startswith(f"{CARRIED_PACKAGE}/") for name in content.files):
        raise TorchmarError(
            f"{file} packs handlers of its own as {CARRIED_PACKAGE}/, which may not know the section {KEY}",
            hint="remove them from files: so that the build packs those of this torchmar",
        )
    _check_handler(content.handler, str(file), {content.handler: folder / content.handler.partition(":")[0]})
    texts = _edited(content, file, folder, section)
    with _Replacement(folder / FOLDER) as replacement:
        _fill(replacement.part, report, files, picture)
        replacement.replace()
        recipe.parse(texts[file], str(file), folder)
        for edited, text in texts.items():
            write_text(text, edited)
    return [folder / FOLDER, *texts]


def variant_of(path: Path) -> str | None:
    """Return the variant that an earlier optimisation has put into a recipe; None: there is none.

    Args:
        path: an ``archive.yaml``, or its folder.

    Raises:
        TorchmarError: the report of that optimisation cannot be read.
        RecipeError: the recipe has problems.
    """
    content, folder = recipe.read(path)
    configured = content.config
    text = (folder / configured).read_bytes() if isinstance(configured, str) else configured.to_yaml()
    config: Any = yaml.safe_load(text)
    options = config.get("handler") if isinstance(config, Mapping) else None
    if not isinstance(options, Mapping) or KEY not in options:
        return None
    chosen = results.read(folder / PROOF).chosen
    return chosen.variant if chosen else None


def remove(path: Path) -> list[Path]:
    """Remove the variant of an earlier optimisation from a recipe, and the folder ``optimized`` beside it.

    Args:
        path: an ``archive.yaml``, or its folder.

    Returns:
        The changed paths: the recipe, the file of its configuration if it has one, and the folder.

    Raises:
        TorchmarError: a file cannot be edited or written, or torchmar has not made the folder; no file has changed
            then.
        RecipeError: the recipe has problems.
    """
    content, folder = recipe.read(path)
    file = recipe.file_of(path)
    texts = _without(content, file, folder)
    _check_made(folder / FOLDER)
    recipe.parse(texts[file], str(file), folder)
    for edited, text in texts.items():
        write_text(text, edited)
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    return [*texts, folder / FOLDER]


def derive(
    report: Report,
    files: Mapping[str, Path],
    archive: Path,
    store: Path,
    *,
    version: str,
    picture: str | None = None,
    begin: Begin = lambda name, total: lambda count: None,
) -> BuiltArchive:
    """Write a new version of an archive with the chosen variant beside the original weights.

    Args:
        report: report that has a chosen variant.
        files: files of the variant, by their paths in the archive, such as ``optimized/model.xml``.
        archive: the original archive.
        store: folder for the new archive, ``NAME-VERSION.mar``.
        version: version of the new archive.
        picture: the report as SVG; None: there is none.
        begin: progress callback, as in `torchmar.build`.

    Raises:
        TorchmarError: nothing was chosen, or the handler does not read the section.
        ArchiveError: the archive has flaws, or the version is that of the source or not a valid one.
    """
    section = section_of(report, files)
    with archives.Archive(archive) as source:
        handler = source.manifest.model.handler
        carried = any(member.name.startswith(f"{CARRIED_PACKAGE}/") for member in source.members)
        config: Any = yaml.safe_load(source.config_text) or {}
    if not carried:
        _check_handler(handler, str(archive), {})
    options = config.get("handler") if isinstance(config, dict) else None
    with tempfile.TemporaryDirectory(prefix="torchmar-optimized-") as scratch:
        _fill(Path(scratch), report, files, picture)
        return archives.derive(
            archive,
            store,
            version=version,
            config={"handler": {**(options if isinstance(options, dict) else {}), KEY: section}},
            # Handlers that were packed by an older torchmar do not read the section.
            folders={FOLDER: Path(scratch), CARRIED_PACKAGE: handler_names.carried_folder()},
            begin=begin,
        )


def section_of(report: Report, files: Mapping[str, Path]) -> dict[str, Any]:
    """Return the section ``optimized`` for the chosen variant.

    Raises:
        TorchmarError: nothing was chosen.
        ValueError: the named weights are not among the files.
    """
    chosen = report.chosen
    if chosen is None:
        raise TorchmarError("the original weights stay: no variant is chosen, so that there is nothing to write")
    if (weights := chosen.options.get("weights", "")) and weights not in files:
        raise ValueError(f"{chosen.variant} names {weights} as its weights, and has {', '.join(files) or 'no file'}")
    return {**chosen.options, **({"needs": list(chosen.needs)} if chosen.needs else {})}


def _check_handler(handler: str, place: str, modules: Mapping[str, Path]) -> None:
    """Raise TorchmarError if a handler neither is torchmar's nor is built on it."""
    sources = {name: file for name, file in modules.items() if file.suffix == ".py"}
    if not carries(handler, sources):
        raise TorchmarError(
            f"{place}: the handler {handler} does not read the section {KEY}",
            hint=f"use one of torchmar's handlers ({CARRIED_PACKAGE}.image_classifier, ...), or extend one",
        )


def _edited(content: Recipe, file: Path, folder: Path, section: Mapping[str, Any]) -> dict[Path, str]:
    """Return the new texts of the recipe and of its configuration file."""
    text = file.read_text(encoding="utf-8")
    texts = {}
    if isinstance(content.config, str):  # the configuration is a file that the recipe names
        config_file = folder / content.config
        config = config_file.read_text(encoding="utf-8")
        texts[config_file] = edit(config, {("handler", KEY): dict(section)}, str(config_file))
    else:
        text = edit(text, {("config", "handler", KEY): dict(section)}, str(file))
    source = content.files.get(FOLDER, FOLDER)
    if source != FOLDER:
        raise TorchmarError(
            f"{file} has {source} as {FOLDER}/ in the archive, where the optimised weights have their place",
            hint="give it another path under files:",
        )
    if FOLDER not in content.files:
        text = edit(text, {("files", FOLDER): FOLDER}, str(file))
    for path in content.files:
        if path.startswith(f"{FOLDER}/"):  # a single file of an earlier variant, which may be missing
            text = edit(text, {("files", path): REMOVED}, str(file))
    return {**texts, file: text}


def _without(content: Recipe, file: Path, folder: Path) -> dict[Path, str]:
    """Return the texts of the recipe and of its configuration without the section and its files."""
    texts = {}
    text = file.read_text(encoding="utf-8")
    if isinstance(content.config, str):
        config_file = folder / content.config
        texts[config_file] = _removed(config_file.read_text(encoding="utf-8"), ("handler", KEY), config_file)
    else:
        text = _removed(text, ("config", "handler", KEY), file)
    for name in content.files:
        if name == FOLDER or name.startswith(f"{FOLDER}/"):
            text = _removed(text, ("files", name), file)
    return {**texts, file: text}


def _removed(text: str, path: Sequence[str], file: Path) -> str:
    """Return YAML without a key, and without the mappings that contained only this key."""
    mappings = [yaml.safe_load(text)]
    for key in path[:-1]:
        mappings.append(mappings[-1][key])
    depth = len(path)
    while depth > 1 and len(mappings[depth - 1]) == 1:
        depth -= 1
    return edit(text, {tuple(path[:depth]): REMOVED}, str(file))


def _fill(folder: Path, report: Report, files: Mapping[str, Path], picture: str | None) -> None:
    """Write the files of a variant and the report into the folder that becomes ``optimized/`` in the archive."""
    for path, file in files.items():
        target = folder / PurePosixPath(path).relative_to(FOLDER)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    (folder / PurePosixPath(PROOF).name).write_text(report.to_json(), encoding="utf-8")
    if picture is not None:
        (folder / _PICTURE).write_text(picture, encoding="utf-8")


def _check_made(folder: Path) -> None:
    """Raise TorchmarError if a folder exists and was not made by ``torchmar optimize``."""
    if folder.exists() and not (folder / PurePosixPath(PROOF).name).is_file():
        raise TorchmarError(f"{folder} exists, and torchmar optimize has not made it", hint="rename it, or remove it")


class _Replacement:
    """A folder that replaces another one when it is complete; after an error, the other one is restored.

    Args:
        destination: the folder, which need not exist.
    """

    def __init__(self, destination: Path) -> None:
        _check_made(destination)
        self.part, self._kept = temporary_path(destination), temporary_path(destination)
        self._destination = destination

    def __enter__(self) -> _Replacement:
        self.part.mkdir()
        return self

    def replace(self) -> None:
        """Put the new folder in place."""
        if self._destination.exists():
            self._destination.rename(self._kept)
        self.part.rename(self._destination)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is not None and not self.part.exists():
            shutil.rmtree(self._destination)
            if self._kept.exists():
                self._kept.rename(self._destination)
        for folder in (self.part, self._kept):
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise TorchmarError(f"{self._destination} cannot be written: {error.strerror}") from None
