"""Train the digits model on scikit-learn's bundled handwritten digits; write digits.pt.

1,797 scans of 8x8 grey values (Alpaydin and Kaynak, "Optical Recognition of Handwritten
Digits", UCI 1998), enlarged to 32x32 as the samples are, a quarter of them held out.
Takes seconds on a CPU; exits 1 if fewer than 97 % of the held-out digits come out right.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

HERE = Path(__file__).parent
SIDE = 32
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WANTED = 0.97


class Digits(nn.Module):
    """Two convolutions and one linear layer: (n, 1, 32, 32) values from 0 to 1 -> (n, 10) scores."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(32 * 4 * 4, 10),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.layers(images)
        return scores


def enlarge(scan: np.ndarray) -> Image.Image:
    """Return an 8x8 scan with values from 0 to 16 as a grey 32x32 image."""
    grey = np.round(scan.reshape(8, 8) * (255 / 16)).astype(np.uint8)
    return Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def tensor(images: list[Image.Image]) -> torch.Tensor:
    """Return images as the handler hands them to the model."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).unsqueeze(1).float() / 255


def train(images: torch.Tensor, labels: torch.Tensor, epochs: int, seed: int) -> Digits:
    """Return the model, trained with shifted copies of the images."""
    torch.manual_seed(seed)
    model = Digits()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-3)
    steps = epochs * -(-len(images) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            dx, dy = (int(shift) for shift in torch.randint(-2, 3, (2,)))
            scores = model(images[rows].roll((dx, dy), (2, 3)))
            loss = nn.functional.cross_entropy(scores, labels[rows], label_smoothing=0.02)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def main() -> int:
    """Train, measure, export."""
    parser = argparse.ArgumentParser(description="Train the digits model and write its TorchScript weights.")
    parser.add_argument("--output", type=Path, default=HERE / "digits.pt")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", action="store_true", help="write the sample images anew as well")
    options = parser.parse_args()

    data = load_digits()
    images = [enlarge(scan) for scan in data.data]
    rows = np.arange(len(images))
    learned, held_out = train_test_split(rows, test_size=0.25, random_state=0, stratify=data.target)
    pixels, labels = tensor(images), torch.from_numpy(data.target)
    model = train(pixels[learned], labels[learned], options.epochs, options.seed)
    with torch.inference_mode():
        probabilities = model(pixels[held_out]).softmax(1)
    right = probabilities.argmax(1) == labels[held_out]
    accuracy = right.float().mean().item()
    print(f"{len(learned)} digits learned, {len(held_out)} held out: {accuracy:.1%} of those right")
    if accuracy < WANTED:
        print(f"less than {WANTED:.0%}: {options.output} is not written", file=sys.stderr)
        return 1

    if options.samples:
        for digit, name in enumerate(NAMES):
            # The median of the held-out scans of a digit by confidence: neither the easiest nor the hardest.
            of_digit = [int(row) for row in np.flatnonzero(data.target[held_out] == digit)]
            of_digit.sort(key=lambda row: float(probabilities[row, digit]))
            images[held_out[of_digit[len(of_digit) // 2]]].save(HERE / "samples" / f"{name}.png")
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
