"""What the baselines share: sums of matrices that are never formed, and their leading singular triplets."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import xp
from ..parameterizations import SVD, BurerMonteiro
from ..problems.base import LeastSquares

__all__ = ["SPARE", "Sum", "begin", "combine", "frobenius", "leading", "overlap", "shrink", "soften", "spectral_norm"]

Array = Any

SPARE = 5  # columns of the block beyond those that are wanted


class Sum:
    """``sum_k c_k M_k`` of matrix-likes, as an operator on thin matrices."""

    def __init__(self, *terms: tuple[Any, Any]):
        self.terms = terms

    def adjoint(self) -> Sum:
        return Sum(*[(c, xp.adjoint(m)) for c, m in self.terms])

    def __matmul__(self, x: Array) -> Array:
        total = 0.0
        for c, m in self.terms:
            total = total + c * (m @ x)
        return total


def leading(matrix: Any, basis: Array, width: int, powers: int = 1, seed: int = 0) -> SVD:
    """Approximate leading singular triplets of anything with ``@``, by block power iteration.

    Parameters
    ----------
    matrix : (m, n), array, sparse matrix or operator
    basis : array (n, k)
        Where the iteration starts: right singular vectors of a nearby matrix; widened by random directions, or
        cut, to ``width``.
    width : int
    powers : int
        Products with the matrix and its adjoint.
    seed : int
        Of the random directions.
    """
    n, k = basis.shape
    if k < width:
        new = xp.asarray_like(np.random.default_rng(seed).standard_normal((n, width - k)), basis)
        new = new - basis @ (xp.adjoint(basis) @ new)
        basis = xp.namespace(basis).concatenate((basis, xp.orthonormalize(new)), -1)
    basis, transposed = basis[:, :width], xp.adjoint(matrix)
    for power in range(powers):
        q = xp.orthonormalize(matrix @ basis)
        image = transposed @ q
        if power < powers - 1:
            basis = xp.orthonormalize(image)
    right, values, left = xp.namespace(image).linalg.svd(image, full_matrices=False)
    return SVD(q @ xp.adjoint(left), values, right)


def shrink(point: SVD, penalty: float) -> SVD:
    """Singular values less ``penalty``, at least zero: the proximal map of the nuclear norm."""
    u, s, v = point.arrays()
    s = s - penalty
    return SVD(u, s * (s > 0), v)


def soften(values: Array, threshold: Any) -> Array:
    """Entries moved towards zero by ``threshold``: the proximal map of the sum of absolute values."""
    size = abs(values)
    kept = (size - threshold) * (size > threshold)
    return values * (kept / (size + (size == 0)))


def combine(*terms: tuple[float, Any]) -> BurerMonteiro:
    """``sum_k c_k W_k`` of points, as one product of wider factors."""
    pairs = [(c, *point.product()) for c, point in terms]
    cat = xp.namespace(pairs[0][1]).concatenate
    return BurerMonteiro(cat([c * left for c, left, _ in pairs], -1), cat([right for _, _, right in pairs], -1))


def frobenius(point: Any) -> float:
    """``||W||_F``, from two QR factorizations: no digits are lost when terms cancel."""
    left, right = point.product()
    qr = xp.namespace(left, right).linalg.qr
    core = qr(left)[1] @ xp.adjoint(qr(right)[1])
    return float(xp.inner(core, core)) ** 0.5


def overlap(a: Any, b: Any) -> float:
    """``Re <A, B>`` of two points."""
    x, y = a.product()
    u, v = b.product()
    return float(xp.inner(xp.adjoint(u) @ x, xp.adjoint(v) @ y))


def spectral_norm(matrix: Any, like: Array, n: int, steps: int = 30) -> float:
    """The largest singular value of anything with ``@`` and an adjoint, by power iteration."""
    v = xp.asarray_like(np.ones((n, 1)), like)
    transposed = xp.adjoint(matrix)
    for _ in range(steps):
        v = transposed @ (matrix @ v)
        v = v / (xp.inner(v, v) ** 0.5 + 1e-300)
    image = matrix @ v
    return float(xp.inner(image, image)) ** 0.5


def begin(problem: LeastSquares, point: Any, name: str) -> SVD:
    """The start as singular triplets; zero columns are harmless.

    Raises
    ------
    TypeError, ValueError
        Unless the loss is a square of a residual that is affine in W, and there is no batch.
    """
    if not problem.quadratic:
        raise TypeError(f"{name} needs a quadratic problem, not {type(problem).__name__}")
    if point.batch_shape:
        raise ValueError(f"{name} runs one problem at a time, got a batch of {point.batch_shape}")
    return point.to(SVD)
