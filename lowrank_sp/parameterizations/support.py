"""A sparse matrix with a fixed support, which every element of a batch may have of its own: SHiRA."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import xp
from ..constants import steps
from ..coverage import covers
from ..factors import Multilinear, factorization
from ..indexing import beside, draw, gather, scatter
from ..operators import Pattern
from ..rearrange import is_array, sample_entries
from ..spaces import FIXED, FLAT
from .bm import whole_product
from .sided import Arraywise, OfShape, zeros

__all__ = ["Sparse", "column_support", "largest_support", "uniform_support"]

Array = Any


def uniform_support(shape: tuple[int, int], count: int, seed: Any = None) -> np.ndarray:
    """``count`` places of a matrix drawn without repetition, as SLTrain does: ``row n + col``, increasing.

    Source: :cite:`han2024sltrain`.
    """
    _check_count(shape, count)
    return np.sort(np.random.default_rng(seed).choice(shape[0] * shape[1], int(count), replace=False))


def column_support(shape: tuple[int, int], columns: Any) -> np.ndarray:
    """All places of some columns, as LOST has them: ``row n + col``, increasing.

    Raises
    ------
    ValueError
        When there is no column, or one is out of range or repeated.
    """
    chosen = np.asarray(columns)
    if chosen.ndim != 1 or chosen.dtype.kind not in "iu" or len(np.unique(chosen)) != chosen.size or chosen.size == 0:
        raise ValueError(f"columns must be a list of different integers, got {columns}")
    if chosen.min() < 0 or chosen.max() >= shape[1]:
        raise ValueError(f"columns must lie in 0, ..., {shape[1] - 1}, got {columns}")
    return (np.arange(shape[0])[:, None] * shape[1] + np.sort(chosen)).reshape(-1)


def largest_support(scores: Any, count: int) -> np.ndarray:
    """The places of the ``count`` largest magnitudes of a matrix (..., m, n): ``row n + col``, increasing.

    With a weight as scores it is a mask of SHiRA, with a gradient one of RoSA.
    Source: :cite:`bhardwaj2024shira`, :cite:`nikdan2024rosa`.
    """
    values = np.abs(xp.to_numpy(scores))
    _check_count(values.shape[-2:], count)
    flat = values.reshape(*values.shape[:-2], -1)
    return np.sort(np.argpartition(flat, -int(count), -1)[..., -int(count) :], -1)


def values_at(g: Any, places: Array, width: int) -> Array:
    """The entries of a matrix with so many columns, or of anything with ``@``, at places ``row width + col``."""
    if is_array(g):
        return gather(g.reshape(*g.shape[:-2], -1), places)
    return sample_entries(g, places // width, places % width)


def _check_count(shape: Any, count: Any) -> None:
    if int(count) != count or not 1 <= count <= shape[0] * shape[1]:
        raise ValueError(f"count must be an integer from 1 to {shape[0] * shape[1]}, got {count}")


@covers("P52")
@factorization
class Sparse(Arraywise, Multilinear, OfShape):
    """W has free values at fixed places, and zeros elsewhere: SHiRA.

    Parameters
    ----------
    values : array (..., s)
    places : integer array (..., s)
        ``row n + col`` of every value, increasing; fixed. Every batch element may have its own.

    Notes
    -----
    The size of this form is the number of values s. `random` draws the places uniformly; `uniform_support`,
    `column_support` and `largest_support` make others. `from_product` takes the largest entries of the matrix,
    which is the nearest one with s entries. The shape belongs to the form: ``Sparse.for_shape((m, n))`` is what
    a point is an instance of. :cite:`survey2026sp` writes the method as a masked weight ``W0 o S``; what is
    trained are the masked entries. Source: :cite:`bhardwaj2024shira`.

    Examples
    --------
    >>> Sparse.for_shape((2, 2))(np.array([5.0, 6.0]), np.array([1, 2])).dense().tolist()
    [[0.0, 5.0], [6.0, 0.0]]
    """

    values: Array
    places: Array

    ndims = (1, 1)
    spaces = (FLAT, FIXED)
    zeros = ("values",)
    universal = False

    @property
    def rank(self):
        return min(*self.shape, self.values.shape[-1])

    @classmethod
    def shapes(cls, shape, rank):
        if rank > shape[0] * shape[1]:
            raise ValueError(f"a {shape[0]} x {shape[1]} matrix has {shape[0] * shape[1]} entries, got {rank}")
        return (rank,), (rank,)

    @classmethod
    def constants(cls, shape, rank, rng, batch):
        return {"places": draw(rng, shape[0] * shape[1], rank, batch)}

    @classmethod
    def from_product(cls, left, right, rank=None):
        w = left @ xp.adjoint(right)
        places = largest_support(w, left.shape[-1] if rank is None else rank)
        point = cls.for_shape(w.shape[-2:])(beside(places, w), beside(places, w))
        return point.with_array(0, point.partial(0, w))

    def product(self):
        return whole_product(self)

    def dense(self):
        m, n = self.shape
        grid = scatter(self.values, self.places, m * n)
        return grid.reshape(*grid.shape[:-1], m, n)

    def _lines(self) -> tuple[Array, Array]:
        """Rows and columns of the places in a block diagonal of the whole batch, in one line."""
        (m, n), s = self.shape, self.places.shape[-1]
        places = self.places.reshape(-1, s)
        block = steps(places.shape[0], self.values)[:, None]
        return (places // n + block * m).reshape(-1), (places % n + block * n).reshape(-1)

    def apply(self, x):
        (m, n), batch = self.shape, self.batch_shape
        columns = x.reshape(*batch, -1, n).mT
        count = int(np.prod(batch))
        pattern = Pattern(*self._lines(), (count * m, count * n))
        out = pattern.multiply(self.values.reshape(-1), columns.reshape(count * n, -1), False)
        return out.reshape(*batch, m, -1).mT.reshape(*x.shape[:-1], m)

    def entries(self, rows, cols):
        (m, n), s = self.shape, self.places.shape[-1]
        places = self.places.reshape(-1, s)
        block = steps(places.shape[0], self.values)[:, None] * (m * n)
        keys, wanted = (places + block).reshape(-1), (rows * n + cols) + block
        index = xp.namespace(keys, wanted).searchsorted(keys, wanted.reshape(-1))
        index = index * (index < keys.shape[0])
        found = self.values.reshape(-1)[index] * (keys[index] == wanted.reshape(-1))
        return found.reshape(*self.batch_shape, -1)

    def partial(self, index, g):
        if index == 1:
            return zeros(self.places)
        return values_at(g, self.places, self.shape[1])

    def pullback(self, g):
        return type(self)(self.partial(0, g), zeros(self.places))

    def _white(self, index, g, damping):
        return g / (1.0 + xp.expand(damping, 1))
