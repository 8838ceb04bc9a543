"""Train the scenes model, an object detector, on scenes of real handwritten digits; write scenes.pt.

A small network of centre points (Zhou, Wang and Kraehenbuehl, "Objects as Points", 2019) with the
contract of torchvision's detectors. Takes a minute on two cores; exits 1 if the F1 of the boxes on
scenes of held-out scans (IoU of at least 0.5, the right digit, a score of at least 0.5) is below 0.90.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scenes import Scene, draw, scans
from torch import nn

HERE = Path(__file__).parent
SIDE = 112  # of the scenes that are learned
STRIDE = 4  # pixels of the image to one cell of the heat map
MULTIPLE = 16  # what the sides of an image are filled up to
HELD_OUT = 100  # scenes
WANTED = 0.90


class Layer(nn.Module):
    """A convolution whose output is zero outside of each image, as if the image were alone."""

    def __init__(self, taken: int, given: int, stride: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(taken, given, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(given)

    def forward(self, values: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(self.convolution(values))) * inside


class Detector(nn.Module):
    """Boxes around digits, as torchvision's detectors give them.

    ``forward`` takes a list of images, ``(3, height, width)`` with values from 0 to 1, of any sizes,
    and returns for each a dictionary: ``boxes`` ``(k, 4)`` as ``x1 y1 x2 y2`` in pixels, ``labels``
    ``(k,)`` and ``scores`` ``(k,)``, the highest first. An image's answer does not depend on the others.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.most = 100  # boxes of an image
        self.least = 0.05  # score of a box
        self.down1, self.down2 = Layer(3, 16, 2), Layer(16, 32, 2)
        self.level4 = Layer(32, 32)
        self.down3, self.level8 = Layer(32, 64, 2), Layer(64, 64)
        self.down4, self.level16 = Layer(64, 96, 2), Layer(96, 96)
        self.up8, self.up4 = Layer(96 + 64, 64), Layer(64 + 32, 48)
        self.heat, self.shape = nn.Conv2d(48, classes, 1), nn.Conv2d(48, 4, 1)
        assert self.heat.bias is not None
        nn.init.constant_(self.heat.bias, -4.0)  # centres are rare

    def maps(self, images: torch.Tensor, inside: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits of centres ``(n, classes, h, w)`` and their boxes' shapes ``(n, 4, h, w)``.

        Shapes are x and y of the centre within its cell, and the logarithms of width and height in cells.
        ``inside`` is 1 where an image is and 0 where it is filled up, ``(n, 1, height, width)``.
        """
        in2, in4 = inside[:, :, ::2, ::2], inside[:, :, ::4, ::4]
        in8, in16 = inside[:, :, ::8, ::8], inside[:, :, ::16, ::16]
        at4 = self.level4(self.down2(self.down1((images - 0.3) * 3 * inside, in2), in4), in4)
        at8 = self.level8(self.down3(at4, in8), in8)
        at16 = self.level16(self.down4(at8, in16), in16)
        at8 = self.up8(torch.cat([at8, nn.functional.interpolate(at16, scale_factor=2.0)], 1), in8)
        at4 = self.up4(torch.cat([at4, nn.functional.interpolate(at8, scale_factor=2.0)], 1), in4)
        return self.heat(at4), self.shape(at4)

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        high, wide = 0, 0
        for image in images:
            high, wide = max(high, self.filled(image.size(1))), max(wide, self.filled(image.size(2)))
        batch = images[0].new_zeros((len(images), 3, high, wide))
        inside = images[0].new_zeros((len(images), 1, high, wide))
        for index, image in enumerate(images):
            batch[index, :, : image.size(1), : image.size(2)] = image
            # An image alone is filled up to a multiple, too.
            inside[index, :, : self.filled(image.size(1)), : self.filled(image.size(2))] = 1
        logits, shapes = self.maps(batch, inside)
        found: list[dict[str, torch.Tensor]] = []
        for index, image in enumerate(images):
            rows, columns = self.filled(image.size(1)) // 4, self.filled(image.size(2)) // 4
            found.append(
                self.boxes(
                    logits[index, :, :rows, :columns].sigmoid(),
                    shapes[index, :, :rows, :columns],
                    image.size(1),
                    image.size(2),
                )
            )
        return found

    def filled(self, side: int) -> int:
        """Return the multiple of 16 that a side is filled up to."""
        return (side + 15) // 16 * 16

    def boxes(self, heat: torch.Tensor, shape: torch.Tensor, height: int, width: int) -> dict[str, torch.Tensor]:
        """Return what an image's maps say, cut at its edges."""
        columns = heat.size(2)
        # One object has one peak, whatever its class.
        best, labels = heat.max(0)
        peaks = nn.functional.max_pool2d(best[None], 3, 1, 1)[0]
        scores = torch.where(best == peaks, best, torch.zeros_like(best)).flatten()
        scores, places = scores.topk(min(self.most, scores.size(0)))
        places = places[scores >= self.least]
        scores = scores[scores >= self.least]
        shapes = shape.flatten(1)[:, places]
        x, y = (places % columns + shapes[0]) * 4, (places // columns + shapes[1]) * 4
        # Limits of what exp() may make of noise.
        sides = shapes[2:].clamp(-4, 8).exp() * 2
        corners = torch.stack([x - sides[0], y - sides[1], x + sides[0], y + sides[1]], 1)
        limits = torch.tensor([width, height, width, height], device=corners.device, dtype=corners.dtype)
        corners = torch.minimum(corners.clamp(min=0), limits)
        return {"boxes": corners, "labels": labels.flatten()[places], "scores": scores}


def targets(scenes: Sequence[Scene], side: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what the maps of square scenes should be: heat ``(n, 10, h, w)``, shapes and where they count."""
    cells = side // STRIDE
    heat = np.zeros((len(scenes), 10, cells, cells), np.float32)
    shape = np.zeros((len(scenes), 4, cells, cells), np.float32)
    counts = np.zeros((len(scenes), 1, cells, cells), np.float32)
    grid = np.arange(cells)
    for index, scene in enumerate(scenes):
        for (x1, y1, x2, y2), digit in zip(scene.boxes / STRIDE, scene.digits, strict=True):
            x, y = (x1 + x2) / 2, (y1 + y2) / 2
            column, row = int(x), int(y)
            # A Gaussian, narrower than a digit: cells beside a centre are forgiven a high value.
            spread = ((grid[None] - column) / ((x2 - x1) / 6 + 0.3)) ** 2 + (
                (grid[:, None] - row) / ((y2 - y1) / 6 + 0.3)
            ) ** 2
            heat[index, digit] = np.maximum(heat[index, digit], np.exp(-spread / 2))
            near = (abs(grid[None] - column) <= 1) & (abs(grid[:, None] - row) <= 1)
            shape[index][:, near] = np.stack(
                np.broadcast_arrays(x - grid[None], y - grid[:, None], np.log(x2 - x1), np.log(y2 - y1))
            )[:, near]
            counts[index, 0][near] = 1
    return torch.from_numpy(heat), torch.from_numpy(shape), torch.from_numpy(counts)


def loss(logits: torch.Tensor, shapes: torch.Tensor, wanted: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return the focal loss of the centres (equation 1 of the paper) and the L1 loss of the shapes."""
    heat, shape, counts = wanted
    centres = (heat == 1).float()
    probability = logits.sigmoid()
    found = (1 - probability) ** 2 * nn.functional.logsigmoid(logits) * centres
    none = (1 - heat) ** 4 * probability**2 * nn.functional.logsigmoid(-logits) * (1 - centres)
    focal = -(found.sum() + none.sum()) / centres.sum().clamp(min=1)
    return focal + ((shapes - shape).abs() * counts).sum() / counts.sum().clamp(min=1)


def train(scenes: Sequence[Scene], epochs: int, seed: int) -> Detector:
    """Return the model."""
    torch.manual_seed(seed)
    model = Detector().to(memory_format=torch.channels_last)  # a third faster on a CPU
    images = torch.from_numpy(np.stack([scene.pixels for scene in scenes])).permute(0, 3, 1, 2)
    wanted = targets(scenes, SIDE)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-3)
    steps = epochs * -(-len(scenes) // 16)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    inside = torch.ones(16, 1, SIDE, SIDE)
    for _ in range(epochs):
        for rows in torch.randperm(len(scenes)).split(16):
            logits, shapes = model.maps(images[rows].float() / 255, inside[: len(rows)])
            optimizer.zero_grad()
            loss(logits, shapes, tuple(one[rows] for one in wanted)).backward()
            optimizer.step()
            schedule.step()
    return model.to(memory_format=torch.contiguous_format).eval()


def f1(model: nn.Module, scenes: Sequence[Scene]) -> tuple[float, float, float]:
    """Return precision, recall and F1 of the boxes with a score of at least 0.5."""
    right = given = there = 0
    for scene in scenes:
        with torch.inference_mode():
            (found,) = model([torch.from_numpy(scene.pixels).permute(2, 0, 1).float() / 255])
        kept = found["scores"] >= 0.5
        left = list(range(len(scene.boxes)))
        for box, label in zip(found["boxes"][kept].numpy(), found["labels"][kept].tolist(), strict=True):
            match = next((i for i in left if scene.digits[i] == label and iou(box, scene.boxes[i]) >= 0.5), None)
            if match is not None:
                left.remove(match)
                right += 1
        given, there = given + int(kept.sum()), there + len(scene.boxes)
    return right / max(1, given), right / there, 2 * right / (given + there)


def iou(box: np.ndarray, other: np.ndarray) -> float:
    """Return the area that two boxes share, as a part of the area of both."""
    wide, high = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    shared = max(0.0, float(wide)) * max(0.0, float(high))
    areas = sum(float(np.prod(one[2:] - one[:2])) for one in (box, other))
    return shared / (areas - shared)


def main() -> int:
    """Train, measure, export."""
    parser = argparse.ArgumentParser(description="Train the scenes model and write its TorchScript weights.")
    parser.add_argument("--output", type=Path, default=HERE / "scenes.pt")
    parser.add_argument("--scenes", type=int, default=1000, help="how many are learned")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    started = time.perf_counter()
    learned, held_out = scans()
    model = train(
        [draw(learned, index, size=(SIDE, SIDE)) for index in range(options.scenes)], options.epochs, options.seed
    )
    precision, recall, measure = f1(model, [draw(held_out, index) for index in range(HELD_OUT)])
    print(
        f"{options.scenes} scenes learned in {time.perf_counter() - started:.0f} s, {HELD_OUT} of held-out scans: "
        f"precision {precision:.1%}, recall {recall:.1%}, F1 {measure:.3f}"
    )
    if measure < WANTED:
        print(f"F1 is less than {WANTED}: {options.output} is not written", file=sys.stderr)
        return 1
    part = options.output.with_name(f".{options.output.name}.part")
    with warnings.catch_warnings():
        # torch calls TorchScript deprecated; it is what TorchServe loads without further code.
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(model), part)
    os.replace(part, options.output)
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
