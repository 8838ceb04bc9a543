"""Scenes: scans of real handwritten digits, written in chalk on boards of many sizes, with boxes and class maps.

The scans are scikit-learn's (Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits",
UCI 1998), learned and held out as in archives/digits. A scene is made of the seed alone, so that
it is the same everywhere. Run as a script, this writes the samples of scenes, segments and reader.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

ARCHIVES = Path(__file__).parent.parent
SMALLEST, LARGEST = 22, 60  # pixels of a digit's longer side
_INK = 0.4  # how much chalk of a pixel makes it part of the digit


@dataclass(frozen=True)
class Scene:
    """One scene.

    ``pixels`` are bytes, ``(height, width, 3)``; ``boxes`` ``x1 y1 x2 y2`` around the ink, ``(k, 4)``;
    ``digits`` what is in them, ``(k,)``; ``classes`` the map, ``(height, width)``: 0 is the board,
    1 to 10 are the digits 0 to 9.
    """

    pixels: np.ndarray
    boxes: np.ndarray
    digits: np.ndarray
    classes: np.ndarray


@dataclass(frozen=True)
class Scans:
    """8x8 grey values from 0 to 1, ``(n, 8, 8)``, and the digits that they are, ``(n,)``."""

    values: np.ndarray
    digits: np.ndarray


def scans() -> tuple[Scans, Scans]:
    """Return the scans that are learned and those that are held out, as in archives/digits."""
    data = load_digits()
    values = data.images / 16
    learned, held_out = train_test_split(np.arange(len(values)), test_size=0.25, random_state=0, stratify=data.target)
    return Scans(values[learned], data.target[learned]), Scans(values[held_out], data.target[held_out])


def draw(
    scans: Scans, seed: int, *, size: tuple[int, int] | None = None, digits: Sequence[int] | int | None = None
) -> Scene:
    """Return scene number ``seed``.

    Args:
        scans: what to write on the board.
        seed: decides all that is not given.
        size: width and height; 96 to 224 each unless given.
        digits: which, or how many; one to eight unless given. Those that find no free place are left out.
    """
    chance = np.random.default_rng(seed)
    width, height = size or (int(side) for side in chance.integers(96, 225, 2))
    wanted: Sequence[int] | int = int(chance.integers(1, 9)) if digits is None else digits
    rows = (
        chance.integers(0, len(scans.values), wanted)
        if isinstance(wanted, int | np.integer)
        else [chance.choice(np.flatnonzero(scans.digits == digit)) for digit in wanted]
    )
    board = _board(chance, width, height)
    classes = np.zeros((height, width), np.uint8)
    boxes: list[tuple[int, int, int, int]] = []
    found: list[int] = []
    for row in rows:
        ink = _written(scans.values[row], int(chance.integers(SMALLEST, LARGEST + 1)))
        tall, wide = ink.shape
        for _ in range(20):
            left, top = (int(chance.integers(0, max(1, room))) for room in (width - wide, height - tall))
            box = left, top, left + wide, top + tall
            if box[2] <= width and box[3] <= height and not any(_overlap(box, other) for other in boxes):
                break
        else:
            continue
        place = (slice(top, top + tall), slice(left, left + wide))
        chalk = chance.uniform(0.72, 1.0) * (1 - chance.uniform(0, 0.15, 3))
        strength = (ink * chance.uniform(0.8, 1.0))[:, :, None]
        board[place] = board[place] * (1 - strength) + chalk * strength
        classes[place][ink > _INK] = scans.digits[row] + 1
        boxes.append(box)
        found.append(int(scans.digits[row]))
    board += chance.normal(0, chance.uniform(0.005, 0.04), board.shape)
    pixels = (np.clip(board, 0, 1) * 255).round().astype(np.uint8)
    return Scene(pixels, np.array(boxes, np.float32).reshape(-1, 4), np.array(found, np.int64), classes)


def _board(chance: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Return a dark surface of a random colour with smears of several sizes, ``(height, width, 3)``."""
    board = np.ones((height, width, 3)) * chance.uniform(0.05, 0.3, 3)
    for grain in (6, 24, 96):
        coarse = chance.uniform(-1, 1, (height // grain + 2, width // grain + 2)).astype(np.float32)
        smear = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        board += np.asarray(smear)[:, :, None] * chance.uniform(0, 0.06)
    return np.clip(board, 0, 0.5)


def _written(scan: np.ndarray, longer: int) -> np.ndarray:
    """Return a scan, smoothly enlarged, as how much chalk each pixel has, cut out around the ink."""
    side = longer + 4
    ink = np.asarray(Image.fromarray(scan.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC))
    ink = np.clip(ink * 1.3, 0, 1)
    there = ink > _INK
    rows, columns = np.flatnonzero(there.any(1)), np.flatnonzero(there.any(0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _overlap(box: tuple[int, int, int, int], other: tuple[int, int, int, int], gap: int = 2) -> bool:
    return box[0] < other[2] + gap and other[0] < box[2] + gap and box[1] < other[3] + gap and other[1] < box[3] + gap


# Seed, size and digits of the samples; the seeds leave no digit out, and write none of them so that trainings differ.
_SAMPLES = {
    "one.png": (96, (120, 96), [7]),
    "two.png": (117, (160, 120), [2, 5]),
    "tall.png": (118, (100, 220), [3, 0, 9]),
    "many.png": (109, (320, 240), [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]),
    "none.png": (119, (128, 128), []),
}
_OF_ARCHIVES = {
    "scenes": ("one.png", "two.png", "tall.png", "many.png", "none.png"),
    "segments": ("one.png", "two.png", "none.png"),
    "reader": ("one.png", "tall.png", "none.png"),
}


def samples() -> dict[str, Scene]:
    """Return the scenes of the samples, made of scans that no model has seen."""
    _, held_out = scans()
    return {name: draw(held_out, seed, size=size, digits=digits) for name, (seed, size, digits) in _SAMPLES.items()}


def main() -> None:
    """Write the samples."""
    parser = argparse.ArgumentParser(description="Write the samples of archives/scenes, segments and reader.")
    parser.parse_args()
    for name, scene in samples().items():
        boxes = [box.astype(int).tolist() for box in scene.boxes]
        counts = {int(digit): int((scene.classes == digit + 1).sum()) for digit in scene.digits}
        print(name, dict(zip(scene.digits.tolist(), boxes, strict=True)), counts)
        for archive, names in _OF_ARCHIVES.items():
            if name in names:
                Image.fromarray(scene.pixels).save(ARCHIVES / archive / "samples" / name)


if __name__ == "__main__":
    main()
