"""The Hadamard (elementwise) product of two low-rank matrices: rank r squared from 2 (m + n) r numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import xp
from ..coverage import covers
from ..factors import Gauged, Multilinear, factorization
from .bm import resized, sampled_product, whole_product
from .channels import Channels
from .outer import Outer

__all__ = ["Hadamard", "khatri_rao"]

Array = Any


def khatri_rao(a: Array, b: Array) -> Array:
    """Row-wise Khatri-Rao product: (..., m, r) and (..., m, k) to (..., m, r k)."""
    product = a[..., :, :, None] * b[..., :, None, :]
    return product.reshape(*product.shape[:-2], -1)


@covers("P46")
@factorization
class Hadamard(Multilinear, Outer, Channels, Gauged):
    """W = (X1 Y1^H) o (X2 Y2^H), the form of FedPara and LoHa.

    Parameters
    ----------
    left, right : arrays (..., m, r) and (..., n, r)
        X1 and Y1.
    left2, right2 : arrays (..., m, r) and (..., n, r)
        X2 and Y2; another number of columns is fine.

    Notes
    -----
    Except by ``dense``, nothing of size m x n is formed: ``W = (X1 * X2)(Y1 * Y2)^H`` with the row-wise
    Khatri-Rao product, r^2 columns wide. ``whiten`` solves one r x r system per row, whose matrices come from a
    Gram tensor of r^4 numbers. ``gauge`` is the GL(r) of the first pair; the whole group has a second one and
    the scalings of rows and columns, and dimension ``2 r^2 + m + n - 1``. So the matrices of size r are a set of
    dimension ``2 r (m + n - r) - (m + n - 1)`` at most, less than what the counting argument of
    :cite:`survey2026sp` (Proposition 1) subtracts from; at r = 2 that argument fails and this one works for
    m + n > 9. Source: :cite:`hyeonwoo2022fedpara`; equation (7) of :cite:`survey2026sp`.

    Examples
    --------
    >>> x, y = np.ones((3, 1)), np.arange(2.0)[:, None]
    >>> Hadamard(x, y, 2 * x, y).dense().tolist()
    [[0.0, 2.0], [0.0, 2.0], [0.0, 2.0]]
    """

    left: Array
    right: Array
    left2: Array
    right2: Array

    @property
    def rank(self):
        return min(self.left.shape[-1] * self.left2.shape[-1], *self.shape)

    @classmethod
    def shapes(cls, shape, rank):
        return (shape[0], rank), (shape[1], rank), (shape[0], rank), (shape[1], rank)

    @classmethod
    def from_product(cls, left, right, rank=None):
        """The matrix itself times a matrix of ones.

        The ones are the first column of X2 and of Y2. The other columns of X2 vanish and those of Y2 are
        cosines, so that every column can grow: two zero columns would never move again.
        """
        left, right = resized(left, right, rank)
        first = np.eye(1, left.shape[-1])
        return cls(left, right, _constant(first, left), _constant(_cosines(*right.shape[-2:]), right))

    def product(self):
        if self.left.shape[-1] * self.left2.shape[-1] > min(self.shape):
            return whole_product(self)
        return khatri_rao(self.left, self.left2), khatri_rao(self.right, self.right2)

    def dense(self):
        return (self.left @ xp.adjoint(self.right)) * (self.left2 @ xp.adjoint(self.right2))

    def narrow(self):
        return xp.adjoint(khatri_rao(self.right, self.right2))[..., None, :, :]

    def widen(self):
        return khatri_rao(self.left, self.left2)[..., None, :, :]

    def mix(self, thin):
        """One block, whose channels are those of the output."""
        return thin

    def entries(self, rows, cols):
        first = sampled_product(self.left, self.right, rows, cols)
        return first * sampled_product(self.left2, self.right2, rows, cols)

    def _outer(self, g: Any, side: int) -> Array:
        """``G (Y1 * Y2)`` as (..., m, r1, r2), or ``G^H (X1 * X2)`` as (..., n, r1, r2)."""
        a, b = (self.right, self.right2) if side == 0 else (self.left, self.left2)
        product = (g if side == 0 else xp.adjoint(g)) @ khatri_rao(a, b)
        return product.reshape(*product.shape[:-1], a.shape[-1], b.shape[-1])

    def partial(self, index, g):
        return self._contracted(self._outer(g, index % 2), index)

    def _contracted(self, outer: Array, index: int) -> Array:
        """The gradient of one array from `_outer` of its side."""
        beside = self.arrays()[index ^ 2].conj()
        if index < 2:
            return (outer @ beside[..., :, None])[..., 0]
        return (beside[..., None, :] @ outer)[..., 0, :]

    def pullback(self, g):
        outer = self._outer(g, 0), self._outer(g, 1)
        return Hadamard(*[self._contracted(outer[i % 2], i) for i in range(4)])

    def whiten(self, grad, damping=0.0):
        damping = xp.expand(damping, 1)
        arrays = self.arrays()
        solved = []
        for i, g in enumerate(grad.arrays()):
            grams = _row_grams(arrays[i ^ 1], arrays[i ^ 3], arrays[i ^ 2])
            solved.append(xp.solve_psd(grams, g[..., None], damping)[..., 0])
        return Hadamard(*solved)

    def gauge(self, q):
        inverse = xp.adjoint(xp.namespace(q).linalg.inv(q))
        return Hadamard(self.left @ q, self.right @ inverse, self.left2, self.right2)

    def random_gauge(self, rng):
        r = self.left.shape[-1]
        return xp.asarray_like(np.eye(r) + 0.3 * rng.standard_normal((*self.batch_shape, r, r)), self.left)


def _row_grams(across: Array, opposite: Array, beside: Array) -> Array:
    """Normal matrices of every row of one factor, (..., m, r, r).

    For X1 they are ``sum_j |(X2 Y2^H)_ij|^2 y1_j y1_j^H`` with the square expanded in the second pair, so that
    the sum over j is one product for all rows. ``across``, ``opposite`` and ``beside`` are Y1, Y2 and X2.
    """
    table = khatri_rao(opposite.conj(), opposite).mT @ khatri_rao(across, across.conj())
    rows = khatri_rao(beside, beside.conj()) @ table
    r = across.shape[-1]
    return rows.reshape(*rows.shape[:-1], r, r)


def _constant(columns: np.ndarray, like: Array) -> Array:
    """The same matrix for every batch element of ``like``."""
    return xp.namespace(like).zeros_like(like) + xp.asarray_like(columns, like)


def _cosines(n: int, count: int) -> np.ndarray:
    """The first columns of the cosine transform, the very first of which is all ones."""
    return np.cos(np.pi * np.outer(np.arange(n) + 0.5, np.arange(count)) / n)
