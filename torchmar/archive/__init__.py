"""The archive: pack a recipe into a ``.mar``; open, list, extract one.

::

    recipe --contents--> {path in the archive: bytes or file} --pack--> NAME-VERSION.mar --Archive--> members
"""

from torchmar.archive.contents import contents
from torchmar.archive.pack import Packed, pack
from torchmar.archive.read import Archive, Member

__all__ = ["Archive", "Member", "Packed", "build", "contents", "pack"]

from pathlib import Path


def build(recipe_path: Path, store: Path) -> Packed:
    """Pack the recipe at ``recipe_path`` into ``store/NAME-VERSION.mar``; return what was written.

    Raises:
        RecipeError: the recipe has problems, or names files that are not there.
        ArchiveError: the archive cannot be written; the store is as it was.
    """
    from torchmar import recipe

    read, folder = recipe.read(recipe_path)
    return pack(contents(read, folder), store / f"{read.name}-{read.version}.mar")
