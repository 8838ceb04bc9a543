"""One explanation, and its JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchmar_handlers.request import NotFinite


@dataclass(frozen=True, eq=False)
class Explanation:
    """The shares of the parts of one input in one output, for and against it.

    Attributes:
        method: method of the explanation.
        target: index of the output that is explained.
        attributions: floats; positive is for the target if `signed`. The shape is that of the input, but ``(1, height,
            width)`` for Grad-CAM and attention rollout, and ``(tokens,)`` for text.
        baseline: word or number of the baseline; ``given`` for the client's own values.
        n_steps: points or samples; None: the method has none.
        delta: the sum of the attributions minus the difference of scores that it should equal; None: the
            method promises no such sum.
        instead_of: usual method, if it was not available.
        reason: reason why the usual method was not available.
        weights: ``original`` if predictions are those of optimised weights, which have no gradients, and the
            attributions are those of the original ones; None: both have the same weights.
        dtype: type in which gradients were computed, if it is not the model's.
    """

    method: str
    target: int
    attributions: np.ndarray
    baseline: str | int | float | None = None
    n_steps: int | None = None
    delta: float | None = None
    instead_of: str | None = None
    reason: str | None = None
    weights: str | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        """Raise NotFinite if an attribution, or the delta, is NaN or infinite."""
        if not (np.isfinite(self.attributions).all() and math.isfinite(self.delta or 0)):
            raise NotFinite("the explanation of this input is not a number")

    @property
    def signed(self) -> bool:
        """Whether attributions are for or against the target; those of attention rollout are neither."""
        return self.method != "attention_rollout"

    @property
    def note(self) -> str:
        """The method of the explanation, in one line for a caption."""
        parts = [self.method.replace("_", " ")]
        if self.n_steps is not None:
            parts.append(f"{self.n_steps} {'samples' if self.method == 'gradient_shap' else 'steps'}")
        if self.baseline is not None:
            parts.append(f"baseline {self.baseline}")
        if self.dtype is not None:
            parts.append(self.dtype)
        if self.instead_of is not None:
            parts.append(f"in place of {self.instead_of.replace('_', ' ')}")
        if self.weights is not None:
            parts.append(f"{self.weights} weights")
        return ", ".join(parts)


def document(explanation: Explanation, **more: Any) -> dict[str, Any]:
    """Return an explanation as a dictionary for JSON.

    Values of None are omitted. Attributions are rounded to four significant digits of the
    largest: further digits are noise of the integral, and take megabytes.

    Args:
        explanation: the explanation.
        more: further keys (``label``, ``probability``), between ``target`` and ``shape``.
    """
    delta = explanation.delta
    document = {
        "method": explanation.method,
        "instead_of": explanation.instead_of,
        "reason": explanation.reason,
        "weights": explanation.weights,
        "n_steps": explanation.n_steps,
        "dtype": explanation.dtype,
        "baseline": explanation.baseline,
        "target": explanation.target,
        **more,
        "convergence_delta": None if delta is None else float(f"{delta:.3g}"),
        "shape": list(explanation.attributions.shape),
        "attributions": rounded(explanation.attributions).tolist(),
    }
    return {key: value for key, value in document.items() if value is not None}


def rounded(values: np.ndarray) -> np.ndarray:
    """Return values rounded to four significant digits of the largest, as float64, whose decimal form is short."""
    exact = np.asarray(values, np.float64)
    largest = float(np.abs(exact).max(initial=0))
    if largest == 0 or not math.isfinite(largest):
        return exact
    # Beyond 300 decimals, NumPy's power of ten overflows; smaller values become zero.
    return np.round(exact, min(3 - math.floor(math.log10(largest)), 300)) + 0.0  # no "-0.0"
