"""Archives whose weights are downloaded, and are missing on a machine without a network."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.paths import ROOT
from torchmar import archive, recipe


def build(name: str, store: Path) -> Path:
    """Build an archive of archives/; skip the test if its weights could not be downloaded."""
    folder = ROOT / "archives" / name
    weights = recipe.parse((folder / recipe.FILE_NAME).read_text()).weights
    if weights and not (folder / weights).is_file():
        pytest.skip(f"{name} has no weights: scripts/train {name} downloads them")
    return archive.build(folder, store).path
