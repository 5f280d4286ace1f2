"""The landing field of orthonormal factors, and the ways in which a point can move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .. import xp
from ..coverage import covers
from ..factors import ByFactor, Factors
from ..parameterizations import PoLAR
from ..spaces import FIXED, STIEFEL_QR
from .base import Mixing, Rule, mixed

__all__ = ["Canonical", "Landing", "retract", "retract_qr", "translate"]


def retract(point: Factors, direction: Factors, lr: Any, wrt: Sequence[int] | None = None) -> Factors:
    """Move every factor in its own space: the retraction that the form declares."""
    return point.retract(direction, lr, wrt)


def retract_qr(point: Factors, direction: Factors, lr: Any, wrt: Sequence[int] | None = None) -> Factors:
    """As `retract`, with the QR retraction for orthonormal factors."""
    arrays, moves = list(point.arrays()), direction.arrays()
    for i in range(len(arrays)) if wrt is None else wrt:
        space = point.spaces[i] if point.spaces[i].linear else STIEFEL_QR
        arrays[i] = space.retract(arrays[i], moves[i], xp.expand(lr, point.ndims[i]))
    return type(point)(*arrays)


def translate(point: Factors, direction: Factors, lr: Any, wrt: Sequence[int] | None = None) -> Factors:
    """Move every factor along a straight line, whatever its space: for retraction-free methods."""
    arrays, moves = list(point.arrays()), direction.arrays()
    for i in range(len(arrays)) if wrt is None else wrt:
        if point.spaces[i] is not FIXED:
            arrays[i] = xp.descend(arrays[i], moves[i], xp.expand(lr, point.ndims[i]))
    return type(point)(*arrays)


@covers("O13")
@dataclass(frozen=True)
class Canonical(Rule):
    """The gradient in the canonical metric of orthonormal factors, ``G - X G^H X``; others stay as they are.

    It is tangent. Before a Euclidean rule such as `Adam`, with a retraction behind it, which projects what that
    rule returns: the three steps of SteLLA. Source: :cite:`li2025stella`.
    """

    needs = (ByFactor,)

    def init(self, point):
        return ()

    def update(self, grad, state, point, loss=None):
        parts = zip(point.spaces, point.arrays(), grad.arrays(), strict=True)
        moved = [s.project(x, g) if s.linear else xp.add_times(g, x, xp.cross(g, x), -1.0) for s, x, g in parts]
        return type(point)(*moved), state

    def carry(self, state, old, new):
        return state


@covers("O12")
@dataclass(frozen=True)
class Landing(Mixing):
    """The landing field of orthonormal factors: a tangent part and a pull towards orthonormality.

    ``grad (X^H X) - X (grad^H X) + strength X (X^H X - I)``, written with r x r products only; the two
    parts are orthogonal.

    Parameters
    ----------
    penalty : float
        A pure number: ``strength = penalty * ||core||_F^2``, which has the units of the gradient.
    damping : float, optional
        If given, the gradient is first whitened by the Gram matrix of the core with this damping, which
        frees the step from the condition number; ``strength`` is then ``penalty`` itself.

    Notes
    -----
    The skew part carries no factor 1/2, as in the published code of :cite:`lion2025polar`.
    Source: :cite:`ablin2022landing`.
    """

    penalty: float = 0.5
    damping: float | None = None
    needs = (PoLAR,)

    def init(self, point):
        if not self.penalty > 0:
            raise ValueError(f"penalty must be positive, got {self.penalty}")
        return ()

    def mixes(self, form):
        return self.damping is None and issubclass(form, PoLAR)

    def products(self, grad, point):
        ends = [(xp.gram(x), xp.cross(g, x)) for x, g in ((point.left, grad.left), (point.right, grad.right))]
        return xp.inner(point.core, point.core), *ends[0], *ends[1]

    def mix(self, products):
        squared, *ends = products
        strength = self.penalty * (squared if self.damping is None else 1.0)
        left, right = ((p, xp.expand(strength, 2) * (p - xp.eye_like(p)) - c) for p, c in (ends[:2], ends[2:]))
        return left, (None, None), right

    def update(self, grad, state, point, loss=None):
        grad = grad if self.damping is None else point.whiten(grad, self.damping)
        return mixed(grad, point, self.mix(self.products(grad, point))), state

    def carry(self, state, old, new):
        return state
