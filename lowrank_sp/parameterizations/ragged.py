"""Grids of low-rank blocks with a rank of its own for every block."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np

from .. import xp
from ..constants import identity
from ..coverage import covers
from ..factors import Configured, Multilinear, factorization
from ..rearrange import Tiling, is_array
from .bm import resized, thin_svd, whole_product
from .channels import Channels
from .sided import Arraywise

__all__ = ["RaggedGrid"]

Array = Any


class _Block(NamedTuple):
    """Where a block stands in the grid, and which columns of the factors it has."""

    row: int
    col: int
    columns: slice


@covers("P45")
@factorization
class RaggedGrid(Arraywise, Multilinear, Channels, Configured):
    """A grid of blocks ``X_ij Y_ij^H``, each with its own rank: Localized LoRA with ranks per block.

    Parameters
    ----------
    left : array (..., m / I, R)
        The X_ij of all blocks side by side, row of blocks by row of blocks; R is the sum of their ranks.
    right : array (..., n / J, R)
        The Y_ij.

    Notes
    -----
    ``RaggedGrid.of([[2, 0], [1, 3]])`` is a 2 x 2 grid with these ranks, and `RaggedGrid` itself has the ranks
    ``[[1, 1], [0, 1]]``; a zero leaves a block empty, so that block diagonals with their own ranks are among
    them. The size of this form multiplies all ranks. The parameters are ``(m / I + n / J) R``. A row of x
    meets every row and every column of blocks once, with ranks padded to the largest. `from_product` truncates the
    SVD of every block.
    Source: :cite:`barazandeh2025localized`, which allows for it but uses equal ranks (`BlockGrid`).

    Examples
    --------
    >>> form = RaggedGrid.of([[1, 0]])
    >>> form(np.ones((2, 1)), np.ones((1, 1))).dense().tolist()
    [[1.0, 0.0], [1.0, 0.0]]
    """

    left: Array
    right: Array

    universal = False

    @classmethod
    def of(cls, ranks: Any) -> type[RaggedGrid]:
        """The form with these ranks, one list per row of blocks.

        Raises
        ------
        ValueError
            When they are no matrix of integers, one is negative or all vanish.
        """
        table = np.array(ranks)
        if table.ndim != 2 or table.dtype.kind not in "iu" or (table < 0).any() or not table.any():
            raise ValueError(f"ranks must be a matrix of integers of at least 0, not all 0, got {ranks}")
        rows = tuple(tuple(int(k) for k in row) for row in table)
        return cls.configured("RaggedGrid" + "x".join("_".join(map(str, row)) for row in rows), rows)

    @classmethod
    def _ranks(cls) -> tuple[tuple[int, ...], ...]:
        return cls.settings[0] if cls.settings else ((1, 1), (0, 1))

    @classmethod
    def _tiling(cls, shape: tuple[int, int]) -> Tiling:
        rows, cols = len(cls._ranks()), len(cls._ranks()[0])
        if shape[0] % rows or shape[1] % cols:
            raise ValueError(f"{rows} x {cols} blocks must divide the shape, got {tuple(shape)}")
        return Tiling(rows, cols, shape[0] // rows, shape[1] // cols)

    @classmethod
    def _blocks(cls, total: int) -> list[_Block]:
        """The blocks that are not empty, when the factors have ``total`` columns."""
        ranks, blocks, start = cls._ranks(), [], 0
        size = total // sum(map(sum, ranks))
        for i, row in enumerate(ranks):
            for j, k in enumerate(row):
                if k:
                    blocks.append(_Block(i, j, slice(start, start + k * size)))
                    start += k * size
        return blocks

    @property
    def shape(self):
        ranks = self._ranks()
        return len(ranks) * self.left.shape[-2], len(ranks[0]) * self.right.shape[-2]

    @property
    def rank(self):
        return min(*self.shape, self.left.shape[-1])

    @classmethod
    def shapes(cls, shape, rank):
        tiling, most = cls._tiling(shape), max(map(max, cls._ranks()))
        if rank * most > min(tiling.height, tiling.width):
            raise ValueError(
                f"blocks of {tiling.height} x {tiling.width} have rank at most {min(tiling[2:])}, got {rank * most}"
            )
        total = rank * sum(map(sum, cls._ranks()))
        return (tiling.height, total), (tiling.width, total)

    @classmethod
    def from_product(cls, left, right, rank=None):
        shape, size = (left.shape[-2], right.shape[-2]), left.shape[-1] if rank is None else rank
        p, q = cls._tiling(shape)[2:]
        most = max(map(max, cls._ranks()))
        size = max(1, min(size, min(p, q) // most)) if rank is None else size
        total, parts = size * sum(map(sum, cls._ranks())), ([], [])
        for i, j, columns in cls._blocks(total):
            u, s, v = thin_svd(left[..., i * p : (i + 1) * p, :], right[..., j * q : (j + 1) * q, :])
            r = columns.stop - columns.start
            root = (s[..., :r] ** 0.5)[..., None, :]
            for side, a in zip(parts, resized(u[..., :r] * root, v[..., :r] * root, r), strict=True):
                side.append(a)
        return cls(*[xp.namespace(left, right).concatenate(side, -1) for side in parts])

    def product(self):
        return whole_product(self)

    def _own_blocks(self) -> list[_Block]:
        return self._blocks(self.left.shape[-1])

    @classmethod
    def _grid(cls) -> tuple[int, int]:
        """Numbers of rows and of columns of blocks."""
        return len(cls._ranks()), len(cls._ranks()[0])

    def _rows(self) -> list[slice]:
        """The columns that belong to every row of blocks, which follow one another."""
        size = self.left.shape[-1] // sum(map(sum, self._ranks()))
        ends = [0, *accumulate(size * sum(row) for row in self._ranks())]
        return [slice(a, b) for a, b in pairwise(ends)]

    def dense(self):
        eye = identity(self.shape[1], self.left)
        return self.apply(eye).mT

    def narrow(self):
        table = [[self.right[..., b.columns] for b in self._own_blocks() if b.col == j] for j in range(self._grid()[1])]
        return xp.adjoint(_padded(table, self.right[..., :1], -1))

    def widen(self):
        return _padded([[self.left[..., columns]] for columns in self._rows()], self.left[..., :1], -1)

    def mix(self, thin):
        """Channels come by columns of blocks and leave by rows of blocks."""
        table, used = [[] for _ in range(self._grid()[0])], [0] * self._grid()[1]
        for b in self._own_blocks():
            start, used[b.col] = used[b.col], used[b.col] + b.columns.stop - b.columns.start
            table[b.row].append(thin[..., b.col, start : used[b.col], :])
        return _padded(table, thin[..., 0, :1, :], -2)

    def entries(self, rows, cols):
        p, q = self.left.shape[-2], self.right.shape[-2]
        total = 0.0
        for b in self._own_blocks():
            inside = (rows // p == b.row) & (cols // q == b.col)
            pairs = self.left[..., rows % p, b.columns] * self.right[..., cols % q, b.columns].conj()
            total = total + pairs.sum(-1) * inside
        return total

    def partial(self, index, g):
        if index == 1:
            return self._products(xp.adjoint(g), self.left, 1)
        return self._products(g, self.right, 0)

    def _products(self, g: Any, factor: Array, side: int) -> Array:
        """``G_ij Y_ij`` of all blocks side by side, or for side 1 ``G_ij^H X_ij`` from the adjoint of G."""
        p, q = self.arrays()[side].shape[-2], factor.shape[-2]
        if is_array(g):

            def product(top, beside, columns):
                return g[..., top : top + p, beside : beside + q] @ factor[..., columns]
        else:
            whole = g @ self._spread(factor, 1 - side)

            def product(top, beside, columns):
                return whole[..., top : top + p, columns]

        places = [(b[side] * p, b[1 - side] * q, b.columns) for b in self._own_blocks()]
        return xp.namespace(factor).concatenate([product(*place) for place in places], -1)

    def _spread(self, factor: Array, axis: int) -> Array:
        """Every column at the height of its block, zeros elsewhere."""
        cat, count = xp.namespace(factor).concatenate, (len(self._ranks()), len(self._ranks()[0]))[axis]
        columns = []
        for b in self._own_blocks():
            part = factor[..., b.columns]
            columns.append(cat([part if k == b[axis] else 0 * part for k in range(count)], -2))
        return cat(columns, -1)

    def pullback(self, g):
        return type(self)(self.partial(0, g), self.partial(1, g))

    def _white(self, index, g, damping):
        other = self.arrays()[1 - index]
        parts = [xp.divide_psd(g[..., b.columns], xp.gram(other[..., b.columns]), damping) for b in self._own_blocks()]
        return xp.namespace(g).concatenate(parts, -1)


def _padded(table: list[list[Array]], one: Array, axis: int) -> Array:
    """The arrays of every list side by side along ``axis``, with zeros up to the longest; then all stacked before.

    ``one`` is what a single zero looks like.
    """
    backend = xp.namespace(one)
    zero = backend.zeros_like(one)
    sizes = [sum(a.shape[axis] for a in row) for row in table]
    wide = [row + [zero] * (max(sizes) - size) for row, size in zip(table, sizes, strict=True)]
    return backend.stack([backend.concatenate(row, axis) for row in wide], -3)
