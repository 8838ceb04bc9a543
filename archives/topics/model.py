"""The network of the topics model: TorchServe fills it with the weights of topics.safetensors."""

from __future__ import annotations

import torch
from torch import nn


class Topics(nn.Module):
    """Word pieces, each with a weight of its own, averaged: ``(n, length)`` ids and mask -> ``(n, 6)`` scores."""

    def __init__(self, vocabulary: int = 3000, width: int = 48, classes: int = 6) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=0)
        self.attention = nn.Linear(width, 1)
        self.dropout = nn.Dropout(0.4)
        self.scores = nn.Linear(width, classes)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        embedded = self.dropout(self.embedding(ids))
        weights = self.attention(embedded)[:, :, 0].masked_fill(mask == 0, -1e4).softmax(1)
        scores: torch.Tensor = self.scores((weights[:, :, None] * embedded).sum(1))
        return scores
