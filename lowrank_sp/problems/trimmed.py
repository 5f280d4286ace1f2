"""What problems with sparse outliers share: least squares without the largest residuals."""

from __future__ import annotations

from abc import abstractmethod
from copy import copy
from typing import Any, Self

import numpy as np

from .. import xp
from .base import LeastSquares, block_cgls, relative_error

__all__ = ["Trimmed", "order_statistic"]

Array = Any


def order_statistic(values: Array, index: int) -> Array:
    """The value number ``index`` (from zero, ascending) along the last axis, (..., k, 1)."""
    if xp.is_torch(values):
        return values.kthvalue(index + 1, dim=-1, keepdim=True).values
    return np.partition(np.ascontiguousarray(values), index, axis=-1)[..., index : index + 1]


def _check_shares(outliers: float, factor: float) -> tuple[float, float]:
    """The share of outliers, and that which the iterations trim."""
    if not 0 < outliers < 0.5:
        raise ValueError(f"outliers must lie in (0, 0.5), got {outliers}")
    if not (factor >= 1 and factor * outliers < 1):
        raise ValueError(f"factor must lie in [1, 1 / outliers) = [1, {1 / outliers:g}), got {factor}")
    return float(outliers), float(factor * outliers)


class Trimmed(LeastSquares):
    """``1/2 || R - T(R) ||^2`` for ``R = W - A``, of which T keeps the largest: what may be outliers does not count.

    A problem says what its largest entries are, and how far a point is from its data. The starts see the data without
    the ``outliers`` largest, and the iterations trim ``factor`` times as many.

    Attributes
    ----------
    outliers, share : float
        The share of outliers, and that which the iterations trim.
    observed : float
        Share of the entries that is known.
    """

    quadratic = False
    refresh = 1
    observed: float = 1.0

    @abstractmethod
    def largest(self, values: Array, share: float) -> Array:
        """The entries among the ``share`` largest of every line in which outliers are sparse; zero elsewhere."""

    @abstractmethod
    def _gap(self, point: Any) -> Array:
        """``W - A`` where A is known."""

    def _trim(self, outliers: float, factor: float) -> None:
        self.outliers, self.share = _check_shares(outliers, factor)
        self._trimmed = self.data - self.largest(self.data, self.outliers)
        self.scale = float(xp.to_numpy(self.inner(self._trimmed, self._trimmed)).max())

    def trimming(self, outliers: float, factor: float = 2.0) -> Self:
        """The problem of the same entries with another share of outliers."""
        other = copy(self)
        other._trim(outliers, factor)
        return other

    def leftover(self, point: Any) -> Array:
        """``A - W`` where A is known, shaped like ``data``; zero elsewhere."""
        return -self._gap(point)

    def as_sparse(self, values: Array) -> Any:
        """Values shaped like ``data`` as the container of the sparse part: an array, for arrays."""
        return values

    def sparse_part(self, point: Any) -> Any:
        """``S = T(A - W)``, zero where A is unknown."""
        return self.as_sparse(self.largest(self.leftover(point), self.share))

    def residual(self, point):
        gap = self._gap(point)
        return gap - self.largest(gap, self.share)

    def backproject(self, residual):
        return residual

    def surrogate(self):
        return self.backproject(self._trimmed / self.observed)

    def amplitude(self, image):
        size, overlap = self.inner(image, image), self.inner(image, self._trimmed)
        return overlap * (overlap > 0) / (size + (size == 0))

    def like(self):
        return self.data

    def error(self, point, residual=None) -> Any:
        return None if self.truth is None else relative_error(point, self.truth)

    def solve_block(self, point, gradient, index, ridge):
        return block_cgls(self, point, gradient, index, ridge)
