"""Environments that lack some packages."""

from __future__ import annotations

import sys
import venv
from pathlib import Path


def environment_without(folder: Path, names: tuple[str, ...]) -> Path:
    """Make an environment with all packages of this one except those in ``names``; return its Python."""
    venv.create(folder)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    places = [Path(path) for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    for place in reversed(places):
        for entry in place.iterdir():
            # Links, not a .pth: packages installed in editable mode must not be included.
            left_out = entry.name.startswith(names) or entry.suffix == ".pth" or entry.name == "__pycache__"
            link = site_packages / entry.name
            if not left_out and not link.is_symlink():
                link.symlink_to(entry)
    return folder / "bin" / "python"
