"""One square matrix between fixed maps that compress the input and spread the output: MoRA."""

from __future__ import annotations

from math import isqrt
from typing import Any

import numpy as np

from .. import xp
from ..constants import identity, steps
from ..coverage import covers
from ..factors import Multilinear, factorization
from ..indexing import beside, gather, scatter
from ..rearrange import is_array
from ..spaces import FIXED, FLAT
from .bm import BurerMonteiro, whole_product
from .sided import Arraywise, OfShape, divide, zeros

__all__ = ["GroupedSquare", "RotatedSquare", "square_size"]

Array = Any


def square_size(shape: tuple[int, int], rank: int) -> int:
    """The side ``floor(sqrt((m + n) r))`` of the square matrix with the parameters of a LoRA of rank r.

    Raises
    ------
    ValueError
        If the rank is not a positive integer.
    """
    if int(rank) != rank or rank < 1:
        raise ValueError(f"rank must be a positive integer, got {rank}")
    return isqrt((shape[0] + shape[1]) * int(rank))


@covers("P54")
@factorization
class GroupedSquare(Arraywise, Multilinear):
    """W_ij = M[g_i, h_j]: MoRA with shared rows and columns.

    Parameters
    ----------
    square : array (..., k, k)
        M.
    row_groups : integer array (..., m)
        g, fixed: the row of M that every output copies.
    col_groups : integer array (..., n)
        h, fixed: the column of M to which every input is added.

    Notes
    -----
    The size of this form is k; `square_size` gives the one with the parameters of a LoRA. `random` and
    `from_product` take ``g_i = i mod k``, as the published code does. The input is added up in k groups, which
    costs no product, so ``apply`` takes k^2 per row. The rank reaches k; `from_product` takes the mean of W over
    every pair of groups, which is the nearest matrix. Source: :cite:`jiang2024mora`, its sharing of rows and
    columns.

    Examples
    --------
    >>> GroupedSquare(np.eye(2), np.array([0, 1, 0]), np.array([0, 1])).dense().tolist()
    [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    """

    square: Array
    row_groups: Array
    col_groups: Array

    ndims = (2, 1, 1)
    spaces = (FLAT, FIXED, FIXED)
    zeros = ("square",)
    universal = False

    @property
    def shape(self):
        return self.row_groups.shape[-1], self.col_groups.shape[-1]

    @property
    def rank(self):
        return min(self.square.shape[-1], *self.shape)

    @classmethod
    def shapes(cls, shape, rank):
        if rank > min(shape):
            raise ValueError(f"the square matrix must fit in {shape[0]} x {shape[1]}, got size {rank}")
        return (rank, rank), (shape[0],), (shape[1],)

    @classmethod
    def constants(cls, shape, rank, rng, batch):
        rows, cols = (np.arange(k) % rank for k in shape)
        shaped = [np.broadcast_to(a, (*batch, a.size)).copy() for a in (rows, cols)]
        return {"row_groups": shaped[0], "col_groups": shaped[1]}

    @classmethod
    def from_product(cls, left, right, rank=None):
        size = left.shape[-1] if rank is None else rank
        groups = cls.constants((left.shape[-2], right.shape[-2]), size, None, left.shape[:-2])
        start = cls(_room(left, right, size), *[beside(groups[k], left) for k in ("row_groups", "col_groups")])
        return cls(start.whiten(start.pullback(BurerMonteiro(left, right))).square, *start.arrays()[1:])

    def product(self):
        left, right = _indicator(self.row_groups, self.square), _indicator(self.col_groups, self.square)
        return left @ self.square, right

    def dense(self):
        return _columns(_columns(self.square, self.col_groups).mT, self.row_groups).mT

    def apply(self, x):
        return gather(scatter(x, self.col_groups, self.square.shape[-1]) @ self.square.mT, self.row_groups)

    def entries(self, rows, cols):
        flat = self.square.reshape(*self.square.shape[:-2], -1)
        index = self.row_groups[..., rows] * self.square.shape[-1] + self.col_groups[..., cols]
        return gather(flat, index)

    def partial(self, index, g):
        if index:
            return zeros(self.arrays()[index])
        size = self.square.shape[-1]
        if is_array(g):
            return _sums(_sums(g, self.col_groups, size).mT, self.row_groups, size).mT
        summed = g @ _indicator(self.col_groups, self.square)
        return _sums(summed.mT, self.row_groups, size).mT

    def pullback(self, g):
        return type(self)(*[self.partial(i, g) for i in range(3)])

    def _counts(self, size: int) -> Array:
        """How often every entry of M occurs in W."""
        counts = [scatter(1 + 0 * g, g, size) for g in (self.row_groups, self.col_groups)]
        return xp.asarray_like(counts[0][..., :, None] * counts[1][..., None, :], abs(self.square))

    def _white(self, index, g, damping):
        return divide(g, self._counts(self.square.shape[-1]), damping, ndim=2)


def _room(left: Array, right: Array, size: int) -> Array:
    """A zero square matrix beside the factors of a product, with their batch axes."""
    corner = left[..., :1, :1] * right[..., :1, :1]
    return xp.namespace(left, right).concatenate([0 * corner] * size, -2) + xp.asarray_like(np.zeros(size), left)


def _columns(a: Array, index: Array) -> Array:
    """Columns of (..., k, n) chosen by an index (s,) or (..., s)."""
    return gather(a, index if index.ndim == 1 else index[..., None, :])


