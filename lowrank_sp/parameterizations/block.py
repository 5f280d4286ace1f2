"""Grids and diagonals of independent low-rank blocks."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import xp
from ..constants import identity
from ..coverage import covers
from ..factors import Configured, Gauged, Multilinear, factorization
from ..rearrange import Tiling, as_blocks, is_array, tiles
from .bm import resized, thin_svd, whole_product
from .channels import Channels

__all__ = ["BlockDiagonal", "BlockGrid", "diagonal_products"]

Array = Any


def _counted(*counts: Any) -> tuple[int, ...]:
    """Positive integers, or a ``ValueError``."""
    if not all(int(k) == k and k >= 1 for k in counts):
        raise ValueError(f"the numbers of blocks must be positive integers, got {', '.join(map(str, counts))}")
    return tuple(int(k) for k in counts)


def _tiling(shape: tuple[int, int], rows: int, cols: int) -> Tiling:
    if shape[0] % rows or shape[1] % cols:
        raise ValueError(f"{rows} x {cols} blocks must divide the shape, got {tuple(shape)}")
    return Tiling(rows, cols, shape[0] // rows, shape[1] // cols)


def _fitting_size(tiling: Tiling, rank: int) -> int:
    if rank > min(tiling.height, tiling.width):
        raise ValueError(f"blocks of {tiling.height} x {tiling.width} have rank at most {min(tiling[2:])}, got {rank}")
    return rank


class _Blocks(Multilinear, Channels, Configured, Gauged):
    """Independent products ``X Y^H``, one per block; the gauge group is GL(r) in every block."""

    left: Array
    right: Array

    def pullback(self, g):
        return type(self)(self.partial(0, g), self.partial(1, g))

    def whiten(self, grad, damping=0.0):
        damping = xp.expand(damping, self.ndims[0] - 2)
        return type(self)(
            xp.divide_psd(grad.left, xp.gram(self.right), damping),
            xp.divide_psd(grad.right, xp.gram(self.left), damping),
        )

    def gauge(self, q):
        return type(self)(self.left @ q, self.right @ xp.adjoint(xp.namespace(q).linalg.inv(q)))

    def random_gauge(self, rng):
        r = self.left.shape[-1]
        noise = rng.standard_normal((*self.left.shape[:-2], r, r))
        return xp.asarray_like(np.eye(r) + 0.3 * noise, self.left)


@covers("P06", "P45")
@factorization
class BlockGrid(_Blocks):
    """A grid of blocks, block (i, j) equal to ``X_ij Y_ij^H``: Localized LoRA.

    Parameters
    ----------
    left : array (..., I, J, m / I, r)
        X_ij.
    right : array (..., I, J, n / J, r)
        Y_ij.

    Notes
    -----
    `BlockGrid` itself means a 2 x 2 grid; ``BlockGrid.of(I, J)`` is the form with another one. The size of this
    form is the rank r of each block, the same for all of them. The matrix reaches the rank
    ``min(m, n, I J r)``; the matrices of size r are a set of dimension ``I J r (m / I + n / J - r)``, and the
    gauge group is GL(r) for every block. `from_product` truncates the SVD of every block. One row of blocks for
    every attention head, ``BlockGrid.of(heads, 1)``, is the LoRA per head of :cite:`shunfoundation`.
    Source: :cite:`barazandeh2025localized`, equations (2) and (3), for square grids.

    Examples
    --------
    >>> rows = BlockGrid.of(2, 1)
    >>> rows(np.ones((2, 1, 1, 1)), np.array([[[[1.0], [2.0]]], [[[3.0], [4.0]]]])).dense().tolist()
    [[1.0, 2.0], [3.0, 4.0]]
    """

    left: Array
    right: Array

    ndims = (4, 4)
    universal = False

    @classmethod
    def of(cls, rows: int, cols: int) -> type[BlockGrid]:
        """The form with ``rows x cols`` blocks."""
        rows, cols = _counted(rows, cols)
        return cls.configured(f"BlockGrid{rows}x{cols}", rows, cols)

    @property
    def tiling(self) -> Tiling:
        return Tiling(*self.left.shape[-4:-1], self.right.shape[-2])

    @property
    def shape(self):
        i, j, p, q = self.tiling
        return i * p, j * q

    @property
    def rank(self):
        return min(*self.shape, self.tiling.rows * self.tiling.cols * self.left.shape[-1])

    @classmethod
    def shapes(cls, shape, rank):
        tiling = _tiling(shape, *(cls.settings or (2, 2)))
        r = _fitting_size(tiling, rank)
        return (*tiling[:3], r), (*tiling[:2], tiling.width, r)

    @classmethod
    def from_product(cls, left, right, rank=None):
        tiling = _tiling((left.shape[-2], right.shape[-2]), *(cls.settings or (2, 2)))
        i, j, p, q = tiling
        r = min(left.shape[-1], p, q) if rank is None else _fitting_size(tiling, rank)
        shaped = left.reshape(*left.shape[:-2], i, 1, p, -1), right.reshape(*right.shape[:-2], 1, j, q, -1)
        u, s, v = thin_svd(*shaped)
        root = (s[..., :r] ** 0.5)[..., None, :]
        return cls(*resized(u[..., :r] * root, v[..., :r] * root, r))

    def product(self):
        i, j, *_ = self.tiling
        if i * j * self.left.shape[-1] > min(self.shape):
            return whole_product(self)
        return _spread(self.left), _spread(self.right.swapaxes(-4, -3), flipped=True)

    def dense(self):
        blocks = (self.left @ xp.adjoint(self.right)).swapaxes(-3, -2)
        return blocks.reshape(*blocks.shape[:-4], *self.shape)

    def narrow(self):
        _, j, _, q = self.tiling
        right = xp.namespace(self.right).einsum("...ijqr->...jirq", self.right.conj())
        return right.reshape(*right.shape[:-4], j, -1, q)

    def widen(self):
        i, _, p, _ = self.tiling
        return self.left.swapaxes(-3, -2).reshape(*self.left.shape[:-4], i, p, -1)

    def mix(self, thin):
        """From the columns of blocks to their rows."""
        i, j, _, r = self.left.shape[-4:]
        moved = thin.reshape(*thin.shape[:-3], j, i, r, thin.shape[-1]).swapaxes(-4, -3)
        return moved.reshape(*thin.shape[:-3], i, j * r, thin.shape[-1])

    def entries(self, rows, cols):
        p, q = self.tiling[2:]
        x = self.left[..., rows // p, cols // q, rows % p, :]
        y = self.right[..., rows // p, cols // q, cols % q, :]
        return (x * y.conj()).sum(-1)

    def partial(self, index, g):
        if index == 0:
            return _tile_products(g, self.right, self.tiling)
        flipped = _tile_products(xp.adjoint(g), self.left.swapaxes(-4, -3), self.tiling.transposed)
        return flipped.swapaxes(-4, -3)


def _tile_products(g: Any, factors: Array, tiling: Tiling) -> Array:
    """``G_ij Y_ij`` of every tile: (..., I, J, p, r) from factors (..., I, J, q, r).

    Arrays are viewed as tiles and sparse matrices are moved to a diagonal of tiles; a linear operator, which
    cannot be cut, multiplies the factors of all tiles, ``I J r`` columns.
    """
    i, j, p, q = tiling
    r = factors.shape[-1]
    if is_array(g):
        return as_blocks(g, tiling) @ factors
    cut = tiles(g, tiling)
    if cut is not None:
        out = cut @ factors.reshape(*factors.shape[:-4], i * j * q, r)
        return out.reshape(*out.shape[:-2], i, j, p, r)
    out = (g @ _spread(factors.swapaxes(-4, -3), flipped=True)).reshape(i, p, i, j, r)
    return xp.namespace(out).einsum("ipijr->ijpr", out)


def _spread(factors: Array, flipped: bool = False) -> Array:
    """Factors (..., I, J, p, r) as a matrix (..., I p, I J r): column block (i, j) fills row block i alone.

    With ``flipped`` they are (..., J, I, q, r), and the column blocks stay in the order (i, j).
    """
    i, j, p, r = factors.shape[-4:]
    eye = identity(i, factors)
    full = factors.swapaxes(-3, -2)[..., :, :, None, :, :] * eye[:, None, :, None, None]  # (..., i, p, i', j, r)
    if flipped:
        full = full.swapaxes(-3, -2)
    return full.reshape(*factors.shape[:-4], i * p, i * j * r)


@covers("P44")
@factorization
class BlockDiagonal(_Blocks):
    """Low-rank blocks ``X_i Y_i^H`` on the diagonal: MELoRA.

    Parameters
    ----------
    left : array (..., k, m / k, r)
        X_i.
    right : array (..., k, n / k, r)
        Y_i.

    Notes
    -----
    `BlockDiagonal` itself means two blocks; ``BlockDiagonal.of(k)`` is the form with k. The size of this form is
    the rank r of each block: the matrix has rank k r, at the parameter count (m + n) r of one of rank r. The
    matrices of size r are a set of dimension ``r (m + n - k r)``; the gauge group is GL(r) for every block.
    `from_product` drops what is off the diagonal. Source: :cite:`ren2024melora`.

    Examples
    --------
    >>> BlockDiagonal(np.ones((2, 1, 1)), np.ones((2, 2, 1))).dense().tolist()
    [[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]
    """

    left: Array
    right: Array

    ndims = (3, 3)
    universal = False

    @classmethod
    def of(cls, count: int) -> type[BlockDiagonal]:
        """The form with ``count`` blocks."""
        (count,) = _counted(count)
        return cls.configured(f"BlockDiagonal{count}", count)

    @property
    def tiling(self) -> Tiling:
        return Tiling(self.left.shape[-3], *self.left.shape[-3:-1], self.right.shape[-2])

    @property
    def shape(self):
        k, _, p, q = self.tiling
        return k * p, k * q

    @property
    def rank(self):
        return min(*self.shape, self.tiling.rows * self.left.shape[-1])

    @classmethod
    def shapes(cls, shape, rank):
        k = cls.settings[0] if cls.settings else 2
        tiling = _tiling(shape, k, k)
        r = _fitting_size(tiling, rank)
        return (k, tiling.height, r), (k, tiling.width, r)

    @classmethod
    def from_product(cls, left, right, rank=None):
        k = cls.settings[0] if cls.settings else 2
        tiling = _tiling((left.shape[-2], right.shape[-2]), k, k)
        r = min(left.shape[-1], *tiling[2:]) if rank is None else _fitting_size(tiling, rank)
        u, s, v = thin_svd(*(a.reshape(*a.shape[:-2], k, -1, a.shape[-1]) for a in (left, right)))
        root = (s[..., :r] ** 0.5)[..., None, :]
        return cls(*resized(u[..., :r] * root, v[..., :r] * root, r))

    def product(self):
        return _scatter(self.left), _scatter(self.right)

    def dense(self):
        k, _, p, q = self.tiling
        blocks = (self.left @ xp.adjoint(self.right))[..., :, :, None, :]
        eye = identity(k, blocks)
        full = blocks * eye[:, None, :, None]
        return full.reshape(*full.shape[:-4], k * p, k * q)

    def narrow(self):
        return xp.adjoint(self.right)

    def widen(self):
        return self.left

    def mix(self, thin):
        """The blocks do not meet."""
        return thin

    def entries(self, rows, cols):
        p, q = self.tiling[2:]
        x = self.left[..., rows // p, rows % p, :]
        y = self.right[..., cols // q, cols % q, :]
        return (x * y.conj()).sum(-1) * (rows // p == cols // q)

    def partial(self, index, g):
        if index == 0:
            return diagonal_products(g, self.right, self.tiling)
        return diagonal_products(xp.adjoint(g), self.left, self.tiling.transposed)


def diagonal_products(g: Any, factors: Array, tiling: Tiling) -> Array:
    """``G_ii Y_i`` of every block: (..., k, p, r) from factors (..., k, q, r)."""
    k, _, p, q = tiling
    if is_array(g):
        blocks = xp.namespace(g).einsum("...iipq->...ipq", as_blocks(g, tiling))
        return blocks @ factors
    cut = tiles(g, tiling, diagonal=True)
    if cut is not None:
        out = cut @ factors.reshape(*factors.shape[:-3], k * q, -1)
        return out.reshape(*out.shape[:-2], k, p, -1)
    out = (g @ _scatter(factors)).reshape(k, p, k, -1)
    return xp.namespace(out).einsum("kpkr->kpr", out)


def _scatter(blocks: Array) -> Array:
    """(..., k, p, r) to the block diagonal (..., k p, k r)."""
    k, p, r = blocks.shape[-3:]
    eye = identity(k, blocks)
    full = blocks[..., :, :, None, :] * eye[:, None, :, None]
    return full.reshape(*blocks.shape[:-3], k * p, k * r)
