"""Three-factor forms with orthonormal outer factors: diagonal core (SVD) and full core (PoLAR)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import xp
from ..coverage import covers
from ..factors import Gauged, factorization
from ..spaces import FLAT, STIEFEL
from .bm import resized, thin_svd
from .core import WithCore, WithValues, orthonormal_core

__all__ = ["SVD", "PoLAR"]

Array = Any


@covers("P24", "P25", "P98")
@factorization
class PoLAR(WithCore, Gauged):
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

    @classmethod
    def from_product(cls, left, right, rank=None):
        return cls(*orthonormal_core(left, right, rank))

    def gauge(self, q):
        return PoLAR(self.left @ q, xp.adjoint(q) @ self.core @ q, self.right @ q)

    def random_gauge(self, rng):
        r = self.rank
        return xp.asarray_like(xp.orthonormalize(rng.standard_normal((*self.batch_shape, r, r))), self.left)


@covers("P26")
@factorization
class SVD(WithValues, Gauged):
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

    @classmethod
    def from_product(cls, left, right, rank=None):
        u, s, v = thin_svd(*resized(left, right, rank))
        return cls(u, xp.asarray_like(s, u), v)

    def gauge(self, q):
        signs = q.diagonal(0, -2, -1)[..., None, :]
        return SVD(self.left * signs, self.values, self.right * signs)

    def random_gauge(self, rng):
        signs = rng.choice((-1.0, 1.0), size=(*self.batch_shape, self.rank))
        return xp.asarray_like(np.eye(self.rank) * signs[..., None], self.left)
