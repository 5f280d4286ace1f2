"""Kronecker products: their sums, and one whose left factor has low rank."""

from __future__ import annotations

from math import isqrt
from typing import Any

import numpy as np

from .. import xp
from ..coverage import covers
from ..factors import Configured, Gauged, MatrixFactors, Multilinear, factorization
from ..rearrange import Tiling, rearrange
from .bm import whole_product

__all__ = ["Kronecker", "largest_divisor"]

Array = Any


def largest_divisor(n: int, most: float) -> int:
    """The largest divisor of ``n`` that is at most ``most`` and at most the square root of ``n``."""
    return next(k for k in range(int(min(isqrt(n), max(most, 1))), 0, -1) if n % k == 0)


@covers("P48", "P50", "D09")
@factorization
class Kronecker(Multilinear, MatrixFactors, Configured, Gauged):
    """W = sum_k X_k (x) Y_k: KronA for one term, and sums of Kronecker products.

    Parameters
    ----------
    left : array (..., K, a, b)
        X_k.
    right : array (..., K, c, d)
        Y_k. W has the shape ``(a c, b d)``.

    Notes
    -----
    The size of this form is the number of terms K, at most ``min(a b, c d)``. Here a and b are the divisors of
    m and n closest to their square roots from below; ``Kronecker.of(a, b)`` is the form with others. A prime m
    and n leave a = b = 1, which is no structure at all.

    Rearranged so that every block of W is a row, W is a matrix of rank K: `from_product` is its truncated SVD,
    the gauge group is GL(K), and the matrices of size K are a set of dimension ``K (a b + c d - K)``. A sparse
    or sampled gradient stays sparse when it is rearranged; a linear operator is multiplied out.

    Source: :cite:`edalati2022krona`, :cite:`vanloan1993kronecker`; section IV-B of :cite:`survey2026sp`, whose
    text (m = d1 d4, n = d2 d3) and table (m = d1 d2, n = d3 d4) both misprint the shape (d1 d3, d2 d4).

    Examples
    --------
    >>> Kronecker(np.ones((1, 1, 2)), np.eye(2)[None]).dense().tolist()
    [[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]]
    """

    left: Array
    right: Array

    ndims = (3, 3)
    universal = False

    @classmethod
    def of(cls, rows: int, cols: int) -> type[Kronecker]:
        """The form whose left factors are ``rows x cols``.

        Raises
        ------
        ValueError
            When one of the two is not a positive integer.
        """
        if int(rows) != rows or int(cols) != cols or rows < 1 or cols < 1:
            raise ValueError(f"the left factors must have positive integer sizes, got {rows} x {cols}")
        return cls.configured(f"Kronecker{rows}x{cols}", int(rows), int(cols))

    @property
    def shape(self):
        return self.left.shape[-2] * self.right.shape[-2], self.left.shape[-1] * self.right.shape[-1]

    @property
    def rank(self):
        a, b = self.left.shape[-2:]
        c, d = self.right.shape[-2:]
        return min(a * c, b * d, self.left.shape[-3] * min(a, b) * min(c, d))

    @classmethod
    def shapes(cls, shape, rank):
        a, b, c, d = cls._tiling(shape)
        if rank > min(a * b, c * d):
            raise ValueError(
                f"there are at most {min(a * b, c * d)} independent Kronecker products of {a} x {b} and {c} x {d} "
                f"matrices, got {rank} terms"
            )
        return (rank, a, b), (rank, c, d)

    @classmethod
    def _tiling(cls, shape: tuple[int, int]) -> Tiling:
        """One tile per entry of X_k, of the size of Y_k."""
        a, b = cls.settings or (largest_divisor(k, k) for k in shape)
        if shape[0] % a or shape[1] % b:
            raise ValueError(f"left factors of {a} x {b} must divide the shape, got {tuple(shape)}")
        return Tiling(a, b, shape[0] // a, shape[1] // b)

    @property
    def tiling(self) -> Tiling:
        return Tiling(*self.left.shape[-2:], *self.right.shape[-2:])

    @classmethod
    def from_product(cls, left, right, rank=None):
        dense = left @ xp.adjoint(right)
        tiling = cls._tiling(dense.shape[-2:])
        k = min(left.shape[-1], tiling[0] * tiling[1], tiling[2] * tiling[3]) if rank is None else rank
        u, s, vh = xp.namespace(dense).linalg.svd(rearrange(dense, tiling), full_matrices=False)
        root = (s[..., :k] ** 0.5)[..., :, None]
        batch = dense.shape[:-2]
        x, y = u.mT[..., :k, :] * root, vh[..., :k, :] * root
        return cls(x.reshape(*batch, k, *tiling[:2]), y.reshape(*batch, k, *tiling[2:]))

    def product(self):
        return whole_product(self)

    def dense(self):
        blocks = xp.namespace(self.left).einsum("...kab,...kcd->...acbd", self.left, self.right)
        return blocks.reshape(*blocks.shape[:-4], *self.shape)

    def apply(self, x):
        # All Y_k in one product for all rows; then b and k are one axis, over which the X_k sum.
        (terms, a, b), (c, d) = self.left.shape[-3:], self.right.shape[-2:]
        rows = x.reshape(*x.shape[:-2], -1, d)
        half = rows @ self.right.reshape(*self.right.shape[:-3], terms * c, d).mT  # (..., rows b, K c)
        left = xp.namespace(self.left).einsum("...kab->...abk", self.left)
        left = left.reshape(*left.shape[:-3], 1, a, b * terms)
        out = left @ half.reshape(*half.shape[:-2], -1, b * terms, c)
        return out.reshape(*out.shape[:-2], a * c)

    def entries(self, rows, cols):
        c, d = self.right.shape[-2:]
        left = self.left[..., rows // c, cols // d]
        return (left * self.right[..., rows % c, cols % d]).sum(-2)

    def partial(self, index, g):
        return self._contracted(rearrange(g, self.tiling), index)

    def pullback(self, g):
        arranged = rearrange(g, self.tiling)
        return type(self)(self._contracted(arranged, 0), self._contracted(arranged, 1))

    def _contracted(self, arranged: Any, index: int) -> Array:
        """R(G) times the conjugate of Y, or its adjoint times X."""
        if index == 0:
            out = (arranged @ self._flat(1).conj().mT).mT
        else:
            out = (xp.adjoint(arranged) @ self._flat(0).mT).conj().mT
        return out.reshape(*out.shape[:-1], *self.arrays()[index].shape[-2:])

    def _flat(self, index: int) -> Array:
        """Every factor as a row."""
        array = self.arrays()[index]
        return array.reshape(*array.shape[:-2], -1)

    def whiten(self, grad, damping=0.0):
        solved = []
        for i, g in enumerate(grad.arrays()):
            other = self._flat(1 - i)
            rows = g.reshape(*g.shape[:-2], -1)
            solved.append(xp.solve_psd(other.conj() @ other.mT, rows, damping).reshape(g.shape))
        return type(self)(*solved)

    def gauge(self, q):
        inverse = xp.namespace(q).linalg.inv(q)
        einsum = xp.namespace(q).einsum
        left = einsum("...kl,...kab->...lab", q, self.left)
        return type(self)(left, einsum("...lk,...kcd->...lcd", inverse, self.right))

    def random_gauge(self, rng):
        k = self.left.shape[-3]
        return xp.asarray_like(np.eye(k) + 0.3 * rng.standard_normal((*self.batch_shape, k, k)), self.left)
