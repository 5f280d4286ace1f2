"""The embedded manifold of matrices of one fixed rank, as a form with its own retractions."""

from __future__ import annotations

from typing import Any

from .. import xp
from ..constants import identity
from ..coverage import covers
from ..factors import factorization
from ..spaces import FLAT, STIEFEL
from .bm import BurerMonteiro, thin_svd
from .core import CoreImage, orthonormal_core

__all__ = ["FixedRank", "orthographic"]

Array = Any


@covers("O10")
@factorization
class FixedRank(CoreImage):
    """W = U S V^H with orthonormal U, V and an invertible r x r core S.

    A tangent vector at W is ``U M V^H + U_p V^H + U V_p^H`` with ``U^H U_p = 0`` and ``V^H V_p = 0``; it is
    held in the same class as ``FixedRank(left=U_p, core=M, right=V_p)``, and with that reading ``inner`` is
    the Frobenius product of the matrices. ``pullback(G)`` is the coordinate vector of the tangent
    projection ``P_T(G)``.

    Parameters
    ----------
    left : array (..., m, r)
        U (or U_p).
    core : array (..., r, r)
        S (or M).
    right : array (..., n, r)
        V (or V_p).

    Notes
    -----
    ``retract`` is the metric projection (truncated SVD of a 2r x 2r core); see `orthographic` for the
    other one. Source: :cite:`vandereycken2013lrgeomcg`, :cite:`absil2012projection`.
    """

    left: Array
    core: Array
    right: Array

    spaces = (STIEFEL, FLAT, STIEFEL)
    polynomial = False

    @classmethod
    def from_product(cls, left, right, rank=None):
        return cls(*orthonormal_core(left, right, rank))

    def partial(self, index, g):
        return self.pullback(g).arrays()[index]

    def pullback(self, g):
        gv, gu = g @ self.right, xp.adjoint(g) @ self.left
        core = xp.adjoint(self.left) @ gv
        return FixedRank(gv - self.left @ core, core, gu - self.right @ xp.adjoint(core))

    def whiten(self, grad, damping=0.0):
        """Every block of the differential is an isometry here, so only the damping acts."""
        return grad.scale(1.0 / (1.0 + damping))

    def expansion(self, direction, wrt):
        """The first-order term only: the curve that a retraction follows is this one to first order."""
        return [[self.ambient(direction)]]

    def ambient(self, tangent: FixedRank) -> BurerMonteiro:
        """The tangent vector as a matrix of rank at most 2r."""
        cat = xp.namespace(self.left).concatenate
        return BurerMonteiro(
            cat((self.left @ tangent.core + tangent.left, self.left), -1),
            cat((self.right, tangent.right), -1),
        )

    def project(self, direction):
        return FixedRank(
            direction.left - self.left @ (xp.adjoint(self.left) @ direction.left),
            direction.core,
            direction.right - self.right @ (xp.adjoint(self.right) @ direction.right),
        )

    def retract(self, direction, lr, wrt=None):
        moved = direction.scale(-lr)
        cat = xp.namespace(self.left).concatenate
        step = self.ambient(moved)
        left = cat((self.left @ self.core + step.left[..., : self.rank], self.left), -1)
        u, s, v = thin_svd(left, step.right)
        r = self.rank
        core = s[..., :r, None] * identity(r, s)
        return FixedRank(u[..., :r], xp.asarray_like(core, u), v[..., :r])

    def transport(self, new, vector):
        return new.pullback(self.ambient(vector))


def orthographic(point: FixedRank, direction: FixedRank, lr: Any, wrt: Any = None) -> FixedRank:
    """The orthographic retraction ``N1 (S + M)^{-1} N2^H``: no SVD, one r x r inverse.

    With ``N1 = U (S + M) + U_p`` and ``N2 = V (S + M)^H + V_p`` for the step ``(U_p, M, V_p)``. Where
    ``S + M`` is close to singular the metric projection is used instead.
    Source: :cite:`absil2012projection`.
    """
    backend = xp.namespace(point.left)
    moved = direction.scale(-lr)
    core = point.core + moved.core
    if not bool((backend.linalg.cond(core) < 1e8).all()):
        return point.retract(direction, lr)
    ql, rl = backend.linalg.qr(point.left @ core + moved.left)
    qr, rr = backend.linalg.qr(point.right @ xp.adjoint(core) + moved.right)
    return FixedRank(ql, rl @ backend.linalg.solve(core, xp.adjoint(rr)), qr)
