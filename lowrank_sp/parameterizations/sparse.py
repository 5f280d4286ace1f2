"""Low rank plus a sparse part whose support is fixed and whose values are free."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import xp
from ..coverage import covers
from ..factors import ByFactor, Configured, Gauged, factorization
from ..operators import Pattern, SampledMatrix
from ..rearrange import locate, sample_entries
from .bm import BurerMonteiro, resized, sampled_product, whole_product
from .outer import Outer

__all__ = ["LowRankPlusSparse", "Support"]

Array = Any


class Support:
    """Positions in a matrix: constant, hashable by content, row-sorted and ready in the library of the data.

    Parameters
    ----------
    rows, cols : integer arrays (s,)
    shape : (m, n)

    Raises
    ------
    ValueError
        When there are no positions, their numbers differ, or one is out of range or repeated.
    """

    def __init__(self, rows: Any, cols: Any, shape: tuple[int, int]):
        rows, cols = np.asarray(xp.to_numpy(rows), np.int64), np.asarray(xp.to_numpy(cols), np.int64)
        m, n = (int(k) for k in shape)
        if rows.ndim != 1 or rows.shape != cols.shape or rows.size == 0:
            raise ValueError(f"rows and cols must be two lists of one positive length, got {rows.shape}, {cols.shape}")
        if rows.min() < 0 or cols.min() < 0 or rows.max() >= m or cols.max() >= n:
            raise ValueError(f"the support has positions outside of the shape ({m}, {n})")
        keys = np.unique(rows * n + cols)
        if keys.size != rows.size:
            raise ValueError(f"the support repeats {rows.size - keys.size} positions")
        self.shape, self.size = (m, n), int(keys.size)
        self._keys = keys
        self._patterns: dict[Any, Pattern] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Support) and self.shape == other.shape and np.array_equal(self._keys, other._keys)

    def __hash__(self) -> int:
        return hash((self.shape, self._keys.tobytes()))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_patterns": {}}

    def pattern(self, like: Array) -> Pattern:
        """The positions in row order, in the library and on the device of ``like``."""
        device = like.device if xp.is_torch(like) else None
        if device not in self._patterns:
            rows, cols = self._keys // self.shape[1], self._keys % self.shape[1]
            if device is not None:
                torch = xp.namespace(like)
                rows, cols = (torch.as_tensor(a, device=device) for a in (rows, cols))
            self._patterns[device] = Pattern(rows, cols, self.shape)
        return self._patterns[device]

    @property
    def rank(self) -> int:
        """The largest rank of a matrix with this support."""
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import structural_rank

        rows, cols = self._keys // self.shape[1], self._keys % self.shape[1]
        return int(structural_rank(csr_array((np.ones(self.size), (rows, cols)), shape=self.shape)))


_DIAGONALS: dict[tuple[int, int], Support] = {}  # torch.compile sees through a dict, not through lru_cache


def _diagonal(shape: tuple[int, int]) -> Support:
    """One position per row and per column at least: the diagonal, wrapped around the shorter side."""
    if shape not in _DIAGONALS:
        index = np.arange(max(shape))
        _DIAGONALS[shape] = Support(index % shape[0], index % shape[1], shape)
    return _DIAGONALS[shape]


@covers("P51")
@factorization
class LowRankPlusSparse(ByFactor, Outer, Configured, Gauged):
    """W = X Y^H + S with S sparse: RoSA. The support of S is fixed, its values are free.

    Parameters
    ----------
    left : array (..., m, r)
        X.
    right : array (..., n, r)
        Y.
    values : array (..., s)
        The entries of S, in row-major order of the support.

    Notes
    -----
    The support belongs to the form: ``LowRankPlusSparse.on(rows, cols, shape)`` is the form with one, and
    `LowRankPlusSparse` itself means the diagonal, wrapped around the shorter side. `from_product` leaves S
    zero. The matrix reaches the rank ``min(m, n, r + structural rank of S)``; the source (Proposition 4) bounds
    it by min(m, n) and shows no more than the bound. The gauge group is GL(r).

    Source: :cite:`nikdan2024rosa`; section IV-B of :cite:`survey2026sp`.

    Examples
    --------
    >>> form = LowRankPlusSparse.on([0], [1], (2, 2))
    >>> form(np.ones((2, 1)), np.ones((2, 1)), np.array([5.0])).dense().tolist()
    [[1.0, 6.0], [1.0, 1.0]]
    """

    left: Array
    right: Array
    values: Array

    ndims = (2, 2, 1)
    zeros = ("right", "values")

    @classmethod
    def on(cls, rows: Any, cols: Any, shape: tuple[int, int]) -> type[LowRankPlusSparse]:
        """The form whose sparse part has these positions, each at most once."""
        support = Support(rows, cols, shape)
        return cls.configured(f"LowRankPlusSparse{support.size}", support)

    @classmethod
    def support_for(cls, shape: tuple[int, int]) -> Support:
        """The support in a matrix of this shape.

        Raises
        ------
        ValueError
            When the support of the form belongs to another shape.
        """
        shape = int(shape[0]), int(shape[1])
        support = cls.settings[0] if cls.settings else _diagonal(shape)
        if support.shape != shape:
            raise ValueError(f"the support of this form belongs to the shape {support.shape}, got {shape}")
        return support

    @property
    def support(self) -> Support:
        return self.support_for(self.shape)

    @property
    def rank(self):
        return min(*self.shape, self.left.shape[-1] + self.support.rank)

    @classmethod
    def shapes(cls, shape, rank):
        return (shape[0], rank), (shape[1], rank), (cls.support_for(shape).size,)

    @classmethod
    def from_product(cls, left, right, rank=None):
        left, right = resized(left, right, rank)
        size = cls.support_for((left.shape[-2], right.shape[-2])).size
        zeros = xp.namespace(left).zeros_like(left[..., 0, :1])
        return cls(left, right, xp.namespace(left).concatenate([zeros] * size, -1))

    def product(self):
        return whole_product(self)

    def low_rank(self) -> BurerMonteiro:
        """The part ``X Y^H``."""
        return BurerMonteiro(self.left, self.right)

    def sparse(self) -> SampledMatrix:
        """The part S, as something that multiplies thin matrices."""
        return SampledMatrix(self.support.pattern(self.values), self.values)

    def dense(self):
        pattern = self.support.pattern(self.values)
        out = self.low_rank().dense()
        out[..., pattern.rows, pattern.cols] += self.values
        return out

    def apply(self, x):
        rows = x.reshape(*self.batch_shape, -1, x.shape[-1])
        out = self.low_rank().apply(rows) + (self.sparse() @ rows.mT).mT
        return out.reshape(*x.shape[:-1], -1)

    def entries(self, rows, cols):
        pattern = self.support.pattern(self.values)
        index, found = locate(rows, cols, (pattern.rows, pattern.cols), pattern.shape[1])
        return sampled_product(self.left, self.right, rows, cols) + self.values[..., index] * found

    def partial(self, index, g):
        if index < 2:
            return self.low_rank().partial(index, g)
        pattern = self.support.pattern(self.values)
        return sample_entries(g, pattern.rows, pattern.cols)

    def pullback(self, g):
        return type(self)(*[self.partial(i, g) for i in range(3)])

    def whiten(self, grad, damping=0.0):
        white = self.low_rank().whiten(grad.low_rank(), damping)
        return type(self)(*white.arrays(), grad.values / (1.0 + xp.expand(damping, 1)))

    def expansion(self, direction, wrt):
        orders = self.low_rank().expansion(direction.low_rank(), [i for i in wrt if i < 2])
        if 2 not in wrt:
            return orders
        alone = type(self)(0 * self.left, 0 * self.right, direction.values)
        return [[*orders[0], alone], *orders[1:]] if orders else [[alone]]

    def gauge(self, q):
        return type(self)(*self.low_rank().gauge(q).arrays(), self.values)

    def random_gauge(self, rng):
        return self.low_rank().random_gauge(rng)
