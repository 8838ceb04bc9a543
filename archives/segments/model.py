"""The segments model: a small U-Net, the one class of this file."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import interpolate, pad

MULTIPLE = 16  # what the sides of an image are filled up to


class Segments(nn.Module):
    """Scores of 11 classes for every pixel, as torchvision's segmentation models give them.

    ``(n, 3, height, width)`` values from 0 to 1, of any size -> ``{"out": (n, classes, height, width)}``.
    After Ronneberger, Fischer and Brox, "U-Net", MICCAI 2015, with a first step at half the resolution.
    """

    def __init__(self, classes: int = 11) -> None:
        super().__init__()

        def layer(taken: int, given: int, stride: int = 1) -> nn.Sequential:
            convolution = nn.Conv2d(taken, given, 3, stride, 1, bias=False)
            return nn.Sequential(convolution, nn.BatchNorm2d(given), nn.ReLU())

        self.at2 = layer(3, 24, 2)
        self.at4 = nn.Sequential(layer(24, 32, 2), layer(32, 32))
        self.at8 = nn.Sequential(layer(32, 64, 2), layer(64, 64))
        self.at16 = nn.Sequential(layer(64, 96, 2), layer(96, 96))
        self.up8, self.up4, self.up2 = layer(96 + 64, 64), layer(64 + 32, 48), layer(48 + 24, 32)
        self.last = nn.Conv2d(32, classes, 1)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        height, width = images.shape[2:]
        filled = pad((images - 0.3) * 3, (0, -width % MULTIPLE, 0, -height % MULTIPLE))
        two = self.at2(filled)
        four = self.at4(two)
        eight = self.at8(four)
        up = self.up8(torch.cat([eight, interpolate(self.at16(eight), scale_factor=2.0)], 1))
        up = self.up4(torch.cat([four, interpolate(up, scale_factor=2.0)], 1))
        up = self.up2(torch.cat([two, interpolate(up, scale_factor=2.0)], 1))
        scores = interpolate(self.last(up), scale_factor=2.0, mode="bilinear", align_corners=False)
        return {"out": scores[:, :, :height, :width]}
