"""Models saved by TensorFlow, with its answers; ``tests/oracles/tensorflow_models.py`` makes the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent


def answers() -> dict[str, np.ndarray]:
    """Return ``images`` and the answers of each model, by the names in the script."""
    with np.load(FOLDER / "answers.npz") as file:
        return {name: file[name] for name in file.files}
