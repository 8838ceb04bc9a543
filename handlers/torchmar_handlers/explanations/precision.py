"""The type of floats for gradients: bfloat16 if it gives the attributions of float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from torchmar_handlers.explanations.engine import explain
from torchmar_handlers.explanations.explain_options import ExplainOptions

MOST_ERROR = 0.05
_STEPS = 8


def largest_error(
    score: Callable[[torch.Tensor], torch.Tensor], inputs: Sequence[torch.Tensor], dtype: torch.dtype
) -> float:
    """Return the largest difference between integrated gradients in another type and in float32.

    Args:
        score: function that returns the scores of rows, as in `torchmar_handlers.explanations.explain`.
        inputs: batches of any rows, ``(n, ...)``; the highest score of each row is explained.
        dtype: the other type.

    Returns:
        The norm of the difference, as a share of that of the attributions.
    """
    worst = 0.0
    for rows in inputs:
        with torch.no_grad():
            scores = score(rows)
        targets, options = scores.argmax(1), [ExplainOptions(n_steps=_STEPS)] * len(rows)
        exact, other = (explain(score, rows, targets, options, scores=scores, dtype=kind) for kind in (None, dtype))
        for reference, explanation in zip(exact, other, strict=True):
            expected, actual = torch.from_numpy(reference.attributions), torch.from_numpy(explanation.attributions)
            worst = max(worst, float((actual - expected).norm() / expected.norm().clamp(min=1e-30)))
    return worst
