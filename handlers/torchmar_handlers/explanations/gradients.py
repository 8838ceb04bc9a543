"""Attribution by gradients: integrated gradients, saliency and gradient SHAP.

Captum has all three methods. Here they take several rows with a target and a baseline each, in passes
of a size that fits the processor's cache, and draw the same samples for every row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from torchmar_handlers.explanations import quadrature
from torchmar_handlers.explanations.explain_options import USUAL_STEPS, ExplainOptions
from torchmar_handlers.explanations.first_convolution import FirstConvolution, find

# Maps points (k, ...), and the index of the row (k,) of each point, to scores (k, outputs).
Score = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_VALUES_AT_ONCE = 2**20  # values of a pass on a CPU: seven images of 224x224, the fastest number on a ResNet-18
_SEED = 0
# Points of an integral for ``auto``. The first are enough if gradients are smooth: then the weights for a
# curve and for straight lines give the same result.
_FIRST_POINTS, _ALL_POINTS = 16, 48
_CURVE = 5  # degree of the polynomials that the weights of the first points integrate exactly
_SETTLED = 1e-3  # share of the attributions' norm, and of the difference of scores that is their sum


class NoGradientError(Exception):
    """A method is not available, because there are no gradients; the message contains the reason."""


def attribute(
    score: Score,
    inputs: torch.Tensor,
    baselines: torch.Tensor,
    targets: torch.Tensor,
    gaps: torch.Tensor | None,
    options: ExplainOptions,
    max_forward_batch: int,
) -> tuple[torch.Tensor, list[int] | None]:
    """Return the attributions of a batch by ``options.method``, shaped like ``inputs``, and the steps of each row.

    * ``integrated_gradients``: Sundararajan, Taly and Yan, "Axiomatic Attribution for Deep Networks",
      ICML 2017; ``n_steps`` points of the Gauss-Legendre quadrature, as in captum; if ``n_steps`` is None, 16 or
      48 points of `torchmar_handlers.explanations.quadrature`.
    * ``gradient_shap``: Lundberg and Lee, "A Unified Approach to Interpreting Model Predictions", NIPS 2017;
      gradients at ``n_steps`` random points between baseline and input. The points are those that captum
      draws for one row after ``numpy.random.seed(0)``, and the same for all rows.
    * ``saliency``: Simonyan, Vedaldi and Zisserman, "Deep Inside Convolutional Networks", 2013; the gradient
      with its sign, which distinguishes for and against (captum's default drops it).

    Args:
        score: function that computes the scores of points.
        inputs: ``(n, ...)``; the points have their layout in memory.
        baselines: baselines in the shape of ``inputs``.
        targets: ``(n,)``.
        gaps: differences of the target's scores of input and baseline, ``(n,)``, for methods with steps.
        options: options of all rows.
        max_forward_batch: largest number of rows in a pass.

    Raises:
        NoGradientError: the scores have no gradient.
    """
    if options.method == "saliency":
        return path(score, inputs, inputs, targets, np.ones(1), np.ones(1), max_forward_batch), None
    steps = options.n_steps or USUAL_STEPS
    if options.method == "gradient_shap":
        alphas = np.random.RandomState(_SEED).uniform(0.0, 1.0, steps)
        weights = np.full(steps, 1 / steps)
    elif options.n_steps is None:
        assert gaps is not None
        rows = [
            _integrated(score, row, inputs, baselines, targets, float(gap), max_forward_batch)
            for row, gap in enumerate(gaps)
        ]
        return torch.stack([values for values, _ in rows]), [count for _, count in rows]
    else:
        alphas, weights = quadrature.gauss_legendre(steps)
    sums = path(score, baselines, inputs, targets, alphas, weights, max_forward_batch)
    return sums * (inputs - baselines), [steps] * len(inputs)


def _integrated(
    score: Score,
    row: int,
    inputs: torch.Tensor,
    baselines: torch.Tensor,
    targets: torch.Tensor,
    gap: float,
    max_forward_batch: int,
) -> tuple[torch.Tensor, int]:
    """Return the integrated gradients of a row and the number of points: a third of them if this is enough.

    The convergence delta alone does not show this: it is a sum of errors of both signs, and often small by chance.
    Rows are computed one by one, so that rounding cannot make the choice depend on other rows.
    """
    start, span = baselines[row], inputs[row] - baselines[row]
    limit = rows_in_a_pass(span.numel(), span.device, max_forward_batch)
    totals: list[torch.Tensor] = []
    first: FirstConvolution | None = None

    def add(alphas: np.ndarray, weights: np.ndarray) -> None:
        """Add the gradients at some points to the totals, each with its own weights, ``(totals, points)``."""
        nonlocal first
        for piece in pieces(len(alphas), limit):
            shares = torch.as_tensor(alphas[piece], dtype=span.dtype, device=span.device)
            points = start + shares.view(-1, *[1] * span.dim()) * span
            index = torch.full((len(points),), row, device=span.device)
            slopes, first = _gradient(score, points.contiguous(memory_format=_layout(inputs)), index, targets[index])
            if not totals:
                totals.extend(torch.zeros_like(slopes[0]) for _ in weights)
            for slope, column in zip(slopes, weights.T[piece].tolist(), strict=True):
                for total, weight in zip(totals, column, strict=True):
                    total.add_(slope, alpha=weight)

    def integral(total: torch.Tensor) -> torch.Tensor:
        return span * (total if first is None else first.back(total[None], inputs[row : row + 1])[0])

    early = np.arange(1, _ALL_POINTS, 3)
    points, weights = quadrature.spaced(_ALL_POINTS), quadrature.weights(_ALL_POINTS, 0)
    first_weights = [quadrature.weights(_FIRST_POINTS, degree) for degree in (_CURVE, 1)]
    add(points[early], np.stack([*first_weights, weights[early]]))
    values, other = integral(totals[0]), integral(totals[1])
    delta, change = float(values.double().sum()) - gap, float((values - other).norm())
    if abs(delta) <= _SETTLED * abs(gap) and change <= _SETTLED * float(values.norm()):
        return values, _FIRST_POINTS
    del totals[:2]
    late = np.setdiff1d(np.arange(_ALL_POINTS), early)
    add(points[late], weights[None, late])
    return integral(totals[0]), _ALL_POINTS


def path(
    score: Score,
    starts: torch.Tensor,
    ends: torch.Tensor,
    targets: torch.Tensor,
    alphas: np.ndarray,
    weights: np.ndarray,
    max_forward_batch: int,
) -> torch.Tensor:
    """Return for each row the weighted sum of its score's gradients at points between two ends, in their shape."""
    steps, layout = len(alphas), _layout(ends)
    shape = (-1, *[1] * (ends.dim() - 1))
    share = torch.as_tensor(alphas, dtype=ends.dtype, device=ends.device)
    spans = ends - starts
    # Sums of the gradients of each row, and of the outputs of its first convolution.
    direct: dict[int, torch.Tensor] = {}
    behind: dict[int, torch.Tensor] = {}
    first: FirstConvolution | None = None
    limit = rows_in_a_pass(ends[0].numel(), ends.device, max_forward_batch)
    for piece in pieces(len(ends) * steps, limit):
        number = torch.arange(piece.start, piece.stop, device=ends.device)
        row, step = number // steps, number % steps
        points = starts[row] + share[step].view(shape) * spans[row]
        points = points.contiguous(memory_format=layout)
        slopes, convolution = _gradient(score, points, row, targets[row])
        first, sums = (first, direct) if convolution is None else (convolution, behind)
        for index in range(piece.start // steps, (piece.stop - 1) // steps + 1):
            begin, end = max(piece.start, index * steps), min(piece.stop, (index + 1) * steps)
            part = slopes[begin - piece.start : end - piece.start]
            value = _weighted(part, weights[begin - index * steps : end - index * steps])
            sums[index] = sums[index] + value if index in sums else value
    total = torch.zeros_like(ends)
    for index, value in direct.items():
        total[index] += value
    if first is not None:
        rows = torch.as_tensor(list(behind), device=ends.device)
        total[rows] += first.back(torch.stack(list(behind.values())), ends[rows])
    return total


def _weighted(slopes: torch.Tensor, weights: np.ndarray) -> torch.Tensor:
    """Return the weighted sum of gradients ``(k, ...)``."""
    total: torch.Tensor
    if slopes.is_contiguous():
        total = torch.tensordot(torch.as_tensor(weights, dtype=slopes.dtype, device=slopes.device), slopes, 1)
        return total
    # One by one: the channels are last, and a product would copy all values.
    total = slopes[0] * float(weights[0])
    for slope, weight in zip(slopes[1:], weights[1:].tolist(), strict=True):
        total.add_(slope, alpha=weight)
    return total


def _layout(tensor: torch.Tensor) -> torch.memory_format:
    last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last and not tensor.is_contiguous() else torch.contiguous_format


def _gradient(
    score: Score, points: torch.Tensor, row: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, FirstConvolution | None]:
    """Return the gradients of points, or of the output of the convolution whose inputs they are."""
    points = points.requires_grad_()
    try:
        with torch.enable_grad():
            total = pick(score(points, row), targets).sum()
            first = find(total, points) if points.dim() == 4 and total.requires_grad else None
            (slopes,) = torch.autograd.grad(total, points if first is None else first.output)
    except RuntimeError as error:
        # A lack of memory or of a device would also occur without gradients.
        if "memory" in str(error) or "CUDA" in str(error):
            raise
        document = str(error).partition("\n")[0]
        raise NoGradientError(f"these weights give no gradients ({document})") from error
    return slopes, first


def pick(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the target's score of each row, ``(n,)``, from outputs ``(n, outputs)`` or ``(n,)``."""
    return outputs.reshape(len(targets), -1).gather(1, targets[:, None])[:, 0]


def rows_in_a_pass(values: int, device: torch.device, max_forward_batch: int) -> int:
    """Return the number of rows, of this number of values, that a pass contains."""
    if device.type == "cpu":
        max_forward_batch = min(max_forward_batch, _VALUES_AT_ONCE // max(values, 1))
    return max(1, max_forward_batch)


def pieces(total: int, most: int) -> Iterator[slice]:
    """Cut ``total`` rows into the smallest number of pieces of at most ``most``, of similar sizes."""
    count = -(-total // most)
    for index in range(count):
        yield slice(total * index // count, total * (index + 1) // count)
