"""Points and weights of the integral of gradients along the path from a baseline to an input.

Gradients of nets with ReLUs change in steps, so that no rule gains from its order, as the Gauss-Legendre quadrature
does where gradients are smooth: what counts is that points are close where gradients change. That is mostly near the
baseline (Miglani et al., "Investigating Saturation Effects in Integrated Gradients", 2020), and half of the points of
Gauss and Legendre are near the input.
"""

from __future__ import annotations

import functools

import numpy as np


@functools.lru_cache(maxsize=16)
def gauss_legendre(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return points from 0 to 1 and their weights, as captum has them."""
    points, lengths = np.polynomial.legendre.leggauss(count)  # on [-1, 1]
    return (1 + points) / 2, lengths / 2


def spaced(count: int) -> np.ndarray:
    """Return points from 0 to 1, closer to each other near 0; those of a third of ``count`` are among them."""
    return ((np.arange(count) + 0.5) / count) ** 2


def weights(count: int, degree: int) -> np.ndarray:
    """Return weights of the points of `spaced` that integrate polynomials of a degree exactly.

    They are as near to the lengths between points as can be, which are the weights for degree 0. A high degree is for
    few points of smooth functions; of 48 points of the nets of this project, the lengths come nearest to the integral.

    Args:
        count: of points.
        degree: small against ``count``, or weights become negative.
    """
    lengths = 2 * (np.arange(count) + 0.5) / count**2
    # Legendre polynomials on [0, 1], whose integrals are 1 and zeros.
    values = np.polynomial.legendre.legvander(2 * spaced(count) - 1, degree)
    missing = -lengths @ values
    missing[0] += 1
    result: np.ndarray = lengths * (1 + values @ np.linalg.solve(values.T @ (lengths[:, None] * values), missing))
    return result
