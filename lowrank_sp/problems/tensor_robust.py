"""Tensors with outliers: low rank plus sparse, by trimmed least squares."""

from __future__ import annotations

from typing import Any

from .. import xp
from ..coverage import covers
from ..factors import sum_dense
from .checks import as_data, check_tensor_order
from .trimmed import Trimmed, order_statistic

__all__ = ["RobustTensorPCA", "keep_largest_in_fibers"]

Array = Any


def keep_largest_in_fibers(tensor: Array, share: float, order: int) -> Array:
    """The entries (..., n_1, ..., n_d) among the ``share n_k`` largest magnitudes of their fiber in every mode.

    Zero elsewhere; ties are all kept.
    """
    size = abs(tensor)
    keep = size >= 0
    backend, lead = xp.namespace(tensor), tensor.ndim - order
    for axis in range(lead, tensor.ndim):
        count = round(share * tensor.shape[axis])
        if not count:
            return 0 * tensor
        fibers = backend.moveaxis(size, axis, -1)
        least = order_statistic(fibers, fibers.shape[-1] - count)
        keep = keep & (size >= backend.moveaxis(least, -1, axis))
    return tensor * keep


@covers("S05", "S14")
class RobustTensorPCA(Trimmed):
    """A low-rank tensor plus sparse outliers: ``A = W + S`` with S sparse in every fiber.

    The loss is trimmed as that of `RobustPCA`: S holds the entries of ``A - W`` that are among the
    ``factor * outliers`` largest of their fiber in every mode.

    Parameters
    ----------
    tensor : array (..., n_1, ..., n_d)
        A.
    outliers : float
        Largest share of outliers in any fiber, in (0, 0.5). An estimate from above is safe.
    factor : float
        How much larger than ``outliers`` the share is that the iterations trim.
    order : int, optional
        Number of modes; by default all axes are modes.
    truth : TensorFactors or array, optional
        The low-rank part that errors are measured against.

    Raises
    ------
    ValueError, TypeError
        For data that are NaN, infinite, empty or not numeric, or shares out of range.

    Notes
    -----
    The trimming is that of :cite:`yi2016rpca` with fibers for rows and columns; scaled steps for it are those of
    :cite:`dong2023tensor`, who shrink by falling thresholds instead.
    """

    def __init__(
        self, tensor: Any, outliers: float = 0.1, factor: float = 2.0, order: int | None = None, truth: Any = None
    ):
        self.data = as_data(tensor, "tensor", 2)
        self.data_ndim = check_tensor_order(order, self.data.ndim)
        self.shape = tuple(int(n) for n in self.data.shape[-self.data_ndim :])
        self.truth = truth
        self._trim(outliers, factor)

    def largest(self, values, share):
        return keep_largest_in_fibers(values, share, self.data_ndim)

    def _gap(self, point):
        return point.dense() - self.data

    def measure(self, *sums):
        return [sum_dense(points) for points in sums]
