"""The network of the vit model: TorchServe fills it with the weights of vit.pt."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class VisionTransformer(nn.Module):
    """A small vision transformer: ``(n, 3, 32, 32)`` values from 0 to 1 -> ``(n, 10)`` scores.

    Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, with patches of 4x4 pixels. It is one class, since
    TorchServe loads the only one of a model file.
    """

    def __init__(self, side: int = 32, patch: int = 4, width: int = 32, heads: int = 4, layers: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.start = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, (side // patch) ** 2 + 1, width) * 0.02)
        self.projections = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3 * width)) for _ in range(layers)
        )
        # A module, so that attention rollout sees its outputs, the attention weights.
        self.softmax = nn.Softmax(-1)
        self.outputs = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.mixing = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(layers)
        )
        self.scores = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.start.expand(len(patches), -1, -1), patches], 1) + self.positions
        for project, output, mix in zip(self.projections, self.outputs, self.mixing, strict=True):
            count, length, width = tokens.shape
            parts = project(tokens).reshape(count, length, 3, self.heads, width // self.heads)
            queries, keys, values = parts.permute(2, 0, 3, 1, 4)
            weights = self.softmax(queries @ keys.transpose(2, 3) * (width // self.heads) ** -0.5)
            attended = (weights @ values).transpose(1, 2).reshape(count, length, width)
            tokens = tokens + functional.dropout(output(attended), 0.1, self.training)
            tokens = tokens + functional.dropout(mix(tokens), 0.1, self.training)
        scores: torch.Tensor = self.scores(tokens[:, 0])
        return scores
