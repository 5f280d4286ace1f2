"""Squared distances between points as measurements of their Gram matrix."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import indexing, xp
from ..operators import Pattern, SampledMatrix
from .checks import as_data, as_indices
from .ensembles import Ensemble

__all__ = ["DistanceEnsemble"]

Array = Any


class DistanceEnsemble(Ensemble):
    """``y_k = W_ii + W_jj - 2 Re W_ij`` for pairs (i, j): with ``W = X X^T`` the squared distances of the rows of X.

    Use it with `SymmetricBurerMonteiro`; one measurement costs as much as X has columns.

    Parameters
    ----------
    first, second : integer arrays (N,)
        The i and j, NumPy; no point with itself, and no pair twice in either order.
    points : int
    like : array, optional
        Whose library, device and floating type y has.

    Raises
    ------
    ValueError, TypeError
        For indices that are out of range, equal or repeated, or that differ in number.

    Notes
    -----
    ``A^* y`` is a Laplacian. The surrogate is classical scaling of the squared lengths of shortest paths, which stand
    in for unknown distances. Source: :cite:`torgerson1952mds`, :cite:`shang2003localization`.
    """

    def __init__(self, first: Any, second: Any, points: int, like: Any = None):
        i, j = as_indices(first, "first", points), as_indices(second, "second", points)
        if i.shape != j.shape:
            raise ValueError(f"first and second must have one length, got {i.shape[0]} and {j.shape[0]}")
        if (i == j).any():
            raise ValueError(f"first and second pair point {int(i[i == j][0])} with itself")
        low, high = np.minimum(i, j).astype(np.int64), np.maximum(i, j).astype(np.int64)
        key = low * points + high
        if np.unique(key).shape[0] < key.shape[0]:
            raise ValueError("first and second repeat a pair; average or drop repeated distances first")
        self._order = np.argsort(key)
        self.count, self.shape = int(key.shape[0]), (points, points)
        self._like = np.zeros(1) if like is None else as_data(like, "like")[:1]
        self.first, self.second = (indexing.beside(a, self._like) for a in (low, high))
        self._sorted = indexing.beside(self._order, self._like)
        self._pattern = Pattern(self.first[self._sorted], self.second[self._sorted], self.shape)

    def measure(self, sums):
        return [sum(self._squares(point) for point in points) for points in sums]

    def _squares(self, point: Any) -> Array:
        left, right = point.product()
        ends = [a[..., self.first, :] - a[..., self.second, :] for a in (left, right)]
        return (ends[0] * ends[1].conj()).sum(-1).real

    def adjoint(self, y):
        return _Laplacian(SampledMatrix(self._pattern, y[..., self._sorted]))

    def surrogate(self, y):
        squares = self.paths(xp.to_numpy(y)) ** 2
        centred = squares - squares.mean(-1, keepdims=True)
        return xp.asarray_like(-0.5 * (centred - centred.mean(-2, keepdims=True)), self._like)

    def paths(self, y: np.ndarray) -> np.ndarray:
        """Lengths of the shortest paths (..., n, n) along pairs of square ``y`` (..., N); negative ones count as zero.

        Raises
        ------
        ValueError
            If the pairs leave points without any path between them.
        """
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import shortest_path

        n, ends = self.shape[0], (xp.to_numpy(self.first), xp.to_numpy(self.second))
        lengths = np.maximum(y.astype(float), 0).reshape(-1, self.count) ** 0.5
        found = np.stack([shortest_path(csr_array((row, ends), self.shape), directed=False) for row in lengths])
        if not np.isfinite(found).all():
            lost = int((~np.isfinite(found[0, 0])).sum())
            raise ValueError(f"the known distances do not connect the points: point 0 has no path to {lost} of them")
        return found.reshape(*y.shape[:-1], n, n)

    def like(self):
        return self._like


class _Laplacian:
    """``sum_k y_k (e_i - e_j)(e_i - e_j)^T`` as an operator."""

    def __init__(self, upper: SampledMatrix):
        self.upper = upper

    def adjoint(self) -> _Laplacian:
        return self

    def __matmul__(self, x: Array) -> Array:
        wide = xp.namespace(x).concatenate((x, 0 * x[..., :1] + 1), -1)  # with ones, whose image is the degrees
        image = self.upper @ wide + self.upper.adjoint() @ wide
        return image[..., -1:] * x - image[..., :-1]
