"""The network of the clinic model: a branch for the numbers, a branch for the words, and a layer that joins them."""

from __future__ import annotations

import torch
from torch import nn


class Clinic(nn.Module):
    """Standardised measures ``(n, measures)`` and words ``(n, words)``, 1 or 0 each -> ``(n, 2)`` scores."""

    def __init__(self, measures: int, words: int, width: int = 12) -> None:
        super().__init__()
        self.numbers = nn.Sequential(nn.Dropout(0.1), nn.Linear(measures, width), nn.Tanh())
        self.words = nn.Sequential(nn.Dropout(0.3), nn.Linear(words, width, bias=False), nn.Tanh())
        self.joined = nn.Sequential(nn.Dropout(0.2), nn.Linear(2 * width, 2))

    def forward(self, image_data: torch.Tensor, text_data: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.joined(torch.cat([self.numbers(image_data), self.words(text_data)], 1))
        return scores
