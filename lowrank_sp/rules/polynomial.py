"""Polynomials of a step: the loss along a line, and its real minimiser."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import xp

__all__ = ["loss_polynomial", "minimize_polynomial"]


def minimize_polynomial(coefficients: np.ndarray) -> np.ndarray:
    """The real minimiser of polynomials bounded from below.

    Parameters
    ----------
    coefficients : array (..., 2p + 1)
        Ascending powers; the even leading coefficient is not negative.

    Returns
    -------
    array (...)
        The global minimiser; 0 where the slope at 0 vanishes or a coefficient is not finite.
    """
    flat = coefficients.reshape(-1, coefficients.shape[-1])
    return np.array([_minimize_one(c) for c in flat]).reshape(coefficients.shape[:-1])


def _minimize_one(c: np.ndarray) -> float:
    """Scale the variable to the size of the minimiser, then take the best real critical point."""
    if not np.isfinite(c).all() or c[1] == 0:
        return 0.0
    if len(c) == 3:
        return float(-c[1] / (2 * c[2])) if c[2] > 0 else 0.0
    powers = np.arange(len(c))
    scale = _root_size(np.abs(c * powers)[1:], c[2] > 0)
    scaled = c * scale**powers
    size = np.abs(scaled[1:]).max()
    if not np.isfinite(size) or size == 0:
        return 0.0
    scaled = scaled / size
    derivative = (scaled * powers)[1:]
    keep = np.flatnonzero(np.abs(derivative) > 1e-14 * np.abs(derivative).max())[-1] + 1
    roots = np.roots(derivative[:keep][::-1])
    real = roots.real[np.abs(roots.imag) <= 1e-6 * (1 + np.abs(roots.real))]
    if real.size == 0:
        return 0.0
    values = np.polynomial.polynomial.polyval(real, np.concatenate(([0.0], scaled[1:])))
    best = int(np.argmin(values))
    return float(real[best] * scale) if values[best] <= 0 else 0.0


def _root_size(slopes: np.ndarray, convex: bool) -> float:
    """A size for the variable: the quadratic guess where it exists, at most a bound on all critical points."""
    guess = slopes[0] / slopes[1] if convex else np.inf
    if slopes[-1] > 0:
        orders = np.arange(len(slopes) - 1, 0, -1)
        guess = min(guess, float(np.max((slopes[:-1] / slopes[-1]) ** (1 / orders))))
    return guess if np.isfinite(guess) and guess > 0 else 1.0


def loss_polynomial(products: list[list[Any]]) -> np.ndarray:
    """Ascending coefficients of ``1/2 || sum_k t^k c_k ||^2`` from the Gram matrix of the ``c_k``."""
    size = len(products)
    table: list[Any] = [0.0] * (2 * size - 1)
    for i in range(size):
        for j in range(i + 1):
            weight = 0.5 if i == j else 1.0
            table[i + j] = table[i + j] + weight * xp.to_numpy(products[i][j]).astype(float)
    return np.stack(np.broadcast_arrays(*table), axis=-1)
