"""Recovery in the presence of outliers: trimmed least squares for entries, absolute values for measurements."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from .. import xp
from ..coverage import covers
from ..factors import sum_dense
from ..frames import as_array, is_frame
from ..operators import is_sparse, sparse_entries, unmasked
from .base import LeastSquares, relative_error
from .checks import as_data, check_shape, warn_unobserved
from .completion import MatrixCompletion
from .ensembles import as_ensemble
from .sensing import check_types
from .trimmed import Trimmed, order_statistic

__all__ = ["RobustPCA", "RobustSensing", "keep_largest"]

Array = Any

# Mean over median of |g| for a Gaussian g: turns a median of residuals into a mean.
MEAN_OVER_MEDIAN = (2 / np.pi) ** 0.5 / 0.6744897501960817


def keep_largest(array: Array, share: float, counts: tuple[int, int] | None = None) -> Array:
    """The entries (..., m, n) among the ``share n`` largest magnitudes of their row and the ``share m`` of their
    column; zero elsewhere. ``counts`` replaces ``(n, m)`` where fewer entries are known.

    By partition, not by sorting. Of equal ones the first are taken, as in the published code of
    :cite:`tong2021scaledgd`: low-rank matrices with equal rows or columns have many. Source: the operator T of
    :cite:`yi2016rpca`.
    """
    m, n = array.shape[-2:]
    rows, cols = (round(share * k) for k in counts or (n, m))
    if not (rows and cols):
        return 0 * array
    size = abs(array)
    return array * (_first_largest(size, rows) & _first_largest(size.mT, cols).mT)


def _first_largest(size: Array, count: int) -> Array:
    """Which of the sizes (..., m, n) are the ``count`` largest of their row, the first where some are equal.

    Zeros are as they come.
    """
    least = order_statistic(size, size.shape[-1] - count)
    keep = size >= least
    if int(xp.namespace(keep).count_nonzero(keep)) > count * prod(size.shape[:-1]):
        crowded = (keep.sum(-1) > count) & (least[..., 0] > 0)
        some, level = size[crowded], least[crowded]
        equal, room = some == level, count - (some > level).sum(-1)[..., None]
        keep[crowded] = (some > level) | (equal & (equal.cumsum(-1) <= room))
    return keep


@covers("S05")
class RobustPCA(Trimmed):
    """A low-rank matrix plus sparse outliers: ``A = W + S`` with S sparse in every row and column.

    The loss is trimmed, ``1/2 || W + S - A ||_F^2`` with ``S = T(A - W)`` the entries of the residual that are
    among the ``factor * outliers`` largest of their row *and* of their column. With S held fixed it is a
    factorization of ``A - S``; gradients are those of that factorization, and line searches take it as their
    model (``quadratic = False``), so ``"auto"`` steps backtrack on the trimmed loss. Constant steps up to 2/3 of
    `ScaledGD` are the published method.

    Parameters
    ----------
    matrix : array (..., m, n)
        A, with NaN or masked where it is unknown: that has no part in the loss. A scipy sparse matrix or torch tensor
        has the stored entries, zeros included, as the known ones, and a DataFrame those that are not NA. Arrays
        (m, n) are formed in any case; `RobustCompletion` forms none.
    outliers : float
        Largest share of outliers in any row or column, in (0, 0.5). An estimate from above is safe. With unknown
        entries it refers to the row, and the column, with the most known ones.
    factor : float
        How much larger than ``outliers`` the share is that the iterations trim; the surrogate of the starts
        trims ``outliers`` itself.
    truth : Factors or array, optional
        The low-rank part that errors are measured against.

    Attributes
    ----------
    data : array (..., m, n)
        A, with zeros where it is unknown.
    known : boolean array (..., m, n), or None
        None where all of A is known.
    counts : (int, int)
        The most known entries in any row, and in any column.

    Raises
    ------
    ValueError, TypeError
        For data that are infinite, empty, all unknown or not numeric, or shares out of range. A row or column
        without any known entry is a warning.

    Notes
    -----
    Because T is not a projection, the trimmed loss may rise where that of the model falls.
    Source: :cite:`tong2021scaledgd`, section 4; :cite:`yi2016rpca`. With unknown entries W and A are zero there; the
    surrogate is then divided by the share known.

    >>> import lowrank_sp as lr
    >>> matrix = np.outer(np.arange(1.0, 21.0), np.ones(16))
    >>> matrix[3, 5] += 100.0
    >>> problem = RobustPCA(matrix, outliers=0.1)
    >>> result = lr.solve(problem, lr.inits.spectral(problem, lr.BurerMonteiro, rank=1), lr.AltScaledGD())
    >>> float(result.point.dense()[3, 5].round(6))
    4.0
    """

    data_ndim = 2
    nonexpansive = True

    def __init__(self, matrix: Any, outliers: float = 0.1, factor: float = 2.0, truth: Any = None):
        self.data, self.known = _known(matrix)
        self.shape = m, n = int(self.data.shape[-2]), int(self.data.shape[-1])
        self.counts, self.observed = (n, m), 1.0
        if self.known is not None:
            self.counts, self.observed = _most(self.known), float(xp.to_numpy(self.known).mean())
        self.truth = truth
        self._trim(outliers, factor)

    def largest(self, values, share):
        return keep_largest(values, share, self.counts)

    def _gap(self, point):
        return self.masked(point.dense() - self.data)

    def masked(self, array: Array) -> Array:
        """The array (..., m, n) with zeros where A is unknown."""
        return array if self.known is None else array * self.known

    def known_part(self, values: Array) -> Array:
        """The values (m, n) at the known entries, with as many axes as they come."""
        return values if self.known is None else values[self.known]

    def suspicious(self, values: Array) -> Array:
        """Sizes of the residual (m, n) that may be outliers: all, because ``largest_share`` trims for every row."""
        return values

    def largest_share(self, mask: Array) -> float:
        """The largest share of true entries in any row or column, of ``counts``."""
        rows, cols = self.counts
        return max(float(mask.sum(-1).max()) / rows, float(mask.sum(-2).max()) / cols)

    def without(self, mask: Array) -> MatrixCompletion:
        """The completion problem of the known entries that are not under a mask (m, n)."""
        keep = ~mask if self.known is None else self.known & ~mask
        where = keep.nonzero(as_tuple=True) if xp.is_torch(keep) else keep.nonzero()
        return MatrixCompletion(*where, self.data[keep], self.shape)

    def pursuit_weight(self) -> float:
        """What `PCP` and its relatives weigh the sum of absolute outliers with: ``1 / sqrt(share known * max(m, n))``.

        Source: theorems 1.1 and 1.2 of :cite:`candes2011rpca`.
        """
        return (self.observed * max(self.shape)) ** -0.5

    def measure(self, *sums):
        return [self.masked(sum_dense(points)) for points in sums]


def _known(matrix: Any) -> tuple[Array, Any]:
    """The matrix with zeros for unknown entries, and which are known: None for all."""
    if is_frame(matrix):
        matrix = as_array(matrix)
    elif is_sparse(matrix):
        matrix = _spread(matrix)
    array: Any = matrix if xp.is_torch(matrix) else unmasked(matrix)
    if not (xp.is_torch(array) or array.dtype.kind in "fc"):
        return as_data(array, "matrix", 2), None
    unknown = xp.namespace(array).isnan(array)
    count = int(unknown.sum())
    if not count:
        return as_data(array, "matrix", 2), None
    if bool(unknown.all()):
        raise ValueError(f"matrix holds {count} NaN and nothing else: there are no known entries")
    known = ~unknown
    zeroed = array.masked_fill(unknown, 0) if xp.is_torch(array) else np.where(known, array, array.dtype.type(0))
    data = as_data(zeroed, "matrix", 2)
    for axis, what in ((-1, "rows"), (-2, "columns")):
        warn_unobserved(xp.to_numpy(known).sum(axis).reshape(-1), what)
    return data, known


def _spread(matrix: Any) -> Array:
    """A sparse matrix as an array with NaN where nothing is stored."""
    rows, cols, values = sparse_entries(matrix)
    values = as_data(values, "matrix", 1)
    if xp.is_torch(values):
        array = values.new_full(tuple(matrix.shape), float("nan"))
    else:
        array = np.full(matrix.shape, np.nan, values.dtype)
    array[rows, cols] = values
    stored = int((~xp.namespace(array).isnan(array)).sum())
    if stored < values.shape[0]:
        raise ValueError(
            f"matrix stores {values.shape[0]} entries at {stored} positions; average or drop duplicates first"
        )
    return array


def _most(known: Array) -> tuple[int, int]:
    """The most known entries in any row and in any column."""
    return int(known.sum(-1).max()), int(known.sum(-2).max())


@covers("S01")
class RobustSensing(LeastSquares):
    """``sum_i |<M_i, W> - y_i|``: linear measurements of which a share is arbitrarily wrong.

    The loss is nonsmooth (``smooth = False``): solve with `ScaledGD` and Polyak steps (``"auto"`` estimates the
    least loss from the median residual; ``lr.Polyak(minimum)`` where it is known) or ``lr.Geometric(...)``.

    Parameters
    ----------
    operator, measurements, shape, truth
        As for `MatrixSensing`.
    outliers : float
        Share of wrong measurements, in [0, 0.5); an estimate from above is safe. The starts drop that share of
        the largest measurements, and the estimate of the least loss uses it.

    Raises
    ------
    ValueError, TypeError
        As `MatrixSensing`, and for a share out of range.

    Notes
    -----
    Source: :cite:`tong2021subgradient`; the truncated start is that of its published code.
    """

    data_ndim = 1
    quadratic = False
    smooth = False

    def __init__(self, operator: Any, measurements: Any, shape: Any, outliers: float = 0.2, truth: Any = None):
        self.shape = check_shape(shape)
        self.operator: Any = as_ensemble(operator, self.shape)
        self.data = as_data(measurements, "measurements", 1)
        if self.data.shape[-1] != self.operator.count:
            raise ValueError(
                f"measurements has {self.data.shape[-1]} values, but the operator makes {self.operator.count}"
            )
        if not 0 <= outliers < 0.5:
            raise ValueError(f"outliers must lie in [0, 0.5), got {outliers}")
        check_types(self.operator, self.data)
        self.outliers, self.truth = float(outliers), truth
        size = abs(self.data)
        last = int(np.ceil((1 - self.outliers) * self.operator.count)) - 1
        self._kept = self.data * (size <= order_statistic(size, last))
        self.scale = float(xp.to_numpy(abs(self._kept).sum(-1)).max())

    def measure(self, *sums):
        return self.operator.measure([list(points) for points in sums])

    def loss(self, residual):
        return abs(residual).sum(-1)

    def slope(self, residual):
        """``sign(residual)``, zero at zero; ``residual / |residual|`` for complex data."""
        size = abs(residual)
        return residual / (size + (size == 0))

    def backproject(self, residual):
        return self.operator.adjoint(residual)

    def surrogate(self):
        return self.operator.surrogate(self._kept)

    def gap(self, residual, loss):
        """The clean residuals summed, from their median: wrong measurements add about as much as they take."""
        clean = 1 - self.outliers
        count = residual.shape[-1]
        median = order_statistic(abs(residual), int(0.5 * clean * count))[..., 0]
        return (MEAN_OVER_MEDIAN * clean * count) * median

    def rounding(self, precision):
        return 32 * precision * self.scale

    def amplitude(self, image):
        """The c that minimises ``sum_i |c image_i - y_i|``: a weighted median of ratios, which outliers do not move."""
        size = abs(image)
        ratio = (image.conj() * self.data).real / (size + (size == 0)) ** 2
        order = ratio.argsort(-1)
        backend = xp.namespace(size)
        along = backend.take_along_dim if xp.is_torch(size) else np.take_along_axis
        weights = along(size, order, -1).cumsum(-1)
        first = (weights < 0.5 * weights[..., -1:]).sum(-1)[..., None]
        c = along(ratio, order, -1)
        c = along(c, first, -1)[..., 0]
        return c * (c > 0)

    def like(self):
        return self.operator.like() + 0 * self.data.reshape(-1)[:1]

    def error(self, point, residual=None) -> Any:
        return None if self.truth is None else relative_error(point, self.truth)

    def solve_block(self, point, gradient, index, ridge):
        raise TypeError("RobustSensing is no least-squares problem in a block; use lr.ScaledGD()")
