"""Build the archive of a recipe, unless it is up to date."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torchmar.archive import build_cache
from torchmar.archive.built_archive import BuiltArchive, Note

if TYPE_CHECKING:
    from torchmar.archive.copying import MemberContent, Progress
    from torchmar.recipe import Recipe

RECIPE = "archive.yaml"  # as in torchmar.recipe, whose import takes too long for a build that is up to date

Begin = Callable[[str, int], "Progress"]
"""Called with the archive's name and its size in bytes before copying; returns the progress callback."""

Inspect = Callable[[Mapping[str, "MemberContent"]], "tuple[Note, ...]"]
"""Called with the members before they are packed; returns notes about them, or raises ArchiveError to reject them."""


def build(
    recipe_path: Path,
    store: Path,
    *,
    form: str = "mar",
    force: bool = False,
    begin: Begin = lambda name, total: lambda count: None,
    inspect: Inspect | None = None,
) -> BuiltArchive:
    """Pack a recipe into ``store/NAME-VERSION.mar``, unless the archive is up to date.

    The same inputs give the same bytes on every machine. The archive is written completely or not at all.

    Args:
        recipe_path: an ``archive.yaml``, or its folder.
        store: the folder for the archive; it is created if it does not exist.
        form: ``mar``, or ``folder`` for a folder that TorchServe registers without extracting it.
        force: whether to build even if no input has changed since the last build.
        begin: called with the archive's name and its size in bytes before copying; returns a function that is called
            with the number of bytes that were copied.
        inspect: called with the members before they are packed; returns notes about them, or raises ArchiveError. The
            notes of an archive that is up to date are kept.

    Returns:
        The archive, newly written or up to date.

    Raises:
        RecipeError: the recipe has problems, or names files that do not exist.
        ArchiveError: the archive cannot be written; the store is unchanged.

    Examples:
        >>> from pathlib import Path
        >>> import torchmar
        >>> built = torchmar.build(Path("archives/lengths"), Path("model_store"))
        >>> built.path.name, built.members
        ('lengths-1.0.mar', 5)
    """
    previous = None if force else up_to_date(recipe_path, store, form)
    if previous and (previous.notes is not None or not inspect):
        return previous
    file = _file(recipe_path)

    from torchmar import recipe
    from torchmar.archive import copying, packing
    from torchmar.archive.collecting import collect_members
    from torchmar.conversion import converting

    # The record of a file is taken before it is read, so that a change in between is noticed.
    before = build_cache.stats([file]) if file.exists() else {}
    content, folder = recipe.read(file)
    if isinstance(content.labels, str):
        before |= build_cache.stats([folder / content.labels])
    if content.weights:
        source = folder / content.weights
        before |= build_cache.stats([source, *(source.rglob("*") if source.is_dir() else ())])
    converted = converting.convert(content, folder)
    members = collect_members(content, folder, converted)
    sources = {path: source for path, source in members.items() if not converted or source not in converted.files}
    before = build_cache.stats(_inputs(content, folder, sources)) | before
    notes = inspect(members) if inspect else None
    total = sum(copying.size_of(source) for source in members.values())
    name = f"{content.name}-{content.version}"
    progress = begin(name, total)
    if form == "folder":
        packed = packing.pack_folder(members, store / name, progress)
    else:
        packed = packing.pack(members, store / f"{name}.mar", progress)
    packed = replace(packed, notes=notes, converted=converted.show() if converted else "")
    outputs = [packed.path, *packed.path.rglob("*")] if form == "folder" else [packed.path]
    facts: dict[str, object] = {
        "path": str(packed.path),
        "digest": packed.digest,
        "size": packed.size,
        "members": packed.members,
    }
    facts |= {"notes": notes, "converted": packed.converted}
    build_cache.store(file, store, form, before, outputs, facts)
    return packed


def up_to_date(recipe_path: Path, store: Path, form: str = "mar") -> BuiltArchive | None:
    """Return the archive of a recipe if a build would not change it; None if it must be built."""
    cached = build_cache.load(_file(recipe_path), store, form)
    if not cached:
        return None
    notes = cached.get("notes")
    loaded_notes = None if notes is None else tuple(Note(*note) for note in notes)
    return BuiltArchive(**{**cached, "path": Path(cached["path"]), "unchanged": True, "notes": loaded_notes})


def recipes_here() -> list[Path]:
    """Return the recipes of the project in the current folder, sorted."""
    return sorted(Path("archives").glob(f"*/{RECIPE}"))


def _file(recipe_path: Path) -> Path:
    return recipe_path / RECIPE if recipe_path.is_dir() else recipe_path


def _inputs(recipe: Recipe, folder: Path, members: Mapping[str, MemberContent]) -> list[Path]:
    """Return the files that a build reads, and the folders whose listings it depends on."""
    from torchmar.handler_names import carried_folder

    files = [source for source in members.values() if isinstance(source, Path)]
    roots = [carried_folder(), *(folder / name for name in recipe.files.values())]
    below = [path for root in roots if root.is_dir() for path in (root, *root.rglob("*"))]
    return [*files, *(path for path in below if path.is_dir() and path.name != "__pycache__")]
