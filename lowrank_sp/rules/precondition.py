"""Rules that change the metric: ScaledGD, RefLoRA and LoRA-Pro's horizontal projection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import xp
from ..coverage import covers
from ..factors import ByFactor
from ..parameterizations import BurerMonteiro
from .base import Mixing, Rule, mixed

__all__ = ["Horizontal", "LossDamped", "Refactored", "RefactoredScalar", "Scaled"]


def _scaled_gradient(point: Any, grad: Any, damping: Any) -> Any:
    """Gradient in the metric ``<a, b M>`` with M the block Gram matrices, on the manifold of the form.

    For an orthonormal factor U the tangent vector is ``(G + U S) M^{-1}`` with the symmetric S that makes its
    product with U skew: a Lyapunov equation in ``M^{-1}``, which is whitening applied to U itself.
    """
    scaled = point.whiten(grad, damping)
    if point.flat:
        return scaled
    if not isinstance(point, ByFactor):
        return point.project(scaled)
    probe = point.whiten(point, damping).arrays()
    arrays = list(scaled.arrays())
    for i, (space, u) in enumerate(zip(point.spaces, point.arrays(), strict=True)):
        if not space.linear:
            inverse, cross = xp.cross(u, probe[i]), xp.cross(u, arrays[i])
            s = xp.sylvester_psd(inverse, inverse, -(cross + xp.adjoint(cross)))
            arrays[i] = xp.add_times(arrays[i], u, s @ inverse)
    return type(scaled)(*arrays)


def _grams(point: Any) -> tuple[Any, Any]:
    return xp.gram(point.left), xp.gram(point.right)


def _divisors(px: Any, py: Any, damping: float) -> Any:
    """``(p + damping I)^{-1}`` of both matrices (2, ..., r, r), to multiply by where `xp.divide_psd` divides.

    One product for a factor instead of two. Where p is ill-conditioned that leaves a larger residual, but no larger
    error of the direction: that p is a rounded Gram matrix weighs more.
    """
    halves = xp.inverse_cholesky(xp.namespace(px, py).stack((px, py)), damping)
    return xp.adjoint(halves) @ halves


@covers("O04", "O05", "O06")
@dataclass(frozen=True)
class Scaled(Mixing):
    """Scaled gradient descent: ``grad_X (Y^H Y + damping I)^{-1}`` and so on for every block of the form.

    Parameters
    ----------
    damping : float
        Absolute, in the units of the Gram matrices; 0 means only the numerical floor of `xp.inv_psd`.
        A zero factor has a zero gradient partner, so its step is zero: the first step from
        ``(A Phi, 0)`` moves Y alone.

    Notes
    -----
    On orthonormal factors the result is the Riemannian gradient in the scaled metric.
    Source: :cite:`tong2021scaledgd`, equation (15) of :cite:`survey2026sp`; with ``damping > 0``
    ScaledGD(lambda) of :cite:`xu2023power`, and the preconditioner of :cite:`zhang2024riemannian`.
    """

    damping: float = 0.0

    @property
    def equivariant(self) -> bool:
        """Damping breaks it: ``P + damping I`` does not transform as the Gram matrix ``P`` does."""
        return self.damping == 0

    def init(self, point):
        if self.damping < 0:
            raise ValueError(f"damping must not be negative, got {self.damping}")
        return ()

    def mixes(self, form):
        return issubclass(form, BurerMonteiro)

    def products(self, grad, point):
        return _grams(point)

    def mix(self, products):
        over_x, over_y = _divisors(*products, self.damping)
        return (over_y, None), (over_x, None)

    def update(self, grad, state, point, loss=None):
        return _scaled_gradient(point, grad, self.damping), state

    def carry(self, state, old, new):
        return state


@dataclass(frozen=True)
class LossDamped(Rule):
    """ScaledGD with damping ``factor * sqrt(loss)``, the PrecGD rule for an over-estimated rank.

    Needs the loss, which a solver supplies. Source: :cite:`zhang2021precgd`.
    """

    factor: float = 0.5

    def init(self, point):
        if not self.factor > 0:
            raise ValueError(f"factor must be positive, got {self.factor}")
        return ()

    def update(self, grad, state, point, loss=None):
        if loss is None:
            raise ValueError("LossDamped needs the loss: call update(grad, state, point, loss=value)")
        return _scaled_gradient(point, grad, self.factor * loss**0.5), state

    def carry(self, state, old, new):
        return state


@covers("O07")
@dataclass(frozen=True)
class Refactored(Mixing):
    """RefLoRA: the gradient step of the balanced factorization, taken in the given one.

    With ``S`` the geometric mean of ``(X^H X)^{-1}`` and ``Y^H Y`` the direction is
    ``(grad_X S^{-1}, grad_Y S)``. At a zero factor ``S`` does not exist and the plain gradient is used.

    Source: :cite:`zhang2025reflora`; equations (18)-(19) of :cite:`survey2026sp`.
    """

    needs = (BurerMonteiro,)
    equivariant = True

    def init(self, point):
        return ()

    def mixes(self, form):
        return issubclass(form, BurerMonteiro)

    def products(self, grad, point):
        return _grams(point)

    def mix(self, products):
        s, s_inv = xp.riccati(*products)
        return (s_inv, None), (s, None)

    def update(self, grad, state, point, loss=None):
        return mixed(grad, point, self.mix(self.products(grad, point))), state

    def carry(self, state, old, new):
        return state


@covers("O08")
@dataclass(frozen=True)
class RefactoredScalar(Mixing):
    """RefLoRA-S: ``S`` replaced by ``||Y||_F / ||X||_F``, which removes the scalar gauge only.

    At a zero factor the plain gradient is used. Source: :cite:`zhang2025reflora`.
    """

    needs = (BurerMonteiro,)

    def init(self, point):
        return ()

    def mixes(self, form):
        return issubclass(form, BurerMonteiro)

    def products(self, grad, point):
        return tuple(xp.norm(a) for a in point.arrays())

    def mix(self, products):
        x, y = products
        zero = (x == 0) | (y == 0)
        if isinstance(x, np.generic):
            s = 0 * y + 1 if zero else y / x
        else:
            s = xp.namespace(x).where(zero, 0 * y + 1, y / (x + zero))
        return (1 / s, None), (s, None)

    def update(self, grad, state, point, loss=None):
        return mixed(grad, point, self.mix(self.products(grad, point))), state

    def carry(self, state, old, new):
        return state


@covers("O09", "O32")
@dataclass(frozen=True)
class Horizontal(Mixing):
    """LoRA-Pro: the factor step whose matrix step is the tangent projection of the full gradient.

    ``dX = (I - P_X) grad_X (Y^H Y)^{-1} + X M`` and ``dY = grad_Y (X^H X)^{-1} - Y M^H``; the matrix step
    is ``P_T(G)`` for every M, and the M that makes the step horizontal in the Euclidean metric,
    ``X^H dX = dY^H Y``, solves the r x r Sylvester equation
    ``X^H X M + M Y^H Y = (X^H X)^{-1} X^H grad_X``.

    Parameters
    ----------
    damping : float
        Added to both Gram matrices.

    Notes
    -----
    The sign of M in the second formula is the corrected one. The matrix step is gauge invariant to first
    order; the product ``dX dY^H`` that additive factor steps leave behind is not. Source: :cite:`wang2025lorapro`.
    """

    damping: float = 0.0
    needs = (BurerMonteiro,)

    def init(self, point):
        return ()

    def mixes(self, form):
        return issubclass(form, BurerMonteiro)

    def products(self, grad, point):
        return *_grams(point), xp.cross(point.left, grad.left)

    def mix(self, products):
        px, py, cross = products
        over_x, over_y = _divisors(px, py, self.damping)
        coefficients = over_x @ cross
        m = xp.sylvester_psd(px, py, coefficients)
        return (over_y, m - coefficients @ over_y), (over_x, -xp.adjoint(m))

    def update(self, grad, state, point, loss=None):
        px, py, cross = self.products(grad, point)
        left, right = (xp.divide_psd(g, p, self.damping) for g, p in ((grad.left, py), (grad.right, px)))
        coefficients = xp.solve_psd(px, cross, self.damping)
        m = xp.sylvester_psd(px, py, coefficients)
        along = m - xp.divide_psd(coefficients, py, self.damping), -xp.adjoint(m)
        return mixed(BurerMonteiro(left, right), point, ((None, along[0]), (None, along[1]))), state

    def carry(self, state, old, new):
        return state
