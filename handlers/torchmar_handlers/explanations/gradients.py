"""Attribution by gradients: integrated gradients, saliency and gradient SHAP.

Captum has all three; here they take several rows with a target and a baseline each, in passes
of a size that fits the processor's cache, and draw the same samples for every row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from torchmar_handlers.explanations.explain_options import ExplainOptions
from torchmar_handlers.explanations.first_convolution import FirstConvolution, find

# Maps points (k, ...), and the index of the row (k,) that each belongs to, to scores (k, outputs).
Score = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_VALUES_AT_ONCE = 2**20  # of a pass on a CPU; seven images of 224x224, which was the fastest on a ResNet-18
_SEED = 0


class NoGradientError(Exception):
    """A method cannot be had, for want of gradients; the message says why."""


def attribute(
    score: Score,
    inputs: torch.Tensor,
    baselines: torch.Tensor,
    targets: torch.Tensor,
    options: ExplainOptions,
    max_forward_batch: int,
) -> torch.Tensor:
    """Return the attributions of a batch by ``options.method``, shaped like ``inputs``.

    * ``integrated_gradients``: Sundararajan, Taly and Yan, "Axiomatic Attribution for Deep Networks",
      ICML 2017; ``n_steps`` points of the Gauss-Legendre quadrature, as in captum.
    * ``gradient_shap``: Lundberg and Lee, "A Unified Approach to Interpreting Model Predictions", NIPS 2017;
      gradients at ``n_steps`` random points between baseline and input. The points are those that captum
      draws for one row after ``numpy.random.seed(0)``, and the same for all rows.
    * ``saliency``: Simonyan, Vedaldi and Zisserman, "Deep Inside Convolutional Networks", 2013; the gradient
      with its sign, which tells for from against (captum's default drops it).

    Raises:
        NoGradientError: the scores have no gradient.
    """
    if options.method == "saliency":
        return path(score, inputs, inputs, targets, np.ones(1), np.ones(1), max_forward_batch)
    if options.method == "gradient_shap":
        alphas = np.random.RandomState(_SEED).uniform(0.0, 1.0, options.n_steps)
        weights = np.full(options.n_steps, 1 / options.n_steps)
    else:
        points, lengths = np.polynomial.legendre.leggauss(options.n_steps)  # on [-1, 1]
        alphas, weights = (1 + points) / 2, lengths / 2
    return path(score, baselines, inputs, targets, alphas, weights, max_forward_batch) * (inputs - baselines)


def path(
    score: Score,
    starts: torch.Tensor,
    ends: torch.Tensor,
    targets: torch.Tensor,
    alphas: np.ndarray,
    weights: np.ndarray,
    max_forward_batch: int,
) -> torch.Tensor:
    """Return for each row the weighted sum of its score's gradients at points between two ends, shaped like them."""
    steps = len(alphas)
    shape = (-1, *[1] * (ends.dim() - 1))
    share = torch.as_tensor(alphas, dtype=ends.dtype, device=ends.device)
    spans = ends - starts
    # Sums of the gradients of each row, and of what its first convolution gave.
    direct: dict[int, torch.Tensor] = {}
    behind: dict[int, torch.Tensor] = {}
    first: FirstConvolution | None = None
    most = rows_in_a_pass(ends[0].numel(), ends.device, max_forward_batch)
    for places in pieces(len(ends) * steps, most):
        place = torch.arange(places.start, places.stop, device=ends.device)
        row, step = place // steps, place % steps
        points = (starts[row] + share[step].view(shape) * spans[row]).requires_grad_()
        slopes, convolution = _gradient(score, points, row, targets[row])
        first, sums = (first, direct) if convolution is None else (convolution, behind)
        # One by one: in whatever order a convolution's output lies in memory, that is fast.
        for index, weight, slope in zip(row.tolist(), weights[step.tolist()].tolist(), slopes, strict=True):
            if index in sums:
                sums[index].add_(slope, alpha=weight)
            else:
                sums[index] = slope * weight
    total = torch.zeros_like(ends)
    for index, value in direct.items():
        total[index] += value
    if first is not None:
        rows = torch.as_tensor(list(behind), device=ends.device)
        total[rows] += first.back(torch.stack(list(behind.values())), ends[rows])
    return total


def _gradient(
    score: Score, points: torch.Tensor, row: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, FirstConvolution | None]:
    """Return the gradients of points, or those of the output of the convolution that they go into."""
    try:
        with torch.enable_grad():
            chosen = pick(score(points, row), targets).sum()
            first = find(chosen, points) if points.dim() == 4 and chosen.requires_grad else None
            (slopes,) = torch.autograd.grad(chosen, points if first is None else first.output)
    except RuntimeError as error:
        # What lacks memory or a device would lack them without gradients too.
        if "memory" in str(error) or "CUDA" in str(error):
            raise
        document = str(error).partition("\n")[0]
        raise NoGradientError(f"these weights give no gradients ({document})") from error
    return slopes, first


def pick(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the target's score of each row, ``(n,)``, from outputs ``(n, outputs)`` or ``(n,)``."""
    return outputs.reshape(len(targets), -1).gather(1, targets[:, None])[:, 0]


def rows_in_a_pass(values: int, device: torch.device, max_forward_batch: int) -> int:
    """Return how many rows of so many values go through the model at once."""
    if device.type == "cpu":
        max_forward_batch = min(max_forward_batch, _VALUES_AT_ONCE // max(values, 1))
    return max(1, max_forward_batch)


def pieces(total: int, most: int) -> Iterator[slice]:
    """Cut ``total`` rows into the fewest pieces of ``most`` at the most, as equal as can be."""
    count = -(-total // most)
    for index in range(count):
        yield slice(total * index // count, total * (index + 1) // count)
