"""Train the segments model on scenes of real handwritten digits; write segments.pt, a state dict.

The scenes are those of archives/scenes. Takes a minute on two cores; exits 1 if the mean IoU of the
eleven classes on scenes of held-out scans is below 0.75.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "scenes")]
from model import Segments  # noqa: E402
from scenes import Scene, draw, scans  # noqa: E402

SIDE = 112  # of the scenes that are learned
CLASSES = 11
HELD_OUT = 100  # scenes
WANTED = 0.75


def train(scenes: Sequence[Scene], epochs: int, seed: int) -> Segments:
    """Return the model."""
    torch.manual_seed(seed)
    model = Segments().to(memory_format=torch.channels_last)  # a third faster on a CPU
    images = torch.from_numpy(np.stack([scene.pixels for scene in scenes])).permute(0, 3, 1, 2)
    classes = torch.from_numpy(np.stack([scene.classes for scene in scenes]))
    weight = torch.ones(CLASSES)
    weight[0] = 0.3  # most of a scene is board
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-3)
    steps = epochs * -(-len(scenes) // 16)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=8e-3, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(scenes)).split(16):
            scores = model(images[rows].float() / 255)["out"]
            optimizer.zero_grad()
            nn.functional.cross_entropy(scores, classes[rows].long(), weight).backward()
            optimizer.step()
            schedule.step()
    return model.to(memory_format=torch.contiguous_format).eval()


def mean_iou(model: nn.Module, scenes: Sequence[Scene]) -> tuple[float, float]:
    """Return the mean of the classes' IoU, counted over the pixels of all scenes, and the part of pixels right."""
    counts = np.zeros((CLASSES, CLASSES), np.int64)
    for scene in scenes:
        with torch.inference_mode():
            scores = model(torch.from_numpy(scene.pixels).permute(2, 0, 1)[None].float() / 255)["out"]
        pairs = scene.classes.astype(np.int64) * CLASSES + scores[0].argmax(0).numpy()
        counts += np.bincount(pairs.ravel(), minlength=CLASSES**2).reshape(CLASSES, CLASSES)
    right = np.diag(counts)
    return float((right / (counts.sum(0) + counts.sum(1) - right)).mean()), float(right.sum() / counts.sum())


def main() -> int:
    """Train, measure, save."""
    parser = argparse.ArgumentParser(description="Train the segments model and write its state dict.")
    parser.add_argument("--output", type=Path, default=HERE / "segments.pt")
    parser.add_argument("--scenes", type=int, default=1000, help="how many are learned")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    started = time.perf_counter()
    learned, held_out = scans()
    model = train(
        [draw(learned, index, size=(SIDE, SIDE)) for index in range(options.scenes)], options.epochs, options.seed
    )
    measure, right = mean_iou(model, [draw(held_out, index) for index in range(HELD_OUT)])
    print(
        f"{options.scenes} scenes learned in {time.perf_counter() - started:.0f} s, {HELD_OUT} of held-out scans: "
        f"mean IoU {measure:.3f}, {right:.1%} of the pixels right"
    )
    if measure < WANTED:
        print(f"mean IoU is less than {WANTED}: {options.output} is not written", file=sys.stderr)
        return 1
    part = options.output.with_name(f".{options.output.name}.part")
    torch.save(model.state_dict(), part)
    os.replace(part, options.output)
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