def _sums(a: Array, index: Array, size: int) -> Array:
    """Columns of (..., k, n) added up in groups: (..., k, size)."""
    return scatter(a, index if index.ndim == 1 else index[..., None, :], size)


def _indicator(index: Array, like: Array) -> Array:
    """The matrix (..., n, k) with a one in the column that every row belongs to."""
    eye = identity(like.shape[-1], like)
    return eye[index]


@covers("P54")
@factorization
class RotatedSquare(Arraywise, Multilinear, OfShape):
    """Blocks ``M R_b`` with one M and fixed rotations R_b: MoRA with decoupled groups and rotations.

    Parameters
    ----------
    square : array (..., k, k)
        M; the size of this form is k, and `square_size` gives the one with the parameters of a LoRA.

    Notes
    -----
    The input is cut into b = 0, 1, ... groups of k, the last one filled up from the front; group b is turned by
    the angles ``b 10000^(-2 l / k)`` in the planes of the coordinates l and l + k // 2 and multiplied with M; the
    results follow one another, cut off or repeated to the m outputs. (An odd last coordinate is not turned.) So
    W is block diagonal where k divides m = n, and its rank reaches min(m, n). The shape belongs to the form:
    ``RotatedSquare.for_shape((m, n))`` is what a point is an instance of. Every row of W is a rotated row of M, so
    the nearest matrix is a mean of rows turned back. Source: :cite:`jiang2024mora`, its rotation operators.

    Examples
    --------
    >>> RotatedSquare.for_shape((4, 4))(np.array([[2.0]])).dense().tolist()[1]
    [0.0, 2.0, 0.0, 0.0]
    """

    square: Array

    zeros = ("square",)
    universal = False

    @property
    def rank(self):
        return min(self.shape)

    @classmethod
    def shapes(cls, shape, rank):
        if rank > min(shape):
            raise ValueError(f"the square matrix must fit in {shape[0]} x {shape[1]}, got size {rank}")
        return ((rank, rank),)

    @classmethod
    def from_product(cls, left, right, rank=None):
        form, size = cls.for_shape((left.shape[-2], right.shape[-2])), left.shape[-1] if rank is None else rank
        start = form(_room(left, right, size))
        return start.whiten(start.pullback(BurerMonteiro(left, right)))

    @property
    def _groups(self) -> int:
        return -(-self.shape[1] // self.square.shape[-1])

    def _places(self) -> tuple[Array, Array]:
        """For every output its place among those of the groups, and for every place its input."""
        m, n = self.shape
        places = self._groups * self.square.shape[-1]
        return steps(m, self.square) % places, steps(places, self.square) % n

    def _turned(self, x: Array, sign: float) -> Array:
        """Vectors (..., g, k) of all groups, turned forth or back."""
        k, backend = x.shape[-1], xp.namespace(x)
        half = k // 2
        groups, planes = (backend.asarray(steps(c, x), dtype=backend.float64) for c in (self._groups, half))
        angles = groups[:, None] * 10000.0 ** (planes * (-2 / k))
        cos, sin = (xp.asarray_like(a, x) for a in (backend.cos(angles), sign * backend.sin(angles)))
        a, b = x[..., :half], x[..., half : 2 * half]
        return backend.concatenate((a * cos - b * sin, b * cos + a * sin, x[..., 2 * half :]), -1)

    def _blocks(self) -> Array:
        """M R_b: (..., g, k, k)."""
        rows = self.square[..., :, None, :]
        groups = xp.namespace(rows).concatenate([rows] * self._groups, -2)
        return self._turned(groups, -1.0).swapaxes(-3, -2)

    def product(self):
        return whole_product(self)

    def dense(self):
        eye = identity(self.shape[1], self.square)
        return self.apply(eye).mT

    def apply(self, x):
        # Turned blocks of M in place of turned groups of x, of which there are more numbers where there are many rows.
        (m, n), blocks = self.shape, self._blocks()
        places = blocks.shape[-3] * blocks.shape[-1]
        cat = xp.namespace(x).concatenate
        filled = x if places == n else cat((x, x[..., : places - n]), -1)
        groups = filled.reshape(*x.shape[:-1], *blocks.shape[-3:-1]).swapaxes(-3, -2)
        out = (groups @ blocks.mT).swapaxes(-3, -2)
        out = out.reshape(*out.shape[:-2], places)
        return cat([out] * -(-m // places), -1)[..., :m]

    def entries(self, rows, cols):
        k, n = self.square.shape[-1], self.shape[1]
        places, blocks = rows % (self._groups * k), self._blocks()
        total = 0.0
        for shift in (0, n):  # the inputs at the front stand in the last group too
            inside = (cols + shift) // k == places // k
            total = total + blocks[..., places // k, places % k, (cols + shift) % k] * inside
        return total

    def partial(self, index, g):
        whole = g if is_array(g) else g @ identity(self.shape[1], self.square)
        (rows, cols), k = self._places(), self.square.shape[-1]
        spread = whole[..., cols]
        folded = scatter(spread.mT, rows, len(cols)).mT
        tiles = folded.reshape(*folded.shape[:-2], self._groups, k, self._groups, k)
        blocks = xp.namespace(tiles).einsum("...bpbq->...pbq", tiles)
        return self._turned(blocks, 1.0).sum(-2)

    def pullback(self, g):
        return type(self)(self.partial(0, g))

    def _white(self, index, g, damping):
        rows, k = self._places()[0], g.shape[-1]
        counts = scatter(xp.asarray_like(0 * rows + 1, abs(g)), rows % k, k)
        return divide(g, counts[:, None], damping, ndim=2)
