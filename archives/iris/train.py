"""Train the iris model on scikit-learn's bundled iris flowers; write iris.pt2.

150 flowers of three species, four measures each (Fisher, "The use of multiple measurements in taxonomic
problems", Annals of Eugenics, 1936), a third of them held out. Standardisation and softmax are inside the
model: it takes centimetres and answers probabilities. It is saved by torch.export, for batches of any size.
Takes seconds on a CPU; exits 1 if fewer than 92 % of the held-out flowers come out right.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_iris
from sklearn.model_selection import train_test_split
from torch import nn

HERE = Path(__file__).parent
WANTED = 0.92


class Iris(nn.Module):
    """One hidden layer: (n, 4) measurements in cm -> (n, 3) probabilities."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.layers = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 3))

    def scores(self, measurements: torch.Tensor) -> torch.Tensor:
        """Return the scores of the species before softmax, (n, 3)."""
        scores: torch.Tensor = self.layers((measurements - self.mean) / self.std)
        return scores

    def forward(self, measurements: torch.Tensor) -> torch.Tensor:
        return self.scores(measurements).softmax(1)


def train(measurements: torch.Tensor, species: torch.Tensor, epochs: int, seed: int) -> Iris:
    """Return the model, trained on all rows at once."""
    torch.manual_seed(seed)
    model = Iris(measurements.mean(0), measurements.std(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1e-2)
    for _ in range(epochs):
        loss = nn.functional.cross_entropy(model.scores(measurements), species, label_smoothing=0.02)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def main() -> int:
    """Train, measure, export."""
    parser = argparse.ArgumentParser(description="Train the iris model and write it as an exported program.")
    parser.add_argument("--output", type=Path, default=HERE / "iris.pt2")
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    data = load_iris()
    rows = np.arange(len(data.data))
    learned, held_out = train_test_split(rows, test_size=1 / 3, random_state=0, stratify=data.target)
    measurements, species = torch.from_numpy(data.data).float(), torch.from_numpy(data.target)
    model = train(measurements[learned], species[learned], options.epochs, options.seed)
    with torch.inference_mode():
        probabilities = model(measurements[held_out])
    accuracy = (probabilities.argmax(1) == species[held_out]).float().mean().item()
    print(f"{len(learned)} flowers learned, {len(held_out)} held out: {accuracy:.1%} of those right")
    if accuracy < WANTED:
        print(f"less than {WANTED:.0%}: {options.output} is not written", file=sys.stderr)
        return 1

    # Two rows, not one: torch.export takes a size of one for a constant.
    batch = {"measurements": {0: torch.export.Dim("batch")}}
    program = torch.export.export(model, (measurements[:2],), dynamic_shapes=batch)
    # torch.export.save wants the suffix that it knows.
    part = options.output.with_name(f".part-{options.output.name}")
    torch.export.save(program, part)
    os.replace(part, options.output)
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
