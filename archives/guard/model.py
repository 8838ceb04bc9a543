"""The network of the guard model: TorchServe fills it with the weights of guard.safetensors."""

from __future__ import annotations

import torch
from torch import nn


class Guard(nn.Module):
    """Convolutions over bytes and their maximum over the text: ids and mask, ``(n, length)`` -> ``(n, 2)`` scores."""

    def __init__(self, vocabulary: int = 259, width: int = 16, channels: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=0)
        # The second half of the receptive field of 29 bytes sees every other byte: half the work.
        self.first = nn.Conv1d(width, channels, 5, stride=2, padding=2)
        self.second = nn.Conv1d(channels, channels, 5, padding=2)
        self.third = nn.Conv1d(channels, channels, 3, padding=2, dilation=2)
        self.dropout = nn.Dropout(0.2)
        self.scores = nn.Linear(channels, 2)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        # Padding is zero before every convolution, so that a text's scores do not depend on its batch.
        real = mask[:, None].to(self.first.weight.dtype)
        found = self.first(self.embedding(ids).transpose(1, 2) * real)
        real = real[:, :, ::2]
        found = torch.relu(found) * real
        found = torch.relu(self.second(found)) * real
        found = torch.relu(self.third(found)) * real
        scores: torch.Tensor = self.scores(self.dropout(found.amax(2)))
        return scores
