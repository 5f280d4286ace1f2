"""Thin factors scaled by vectors on the side of the outputs and in the middle: VeRA and Tied-LoRA."""

from __future__ import annotations

from typing import Any

from .. import xp
from ..coverage import covers
from ..factors import Multilinear, factorization
from ..spaces import FIXED, FLAT
from .bm import resized
from .outer import Outer
from .sided import FixedSide, Sided, Unconvertible, divide

__all__ = ["TiedLoRA", "VeRA"]

Array = Any


class _Scaled(Sided, Multilinear, Outer):
    """``diag(b) B diag(d) A^H``; the subclass says which of the four arrays move."""

    scales: Array
    left: Array
    values: Array
    right: Array

    ndims = (1, 2, 1, 2)
    sides = (0, 0, 0, 1)
    zeros = ("scales",)

    @property
    def rank(self):
        return min(self.values.shape[-1], *self.shape)

    @classmethod
    def shapes(cls, shape, rank):
        return (shape[0],), (shape[0], rank), (rank,), (shape[1], rank)

    def product(self):
        return self.scales[..., :, None] * self._gated(), self.right

    def _gated(self) -> Array:
        """B diag(d)."""
        return self.left * self.values[..., None, :]

    def _scaled(self) -> Array:
        """diag(b) B."""
        return self.scales[..., :, None] * self.left

    def _chained(self, index, cotangent):
        if index == 0:
            return (self._gated().conj() * cotangent).sum(-1)
        if index == 1:
            return self.scales.conj()[..., :, None] * cotangent * self.values.conj()[..., None, :]
        return (self._scaled().conj() * cotangent).sum(-2) if index == 2 else cotangent

    def _white(self, index, g, damping):
        gram = xp.gram(self.right)
        if index == 0:
            gated = self._gated()
            return divide(g, xp.namespace(g).real((gated @ gram * gated.conj()).sum(-1)), damping)
        if index == 1:
            return self._white_left(g, gram, damping)
        if index == 2:
            return xp.solve_psd(xp.gram(self._scaled()) * gram.mT, g[..., None], damping)[..., 0]
        return xp.divide_psd(g, xp.gram(self.product()[0]), damping)

    def _white_left(self, g: Array, gram: Array, damping: Any) -> Array:
        """Every row of B has the normal matrix ``|b_i|^2 diag(d) A^H A diag(d)^H``."""
        middle = self.values[..., :, None] * gram * self.values.conj()[..., None, :]
        values, vectors = xp.namespace(g).linalg.eigh(middle)
        weights = abs(self.scales * self.scales.conj())[..., :, None] * abs(values)[..., None, :]
        return divide(g @ vectors, weights, damping, ndim=2) @ xp.adjoint(vectors)


@covers("P61")
@factorization
class VeRA(_Scaled, FixedSide, Unconvertible):
    """W = diag(b) B diag(d) A^H with fixed random A and B.

    Parameters
    ----------
    scales : array (..., m)
        b; it vanishes at the start.
    left : array (..., m, r)
        B, fixed.
    values : array (..., r)
        d.
    right : array (..., n, r)
        A, fixed.

    Notes
    -----
    The scales stand on the side of the outputs, as in the published method; section IV-D of
    :cite:`survey2026sp` writes them on the other one. Layers that share A and B hold the same arrays.
    Source: :cite:`kopiczko2024vera`; equations (24)-(26) of :cite:`he2026unified`.

    Examples
    --------
    >>> VeRA.parameter_count((6, 5), 2)
    8
    """

    scales: Array
    left: Array
    values: Array
    right: Array

    spaces = (FLAT, FIXED, FLAT, FIXED)

    @property
    def fixed_side(self):
        return 1

    def fixed(self):
        return self.right

    def moving(self):
        return self.product()[0]

    def pull_moving(self, cotangent):
        both = self.left.conj() * cotangent
        scales = (both @ self.values.conj()[..., :, None])[..., 0]
        return scales, None, (self.scales.conj()[..., None, :] @ both)[..., 0, :], None


@covers("P62")
@factorization
class TiedLoRA(_Scaled):
    """W = diag(b) B diag(d) A^H, all of it trained: Tied-LoRA, whose layers share A and B.

    Parameters
    ----------
    scales : array (..., m)
        b, of the layer.
    left : array (..., m, r)
        B, which the layers of one type share.
    values : array (..., r)
        d, of the layer.
    right : array (..., n, r)
        A, which the layers of one type share.

    Notes
    -----
    The published configurations train all four, or freeze some of them: with A and B frozen it is `VeRA`. To share
    is up to whoever holds the arrays. `from_product` takes ones for both vectors.
    Source: :cite:`renduchintala2024tied`; section II-B of :cite:`he2026unified`.

    Examples
    --------
    >>> TiedLoRA.parameter_count((6, 5), 2)
    30
    """

    scales: Array
    left: Array
    values: Array
    right: Array

    @classmethod
    def from_product(cls, left, right, rank=None):
        left, right = resized(left, right, rank)
        ones = xp.namespace(left).ones_like
        return cls(ones(left[..., 0]), left, ones(left[..., 0, :]), right)
