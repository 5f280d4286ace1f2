"""A product of directions with one common strength: DeLoRA."""

from __future__ import annotations

from typing import Any

from .. import xp
from ..coverage import covers
from ..factors import factorization
from ..spaces import FIXED, FLAT
from .bm import BurerMonteiro
from .outer import Outer
from .sided import Sided, Unconvertible, divide

__all__ = ["DeLoRA"]

Array = Any


@covers("P92", "D45")
@factorization
class DeLoRA(Sided, Unconvertible, Outer):
    """W = (l / r) sum_i x_i y_i^H diag(w) / (|x_i| |y_i|): directions, and a strength apart from them.

    Parameters
    ----------
    left, right : arrays (..., m, r) and (..., n, r)
        The x_i and y_i, of which only the directions matter.
    strength : array (..., 1)
        l.
    norms : array (..., n)
        w, fixed: the norms of the columns of the pretrained weight.

    Notes
    -----
    ``||W||_2 <= l max(w)``, as every term has norm one before w. The survey scales with one norm of the whole
    weight, which is w with equal entries; the published code has one for every input. Vectors that vanish are
    divided by the smallest number that is safe. ``whiten`` treats the terms as independent and w as one number.
    Source: :cite:`bini2025delora`; equations (69)-(70) of :cite:`he2026unified`, whose bound lacks the norm.

    Examples
    --------
    >>> import numpy as np
    >>> point = DeLoRA(np.array([[3.0], [4.0]]), np.array([[2.0]]), np.array([5.0]), np.array([1.0]))
    >>> point.dense().tolist()
    [[3.0], [4.0]]
    """

    left: Array
    right: Array
    strength: Array
    norms: Array

    ndims = (2, 2, 1, 1)
    spaces = (FLAT, FLAT, FLAT, FIXED)
    sides = (0, 1, 0, 1)
    zeros = ("strength",)
    polynomial = False

    @property
    def rank(self):
        return min(self.left.shape[-1], *self.shape)

    @classmethod
    def shapes(cls, shape, rank):
        return (shape[0], rank), (shape[1], rank), (1,), (shape[1],)

    def _directions(self) -> tuple[Array, Array]:
        return _unit(self.left), _unit(self.right)

    def product(self):
        # One factor for every column, so that autograd keeps no other array of this size than the result.
        share = self.strength[..., None, :] / self.left.shape[-1] / _length(self.left)
        return self.left * share, self.norms[..., :, None] * _unit(self.right)

    def _chained(self, index, cotangent):
        left, right = self._directions()
        r = self.left.shape[-1]
        if index == 2:
            return (left.conj() * cotangent).sum((-2, -1))[..., None] / r
        if index == 1:
            return _tangent(right, self.norms.conj()[..., :, None] * cotangent, _length(self.right))
        return _tangent(left, self.strength.conj()[..., None, :] / r * cotangent, _length(self.left))

    def _white(self, index, g, damping):
        left, right = self.product()
        if index == 2:
            unit = BurerMonteiro(self._directions()[0] / left.shape[-1], right).dense()
            return divide(g, xp.inner(unit, unit, 2)[..., None], damping)
        other = right if index == 0 else self.norms[..., :, None] / self.norms.shape[-1] ** 0.5
        size = abs(self.strength / left.shape[-1])[..., None, :] / _length((self.left, self.right)[index])
        return divide(g, size**2 * (abs(other) ** 2).sum(-2)[..., None, :], damping, ndim=2)

    def expansion(self, direction, wrt):
        moves = [d if i in wrt else 0 * d for i, d in enumerate(direction.arrays())]
        left, right = self.product()
        units, r = self._directions(), left.shape[-1]
        row = self.strength[..., None, :] / r
        dl = row * _tangent(units[0], moves[0], _length(self.left)) + moves[2][..., None, :] / r * units[0]
        dr = self.norms[..., :, None] * _tangent(units[1], moves[1], _length(self.right))
        return [[BurerMonteiro(dl, right), BurerMonteiro(left, dr)]]


def _length(a: Array) -> Array:
    """Norms of the columns, away from zero."""
    tiny = float(xp.namespace(abs(a)).finfo(abs(a).dtype).tiny) ** 0.5
    return xp.square(a).sum(-2)[..., None, :] ** 0.5 + tiny


def _unit(a: Array) -> Array:
    return a / _length(a)


def _tangent(unit: Array, change: Array, length: Array) -> Array:
    """How a direction changes with its vector, which is its own adjoint."""
    along = xp.namespace(unit).real((unit.conj() * change).sum(-2))[..., None, :]
    return (change - unit * along) / length
