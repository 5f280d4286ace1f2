"""Low rank plus a sparse part whose places are an array of the point: single entries, or whole columns."""

from __future__ import annotations

from typing import Any

from .. import xp
from ..constants import identity
from ..coverage import covers
from ..factors import ByFactor, Configured, factorization
from ..indexing import draw, scatter
from ..spaces import FIXED, FLAT
from .bm import BurerMonteiro, whole_product
from .outer import Outer
from .sided import SidedSum, Unconvertible, zeros
from .support import Sparse, values_at

__all__ = ["LowRankPlusColumns", "LowRankPlusPlaced"]

Array = Any


@covers("P51", "P115")
@factorization
class LowRankPlusPlaced(ByFactor, Unconvertible, Configured, Outer):
    """W = X Y^H + S with free values of S at fixed places: RoSA, and SLTrain's layer as an update.

    Parameters
    ----------
    left, right : arrays (..., m, r) and (..., n, r)
        X and Y.
    values : array (..., s)
    places : integer array (..., s)
        ``row n + col`` of every value, increasing; fixed. Every batch element may have its own.

    Notes
    -----
    As `LowRankPlusSparse`, whose places belong to the form instead. There are ``s = round(f r (m + n))`` of them, f
    times as many as the factors have numbers, and at most m n; ``LowRankPlusPlaced.of(f)`` is the form with another
    f than 1. `random` draws the places uniformly. Source: :cite:`nikdan2024rosa`, :cite:`han2024sltrain`.

    Examples
    --------
    >>> LowRankPlusPlaced.of(0.5).parameter_count((6, 5), 2)
    33
    """

    left: Array
    right: Array
    values: Array
    places: Array

    ndims = (2, 2, 1, 1)
    spaces = (FLAT, FLAT, FLAT, FIXED)
    zeros = ("left", "values")

    @classmethod
    def of(cls, share: float) -> type[LowRankPlusPlaced]:
        """The form with ``share`` times as many values as its factors have."""
        if not share > 0:
            raise ValueError(f"share must be positive, got {share}")
        return cls.configured(f"LowRankPlusPlaced{float(share):g}", float(share))

    @property
    def rank(self):
        return min(*self.shape, self.left.shape[-1] + self.values.shape[-1])

    @classmethod
    def shapes(cls, shape, rank):
        share = cls.settings[0] if cls.settings else 1.0
        count = max(1, min(round(share * rank * sum(shape)), shape[0] * shape[1]))
        return (shape[0], rank), (shape[1], rank), (count,), (count,)

    @classmethod
    def constants(cls, shape, rank, rng, batch):
        return {"places": draw(rng, shape[0] * shape[1], cls.shapes(shape, rank)[2][0], batch)}

    def low_rank(self) -> BurerMonteiro:
        """The part ``X Y^H``."""
        return BurerMonteiro(self.left, self.right)

    def sparse(self) -> Sparse:
        """The part S."""
        return Sparse.for_shape(self.shape)(self.values, self.places)

    def product(self):
        return whole_product(self)

    def dense(self):
        m, n = self.shape
        grid = scatter(self.values, self.places, m * n)
        return self.left @ xp.adjoint(self.right) + grid.reshape(*grid.shape[:-1], m, n)

    def apply(self, x):
        return self.low_rank().apply(x) + self.sparse().apply(x)

    def entries(self, rows, cols):
        return self.low_rank().entries(rows, cols) + self.sparse().entries(rows, cols)

    def partial(self, index, g):
        if index < 2:
            return self.low_rank().partial(index, g)
        return values_at(g, self.places, self.shape[1]) if index == 2 else zeros(self.places)

    def pullback(self, g):
        return type(self)(*self.low_rank().pullback(g).arrays(), self.partial(2, g), zeros(self.places))

    def whiten(self, grad, damping=0.0):
        low = self.low_rank().whiten(grad.low_rank(), damping)
        return type(self)(*low.arrays(), grad.values / (1.0 + xp.expand(damping, 1)), grad.places)

    def expansion(self, direction, wrt):
        orders = self.low_rank().expansion(direction.low_rank(), [i for i in wrt if i < 2])
        if 2 not in wrt:
            return orders
        alone = Sparse.for_shape(self.shape)(direction.values, self.places)
        return [[*orders[0], alone], *orders[1:]] if orders else [[alone]]


@covers("P105", "P115")
@factorization
class LowRankPlusColumns(SidedSum, Unconvertible, Configured, Outer):
    """W = X Y^H with some of its columns free besides: the linear part of LOST's layer, as an update.

    Parameters
    ----------
    left, right : arrays (..., m, r) and (..., n, r)
        X and Y.
    values : array (..., m, c)
        What is added to the columns.
    columns : integer array (..., c)
        Their numbers, all different; fixed.

    Notes
    -----
    There are ``c = max(1, round(f r))`` columns, at most n; ``LowRankPlusColumns.of(f)`` is the form with another f
    than 1. The activation that the published layer puts between its factors is left out, so that there is a matrix.
    Source: :cite:`li2025lost`; section VI-B of :cite:`survey2026sp`.

    Examples
    --------
    >>> LowRankPlusColumns.parameter_count((6, 5), 2)
    34
    """

    left: Array
    right: Array
    values: Array
    columns: Array

    ndims = (2, 2, 2, 1)
    spaces = (FLAT, FLAT, FLAT, FIXED)
    sides = (0, 1, 0, 1)
    zeros = ("left", "values")

    @classmethod
    def of(cls, share: float) -> type[LowRankPlusColumns]:
        """The form with ``share`` times as many columns as ranks."""
        if not share > 0:
            raise ValueError(f"share must be positive, got {share}")
        return cls.configured(f"LowRankPlusColumns{float(share):g}", float(share))

    @property
    def rank(self):
        return min(*self.shape, self.left.shape[-1] + self.values.shape[-1])

    @classmethod
    def shapes(cls, shape, rank):
        share = cls.settings[0] if cls.settings else 1.0
        count = max(1, min(round(share * rank), shape[1]))
        return (shape[0], rank), (shape[1], rank), (shape[0], count), (count,)

    @classmethod
    def constants(cls, shape, rank, rng, batch):
        return {"columns": draw(rng, shape[1], cls.shapes(shape, rank)[3][0], batch)}

    def _indicator(self) -> Array:
        """The matrix (..., n, c) that picks the columns."""
        eye = identity(self.shape[1], self.right)
        return eye[self.columns].mT

    def product(self):
        cat = xp.namespace(self.left).concatenate
        return cat((self.left, self.values), -1), cat((self.right, self._indicator()), -1)

    def _orders(self, direction):
        cat, (left, right) = xp.namespace(self.left).concatenate, self.product()
        moves = cat((direction.left, direction.values), -1), cat((direction.right, 0 * self._indicator()), -1)
        return [left, moves[0]], [right, moves[1]]

    def _chained(self, index, cotangent):
        own = self.left.shape[-1]
        return cotangent[..., own:] if index == 2 else cotangent[..., :own]

    def _white(self, index, g, damping):
        if index == 2:
            return g / (1.0 + xp.expand(damping, 2))
        return xp.divide_psd(g, xp.gram(self.right if index == 0 else self.left), damping)
