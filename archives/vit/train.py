"""Train the vit model, a small vision transformer, on scikit-learn's bundled handwritten digits; write vit.pt.

1,797 scans (Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI 1998). They were bitmaps of 32x32
pixels, of which the bundled files have the number of black ones in each block of 4x4; here these 8x8 numbers are
enlarged to 32x32 pixels of RGB. A quarter of the scans is held out. Takes a minute on one core; exits 1 if fewer than
96 % of the held-out digits are right.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from model import VisionTransformer  # noqa: E402

SIDE = 32
WANTED = 0.96


def enlarge(scan: np.ndarray) -> Image.Image:
    """Return an 8x8 scan with values from 0 to 16 as a 32x32 image in RGB."""
    grey = np.round(scan.reshape(8, 8) * (255 / 16)).astype(np.uint8)
    return Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB")


def tensor(images: list[Image.Image]) -> torch.Tensor:
    """Return images as the handler passes them to the model."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).float() / 255


def distorted(images: torch.Tensor) -> torch.Tensor:
    """Return images, each turned, enlarged and shifted a little: so few digits show too few ways to write."""
    count = len(images)
    angles, scales = (torch.rand(2, count) * 2 - 1) * torch.tensor([[0.2], [0.12]])
    shifts = (torch.rand(count, 2, 1) * 2 - 1) * 0.15
    turned = torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], 1).reshape(count, 2, 2)
    grid = nn.functional.affine_grid(
        torch.cat([turned * (1 + scales)[:, None, None], shifts], 2), list(images.shape), align_corners=False
    )
    return nn.functional.grid_sample(images, grid, align_corners=False)


def train(images: torch.Tensor, labels: torch.Tensor, epochs: int, seed: int) -> VisionTransformer:
    """Return the model, trained with distorted copies of the images."""
    torch.manual_seed(seed)
    model = VisionTransformer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * -(-len(images) // 64))
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            loss = nn.functional.cross_entropy(model(distorted(images[rows])), labels[rows], label_smoothing=0.02)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def main() -> int:
    """Train, measure, export."""
    parser = argparse.ArgumentParser(description="Train the vit model and write its weights.")
    parser.add_argument("--output", type=Path, default=HERE / "vit.pt")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # so that the weights do not depend on the number of cores

    data = load_digits()
    images = tensor([enlarge(scan) for scan in data.data])
    labels = torch.from_numpy(data.target)
    # The split of archives/digits, whose samples are held out here, too.
    learned, held_out = train_test_split(np.arange(len(images)), test_size=0.25, random_state=0, stratify=data.target)
    model = train(images[learned], labels[learned], options.epochs, options.seed)
    with torch.inference_mode():
        right = model(images[held_out]).argmax(1) == labels[held_out]
    accuracy = right.float().mean().item()
    print(f"{len(learned)} digits learned, {len(held_out)} held out: {accuracy:.1%} of those right")
    if accuracy < WANTED:
        print(f"less than {WANTED:.0%}: {options.output} is not written", file=sys.stderr)
        return 1

    part = options.output.with_name(f".{options.output.name}.part")
    torch.save(model.state_dict(), part)
    os.replace(part, options.output)
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
