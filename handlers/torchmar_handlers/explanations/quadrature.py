"""Points and weights of the integral of gradients along the path from a baseline to an input.

Gradients of nets with ReLUs change in steps, so that a high order is no advantage, as it is for the Gauss-Legendre
quadrature
with smooth gradients: points must be close to each other where gradients change. This is mostly near the
baseline (Miglani et al., "Investigating Saturation Effects in Integrated Gradients", 2020), and half of the points of
Gauss and Legendre are near the input.
"""

from __future__ import annotations

import functools

import numpy as np


@functools.lru_cache(maxsize=16)
def gauss_legendre(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return points from 0 to 1 and their weights, as in captum."""
    points, lengths = np.polynomial.legendre.leggauss(count)  # points on [-1, 1]
    return (1 + points) / 2, lengths / 2


def spaced(count: int) -> np.ndarray:
    """Return points from 0 to 1, closer to each other near 0; they include the points of a third of ``count``."""
    return ((np.arange(count) + 0.5) / count) ** 2


def weights(count: int, degree: int) -> np.ndarray:
    """Return weights for the points of `spaced` that integrate polynomials of a degree exactly.

    They differ as little as possible from the lengths between points, the weights for degree 0. A high degree is for
    few points of smooth functions; for 48 points of the nets of this project, the lengths give the best integral.

    Args:
        count: number of points.
        degree: degree of the polynomials; much smaller than ``count``, because weights otherwise become negative.
    """
    lengths = 2 * (np.arange(count) + 0.5) / count**2
    # Legendre polynomials on [0, 1], whose integrals are 1 and zeros.
    values = np.polynomial.legendre.legvander(2 * spaced(count) - 1, degree)
    missing = -lengths @ values
    missing[0] += 1
    result: np.ndarray = lengths * (1 + values @ np.linalg.solve(values.T @ (lengths[:, None] * values), missing))
    return result
