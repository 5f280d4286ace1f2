"""Three-factor forms with a full or a diagonal core: what all of them share, and the flat ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import xp
from ..constants import identity
from ..coverage import covers
from ..factors import Gauged, Multilinear, factorization
from .bm import resized, sampled_product
from .outer import Outer

__all__ = ["Core", "CoreImage", "DiagonalCore", "WithCore", "WithValues", "orthonormal_core", "whiten_core"]

Array = Any


class CoreImage(Outer):
    """The matrix ``left core right^H``, whatever its differential."""

    left: Array
    core: Array
    right: Array

    zeros = ("core",)
    thin = True

    @property
    def rank(self):
        return min(*self.core.shape[-2:], *self.shape)

    @classmethod
    def shapes(cls, shape, rank):
        return (shape[0], rank), (rank, rank), (shape[1], rank)

    def product(self):
        return self.left @ self.core, self.right

    def dense(self):
        return (self.left @ self.core) @ xp.adjoint(self.right)

    def apply(self, x):
        return (x @ self.right.conj()) @ self.core.mT @ self.left.mT

    def entries(self, rows, cols):
        return sampled_product(self.left @ self.core, self.right, rows, cols)


def orthonormal_core(left: Array, right: Array, rank: int | None) -> tuple[Array, Array, Array]:
    """``(U, S, V)`` with orthonormal U and V and ``U S V^H = left right^H``, resized to ``rank``."""
    left, right = resized(left, right, rank)
    backend = xp.namespace(left, right)
    ql, rl = backend.linalg.qr(left)
    qr, rr = backend.linalg.qr(right)
    return ql, rl @ xp.adjoint(rr), qr


class WithCore(CoreImage, Multilinear):
    """``left core right^H`` as a function of three independent factors, wherever they live."""

    def partial(self, index, g):
        if index == 0:
            return (g @ self.right) @ xp.adjoint(self.core)
        if index == 1:
            return xp.adjoint(self.left) @ (g @ self.right)
        return (xp.adjoint(g) @ self.left) @ self.core

    def pullback(self, g):
        gv = g @ self.right
        return type(self)(
            gv @ xp.adjoint(self.core),
            xp.adjoint(self.left) @ gv,
            (xp.adjoint(g) @ self.left) @ self.core,
        )

    def whiten(self, grad, damping=0.0):
        left_gram, right_gram = xp.gram(self.left), xp.gram(self.right)
        outer_left = self.core @ right_gram @ xp.adjoint(self.core)
        outer_right = xp.adjoint(self.core) @ left_gram @ self.core
        return type(self)(
            xp.divide_psd(grad.left, outer_left, damping),
            whiten_core(left_gram, right_gram, grad.core, damping),
            xp.divide_psd(grad.right, outer_right, damping),
        )


def whiten_core(p: Array, q: Array, g: Array, damping: Any) -> Array:
    """Solve ``p x q + damping x = g`` for Hermitian PSD ``p`` and ``q``."""
    if xp.is_remote(g) and isinstance(damping, (float, int)) and damping == 0:
        # Eigenvectors would make the host wait for the device; two divisions do not.
        return xp.divide_psd(xp.adjoint(xp.divide_psd(xp.adjoint(g), p)), q)
    backend = xp.namespace(p, q, g)
    dp, up = backend.linalg.eigh(p)
    dq, uq = backend.linalg.eigh(q)
    products = dp[..., :, None] * dq[..., None, :]
    floor = 10.0 * xp.eps(g) * products[..., -1:, -1:] + float(backend.finfo(g.dtype).tiny) ** 0.5
    shifted = backend.maximum(shift(products, damping), floor)
    return up @ ((xp.adjoint(up) @ g @ uq) / shifted) @ xp.adjoint(uq)


def shift(values: Array, damping: Any, ndim: int = 2) -> Array:
    """``values + damping``, which is a number or an array (...); a number is not copied to the device."""
    if isinstance(damping, (float, int)):
        return values + damping
    return values + xp.asarray_like(xp.expand(damping, ndim), values)


class WithValues(Multilinear, Outer):
    """``left diag(values) right^H``, wherever the factors live."""

    left: Array
    values: Array
    right: Array

    ndims = (2, 1, 2)
    zeros = ("values",)
    thin = True

    @property
    def rank(self):
        return min(self.values.shape[-1], *self.shape)

    @classmethod
    def shapes(cls, shape, rank):
        return (shape[0], rank), (rank,), (shape[1], rank)

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
        return type(self)(
            gv * self.values.conj()[..., None, :],
            (self.left.conj() * gv).sum(-2),
            (xp.adjoint(g) @ self.left) * self.values[..., None, :],
        )

    def whiten(self, grad, damping=0.0):
        left_gram, right_gram = xp.gram(self.left), xp.gram(self.right)
        row, col = self.values[..., None, :], self.values[..., :, None]
        outer_left = col * right_gram * row.conj()
        outer_right = col.conj() * left_gram * row
        return type(self)(
            xp.divide_psd(grad.left, outer_left, damping),
            xp.solve_psd(left_gram * right_gram.mT, grad.values[..., None], damping)[..., 0],
            xp.divide_psd(grad.right, outer_right, damping),
        )


@covers("P29", "P30")
@factorization
class Core(WithCore, Gauged):
    """W = X C Y^H with flat factors and a full core: MoSLoRA's mixer, the core space of FLoRA.

    Parameters
    ----------
    left : array (..., m, r1)
        X.
    core : array (..., r1, r2)
        C; square when the form is asked for a rank.
    right : array (..., n, r2)
        Y.

    Notes
    -----
    The gauge group is GL(r1) x GL(r2); ``gauge`` uses one element on both sides. The matrices are those of
    `BurerMonteiro`: the core adds parameters, not matrices, and changes how they are reached.
    Source: :cite:`wu2024moslora`, :cite:`si2024flora`; sections II-C and II-D of :cite:`he2026unified`, whose
    DenseLoRA and LoRA-SB share or freeze the outer factors.
    """

    left: Array
    core: Array
    right: Array

    @classmethod
    def from_product(cls, left, right, rank=None):
        """The identity in the middle."""
        left, right = resized(left, right, rank)
        backend = xp.namespace(left, right)
        eye = identity(left.shape[-1], left)
        return cls(left, eye + backend.zeros_like(left[..., :1, :1]), right)

    def gauge(self, q):
        inverse = xp.namespace(q).linalg.inv(q)
        return Core(self.left @ q, inverse @ self.core @ xp.adjoint(inverse), self.right @ q)

    def random_gauge(self, rng):
        r = self.core.shape[-1]
        return xp.asarray_like(np.eye(r) + 0.3 * rng.standard_normal((*self.batch_shape, r, r)), self.left)


@covers("P08", "P23")
@factorization
class DiagonalCore(WithValues, Gauged):
    """W = X diag(s) Y^H with flat factors: the gated form of AdaLoRA, SoRA and their kin.

    Parameters
    ----------
    left : array (..., m, r)
        X.
    values : array (..., r)
        s; a zero switches its component off.
    right : array (..., n, r)
        Y.

    Notes
    -----
    ``gauge`` rescales columns: ``(X D, s / |d|^2, Y D)``. Penalties on s or on the orthogonality of the
    factors, and rank policies, are no part of the form; `SVD` has the same matrices with orthonormal factors.
    Source: :cite:`zhang2023adalora`, :cite:`ding2023sora`.
    """

    left: Array
    values: Array
    right: Array

    @classmethod
    def from_product(cls, left, right, rank=None):
        """All gates at one."""
        left, right = resized(left, right, rank)
        return cls(left, xp.namespace(left, right).ones_like(left[..., 0, :]), right)

    def gauge(self, q):
        d = q.diagonal(0, -2, -1)
        column = d[..., None, :]
        return DiagonalCore(self.left * column, self.values / (d * d.conj()), self.right * column)

    def random_gauge(self, rng):
        r = self.values.shape[-1]
        scales = rng.choice((-1.0, 1.0), size=(*self.batch_shape, r)) * rng.uniform(0.5, 2.0, (*self.batch_shape, r))
        return xp.asarray_like(np.eye(r) * scales[..., None], self.left)
