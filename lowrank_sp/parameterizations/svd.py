"""Three-factor forms with orthonormal outer factors: diagonal core (SVD) and full core (PoLAR)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import xp
from ..coverage import covers
from ..factors import Gauged, Multilinear, factorization
from ..spaces import FLAT, STIEFEL
from .bm import sampled_product, thin_svd

__all__ = ["SVD", "PoLAR"]

Array = Any


@covers("P24", "P25")
@factorization
class PoLAR(Multilinear, Gauged):
    """W = U Theta V^H with U, V on Stiefel manifolds and an unconstrained core Theta.

    Parameters
    ----------
    left : array (..., m, r)
        U, orthonormal columns.
    core : array (..., r, r)
        Theta.
    right : array (..., n, r)
        V, orthonormal columns.

    Notes
    -----
    Source: :cite:`lion2025polar`. The gauge group is O(r) x O(r); ``gauge`` uses one element on both sides.
    """

    left: Array
    core: Array
    right: Array

    spaces = (STIEFEL, FLAT, STIEFEL)

    @property
    def shape(self):
        return self.left.shape[-2], self.right.shape[-2]

    @property
    def rank(self):
        return self.core.shape[-1]

    @classmethod
    def shapes(cls, shape, rank):
        return (shape[0], rank), (rank, rank), (shape[1], rank)

    @classmethod
    def from_product(cls, left, right):
        backend = xp.namespace(left, right)
        ql, rl = backend.linalg.qr(left)
        qr, rr = backend.linalg.qr(right)
        return cls(ql, rl @ xp.adjoint(rr), qr)

    def product(self):
        return self.left @ self.core, self.right

    def dense(self):
        return (self.left @ self.core) @ xp.adjoint(self.right)

    def apply(self, x):
        return (x @ self.right.conj()) @ self.core.mT @ self.left.mT

    def entries(self, rows, cols):
        return sampled_product(self.left @ self.core, self.right, rows, cols)

    def partial(self, index, g):
        if index == 0:
            return (g @ self.right) @ xp.adjoint(self.core)
        if index == 1:
            return xp.adjoint(self.left) @ (g @ self.right)
        return (xp.adjoint(g) @ self.left) @ self.core

    def pullback(self, g):
        gv = g @ self.right
        return PoLAR(
            gv @ xp.adjoint(self.core),
            xp.adjoint(self.left) @ gv,
            (xp.adjoint(g) @ self.left) @ self.core,
        )

    def whiten(self, grad, damping=0.0):
        left_gram, right_gram = xp.gram(self.left), xp.gram(self.right)
        outer_left = self.core @ right_gram @ xp.adjoint(self.core)
        outer_right = xp.adjoint(self.core) @ left_gram @ self.core
        return PoLAR(
            xp.divide_psd(grad.left, outer_left, damping),
            _whiten_core(left_gram, right_gram, grad.core, damping),
            xp.divide_psd(grad.right, outer_right, damping),
        )

    def gauge(self, q):
        return PoLAR(self.left @ q, xp.adjoint(q) @ self.core @ q, self.right @ q)

    def random_gauge(self, rng):
        r = self.rank
        return xp.asarray_like(xp.orthonormalize(rng.standard_normal((*self.batch_shape, r, r))), self.left)


def _whiten_core(p: Array, q: Array, g: Array, damping: Any) -> Array:
    """Solve ``p x q + damping x = g`` for Hermitian PSD ``p`` and ``q``."""
    backend = xp.namespace(p, q, g)
    dp, up = backend.linalg.eigh(p)
    dq, uq = backend.linalg.eigh(q)
    products = dp[..., :, None] * dq[..., None, :]
    floor = 10.0 * xp.eps(g) * products[..., -1:, -1:] + float(backend.finfo(g.dtype).tiny) ** 0.5
    shifted = products + xp.asarray_like(xp.expand(damping, 2), products)
    return up @ ((xp.adjoint(up) @ g @ uq) / backend.maximum(shifted, floor)) @ xp.adjoint(uq)


@covers("P26")
@factorization
class SVD(Multilinear, Gauged):
    """W = U diag(s) V^H with orthonormal U, V and a free real or complex vector s.

    Parameters
    ----------
    left : array (..., m, r)
        U, orthonormal columns.
    values : array (..., r)
        s; during optimization neither sorted nor positive.
    right : array (..., n, r)
        V, orthonormal columns.

    Notes
    -----
    Source: the diagonal-core form that :cite:`survey2026sp`, section V-E, compares with `PoLAR`. Its
    gauge group is finite up to phases: columns of U and V may change sign together.
    """

    left: Array
    values: Array
    right: Array

    spaces = (STIEFEL, FLAT, STIEFEL)
    ndims = (2, 1, 2)

    @property
    def shape(self):
        return self.left.shape[-2], self.right.shape[-2]

    @property
    def rank(self):
        return self.values.shape[-1]

    @classmethod
    def shapes(cls, shape, rank):
        return (shape[0], rank), (rank,), (shape[1], rank)

    @classmethod
    def from_product(cls, left, right):
        u, s, v = thin_svd(left, right)
        return cls(u, xp.asarray_like(s, u), v)

    def product(self):
        return self.left * self.values[..., None, :], self.right

    def dense(self):
        return (self.left * self.values[..., None, :]) @ xp.adjoint(self.right)

    def apply(self, x):
        return ((x @ self.right.conj()) * self.values[..., None, :]) @ self.left.mT

    def entries(self, rows, cols):
        return sampled_product(self.left * self.values[..., None, :], self.right, rows, cols)

    def partial(self, index, g):
        if index == 0:
            return (g @ self.right) * self.values.conj()[..., None, :]
        if index == 1:
            return (self.left.conj() * (g @ self.right)).sum(-2)
        return (xp.adjoint(g) @ self.left) * self.values[..., None, :]

    def pullback(self, g):
        gv = g @ self.right
        return SVD(
            gv * self.values.conj()[..., None, :],
            (self.left.conj() * gv).sum(-2),
            (xp.adjoint(g) @ self.left) * self.values[..., None, :],
        )

    def whiten(self, grad, damping=0.0):
        left_gram, right_gram = xp.gram(self.left), xp.gram(self.right)
        row, col = self.values[..., None, :], self.values[..., :, None]
        outer_left = col * right_gram * row.conj()
        outer_right = col.conj() * left_gram * row
        return SVD(
            xp.divide_psd(grad.left, outer_left, damping),
            xp.solve_psd(left_gram * right_gram.mT, grad.values[..., None], damping)[..., 0],
            xp.divide_psd(grad.right, outer_right, damping),
        )

    def gauge(self, q):
        signs = q.diagonal(0, -2, -1)[..., None, :]
        return SVD(self.left * signs, self.values, self.right * signs)

    def random_gauge(self, rng):
        signs = rng.choice((-1.0, 1.0), size=(*self.batch_shape, self.rank))
        return xp.asarray_like(np.eye(self.rank) * signs[..., None], self.left)
