"""Time converted Keras models, compared with the same nets written in torch, with the same weights.

Keras' MobileNetV2 (with random weights and statistics of batches) and a dense net are converted as `torchmar build`
does, and loaded as in a worker. The other side is the same net in torch: torchvision's MobileNetV2, with Keras'
padding, gets the weights layer by layer, and answers are compared before any time counts. Both are called in turn, in
one process with one thread. Times are CPU times, medians of the rounds; the ratio is the median of the rounds' ratios,
with the interval that contains it with a confidence of at least 95 % (by the ranks of the rounds' ratios).

    python benchmarks/conversion.py [--rounds 30] [--rows 1 8]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from harness.machine import processor
from harness.rounds import in_turn, interval
from torch import nn
from torch.nn import functional

from torchmar.cli.terminal import show_table, table
from torchmar.conversion import converting
from torchmar.recipe import Recipe
from torchmar_handlers.weights import exported

MODELS = """
import sys, keras, numpy
keras.utils.set_random_seed(1)
layers, generator = keras.layers, numpy.random.default_rng(1)
net = keras.applications.MobileNetV2(weights=None, classes=1000, classifier_activation=None)
dense = keras.Sequential([keras.Input((64,)), *(layers.Dense(256, "relu") for _ in range(4)), layers.Dense(10)])
for name, model in (("mobilenet", net), ("dense", dense)):
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([one + generator.uniform(0, 0.3, one.shape) for one in layer.get_weights()])
    model.save(f"{sys.argv[1]}/{name}.keras")
    numpy.savez(f"{sys.argv[1]}/{name}.npz", *[one for layer in model.layers for one in layer.get_weights()])
"""
WARM_UP = 5  # rounds that do not count
TOLERANCE = 1e-3  # share of the largest output: two implementations in float32, with 53 layers


class Padded(nn.Module):
    """Zeros at the right and the bottom, where Keras' MobileNetV2 has them before a stride of 2."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return images that are one pixel larger in each direction."""
        return functional.pad(images, (0, 1, 0, 1))


def mobilenet(weights: list[np.ndarray]) -> nn.Module:
    """Return torchvision's MobileNetV2 with Keras' weights, in their order."""
    from torchvision.models import mobilenet_v2

    model: nn.Module = mobilenet_v2(weights=None)
    values = iter(weights)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Conv2d):
            kernel = next(values)
            order = (2, 3, 0, 1) if layer.groups > 1 else (3, 2, 0, 1)
            layer.weight.data = torch.from_numpy(kernel.transpose(order).copy())
            if layer.stride[0] == 2:
                layer.padding = (0, 0)
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, nn.Sequential(Padded(), layer))
        elif isinstance(layer, nn.BatchNorm2d):
            layer.weight.data, layer.bias.data = (torch.from_numpy(next(values)) for _ in range(2))
            layer.running_mean, layer.running_var = (torch.from_numpy(next(values)) for _ in range(2))
            layer.eps = 1e-3
        elif isinstance(layer, nn.Linear):
            layer.weight.data, layer.bias.data = torch.from_numpy(next(values).T.copy()), torch.from_numpy(next(values))
    return model.eval()


def dense(weights: list[np.ndarray]) -> nn.Module:
    """Return the dense net in torch."""
    layers: list[nn.Module] = []
    for kernel, bias in zip(weights[::2], weights[1::2], strict=True):
        layer = nn.Linear(*kernel.shape)
        layer.weight.data, layer.bias.data = torch.from_numpy(kernel.T.copy()), torch.from_numpy(bias)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


NETS: dict[str, tuple[Callable[[list[np.ndarray]], nn.Module], str, tuple[int, ...], int]] = {
    "mobilenet": (mobilenet, "torchmar_handlers.image_classifier", (3, 224, 224), 1),
    "dense": (dense, "torchmar_handlers.tensors", (64,), 200),
}


def main() -> int:
    """Convert, compare, measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=30, help="counted calls of each side")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8], help="rows of a batch")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines: list[tuple[str, ...]] = []
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        folder = Path(name)
        environment = {**os.environ, "KERAS_BACKEND": "torch", "KERAS_HOME": name, "CUDA_VISIBLE_DEVICES": ""}
        subprocess.run([sys.executable, "-c", MODELS, name], check=True, env=environment)
        for net, (build, handler, shape, calls) in NETS.items():
            values = np.load(folder / f"{net}.npz")
            written = build([values[key] for key in values.files])
            made = Recipe(name=net, version="1", handler=handler, weights=f"{net}.keras")
            converted = converting.convert(made, folder)
            assert converted is not None
            program = exported.load(converted.file, torch.device("cpu"))
            for rows in options.rows:
                inputs = torch.rand(rows, *shape)
                expected, actual = written(inputs), program(inputs)
                difference = float((expected - actual).abs().max() / expected.abs().max())
                assert difference < TOLERANCE, f"{net}: the answers differ by {difference}"
                sides = {
                    "ours": partial(repeat, program, inputs, calls),
                    "theirs": partial(repeat, written, inputs, calls),
                }
                took = in_turn(sides, options.rounds, warm_up=WARM_UP)
                ours, theirs = ([seconds * 1000 / calls for seconds in took[side]] for side in sides)
                ratio, least, most = interval([one / other for one, other in zip(ours, theirs, strict=True)])
                times = (f"{statistics.median(theirs):.3f}", f"{statistics.median(ours):.3f}")
                lines.append(
                    (net, str(rows), *times, f"{ratio:.3f}", f"{least:.3f} to {most:.3f}", f"{difference:.0e}")
                )
    print(f"{processor()}, torch {torch.__version__}, keras {version('keras')}, 1 thread, {options.rounds} rounds")
    headings = ("net", "rows", "torch ms", "converted ms", "ratio", "95 % interval", "difference")
    show_table(table(headings, lines, right=headings[1:]))
    return 0


def repeat(model: Callable[[torch.Tensor], object], inputs: torch.Tensor, calls: int) -> None:
    """Call a model several times."""
    for _ in range(calls):
        model(inputs)


if __name__ == "__main__":
    sys.exit(main())
