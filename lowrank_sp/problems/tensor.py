"""Tensor problems with squared losses: factorization, sensing and completion."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from .. import xp
from ..coverage import covers
from ..factors import sum_dense
from ..operators import is_sparse, unmasked
from ..parameterizations.tensor import TensorFactors
from ..parameterizations.tensor_fibers import Heads, sampled_sum
from ..tensors import SampledTensor, TensorPattern
from .base import LeastSquares, block_cgls, relative_error
from .checks import LinearMap, as_data, as_indices, check_tensor_order, check_tensor_shape, warn_unobserved
from .linear_maps import as_linear_map, warn_unlike_adjoint

__all__ = ["TensorCompletion", "TensorFactorization", "TensorSensing"]

Array = Any

# Up to this width the normal equations of a block are formed: beyond, conjugate gradients take less.
WIDTH, CORE_WIDTH = 40, 256


@covers("S13")
class TensorFactorization(LeastSquares):
    """``1/2 || W - A ||_F^2`` for a fully known tensor A.

    Parameters
    ----------
    target : array (..., n_1, ..., n_d)
        A, NumPy or torch.
    order : int, optional
        Number of modes d; by default all axes are modes. Axes before them are batch.
    truth : TensorFactors or array, optional
        The tensor that errors are measured against.
    noiseless : bool
        Says that ``truth`` equals the target, so that errors come from the residual at no cost.

    Raises
    ------
    TypeError, ValueError
        For non-numeric, empty, NaN or infinite targets, or fewer than two modes.

    Notes
    -----
    Source: :cite:`kolda2009tensor`.
    """

    nonexpansive = True

    def __init__(self, target: Any, order: int | None = None, truth: Any = None, noiseless: bool = False):
        self.data = as_data(target, "target", 2)
        self.data_ndim = check_tensor_order(order, self.data.ndim)
        self.shape = tuple(int(n) for n in self.data.shape[-self.data_ndim :])
        self._square = self.inner(self.data, self.data)
        self.scale = float(xp.to_numpy(self._square).max())
        self.truth, self.noiseless = truth, noiseless

    def measure(self, *sums):
        return [sum_dense(points) for points in sums]

    def backproject(self, residual):
        return residual

    def surrogate(self):
        return self.data

    def like(self):
        return self.data

    def error(self, point, residual=None) -> Any:
        if self.truth is None:
            return None
        if self.noiseless:
            gap = self.residual(point) if residual is None else residual
            return (self.inner(gap, gap) / self._square) ** 0.5
        return relative_error(point, self.truth)

    def solve_block(self, point, gradient, index, ridge):
        return block_cgls(self, point, gradient, index, ridge)


@covers("S14")
class TensorSensing(LeastSquares):
    """``1/2 || A(W) - y ||^2`` for N linear measurements ``y_i = <M_i, W>`` of a tensor.

    Parameters
    ----------
    operator : array (N, n_1, ..., n_d) or (N, n_1 ... n_d), scipy sparse matrix, or LinearOperator on vec(W) in C order
        A; the operator of scipy or PyLops, dot-tested with a warning.
    measurements : array (..., N)
        y; leading axes are batch (arrays only).
    shape : tuple of int
        Shape of W.
    truth : TensorFactors or array, optional
        The tensor that errors are measured against.

    Raises
    ------
    ValueError, TypeError
        When lengths do not match, data are NaN, infinite, empty or not numeric, or libraries are mixed.

    Notes
    -----
    The tensor is formed: N times its size is stored or applied anyway.
    """

    data_ndim: int = 1

    def __init__(self, operator: Any, measurements: Any, shape: Any, truth: Any = None):
        self.shape = check_tensor_shape(shape)
        size = prod(self.shape)
        self.operator: Any = as_linear_map(operator)
        self.matrix: Any = None
        if not isinstance(self.operator, LinearMap):
            self.matrix = as_data(operator, "operator", 2)
            self.matrix = self.matrix.reshape(self.matrix.shape[0], -1)
        given = tuple((operator if self.matrix is None else self.matrix).shape)
        if given[-1] != size:
            raise ValueError(f"operator must act on the {size} entries of shape {self.shape}, got shape {given}")
        self.data = as_data(measurements, "measurements", 1)
        if self.data.shape[-1] != given[0]:
            raise ValueError(f"measurements has {self.data.shape[-1]} values, but the operator makes {given[0]}")
        if self.matrix is not None:
            xp.namespace(self.data, self.matrix)
        elif self.data.ndim > 1 or xp.is_torch(self.data):
            raise TypeError(
                "a LinearOperator takes NumPy measurements (N,) without batch; give the operator as an array"
            )
        else:
            warn_unlike_adjoint(self.operator)
        self.scale = float(xp.to_numpy(self.inner(self.data, self.data)).max())
        self.truth = truth

    def measure(self, *sums):
        images = []
        for points in sums:
            dense = sum_dense(points)
            flat = dense.reshape(*dense.shape[: dense.ndim - len(self.shape)], -1)
            images.append(self.operator.matvec(flat) if self.matrix is None else flat @ self.matrix.mT)
        return images

    def backproject(self, residual):
        if self.matrix is None:
            return np.asarray(self.operator.rmatvec(residual)).reshape(self.shape)
        return (residual @ self.matrix.conj()).reshape(*residual.shape[:-1], *self.shape)

    def surrogate(self):
        return self.backproject(self.data)

    def like(self):
        return self.data if self.matrix is None else self.matrix[:1, 0] + 0 * self.data.reshape(-1)[:1]

    def error(self, point, residual=None) -> Any:
        return None if self.truth is None else relative_error(point, self.truth)

    def solve_block(self, point, gradient, index, ridge):
        return block_cgls(self, point, gradient, index, ridge)


@covers("S14")
class TensorCompletion(LeastSquares):
    """``1/2 sum_i (W[i] - a_i)^2`` over the observed entries; the tensor is never formed.

    Parameters
    ----------
    indices : sequence of integer arrays (N,)
        One per mode: zero-based positions of the observed entries, each position at most once.
    values : array (..., N)
        The entries; leading axes are batch (several tensors observed at the same positions).
    shape : tuple of int
        Shape of W.
    truth : TensorFactors or array, optional
        The tensor that errors are measured against.

    Raises
    ------
    ValueError, TypeError
        For empty, duplicate or out-of-range positions, lengths that differ, NaN, infinite or non-numeric
        values, or mixed libraries. A place of a mode without any observation is a warning.

    >>> import lowrank_sp as lr
    >>> indices = np.array([0, 0, 1]), np.array([0, 1, 1]), np.array([0, 1, 1])
    >>> problem = TensorCompletion(indices, [1.0, 1.0, 1.0], (2, 2, 2))
    >>> ones = lr.CP.for_shape((2, 2, 2))(*[np.ones((2, 1))] * 3)
    >>> problem.residual(ones).tolist()
    [0.0, 0.0, 0.0]
    """

    data_ndim: int = 1
    nonexpansive = True

    def __init__(self, indices: Any, values: Any, shape: Any, truth: Any = None):
        self.shape = check_tensor_shape(shape)
        values = as_data(values, "values", 1)
        if len(indices) != len(self.shape):
            raise ValueError(f"indices must hold one array per mode of shape {self.shape}, got {len(indices)}")
        indices = [as_indices(i, f"indices[{k}]", n) for k, (i, n) in enumerate(zip(indices, self.shape, strict=True))]
        xp.namespace(*indices, values)
        lengths = [int(i.shape[0]) for i in indices]
        if set(lengths) != {int(values.shape[-1])}:
            raise ValueError(f"indices and values must have one length, got {lengths} and {values.shape[-1]}")
        indices, self.data = _sorted(indices, values, self.shape)
        self.pattern = TensorPattern(indices, self.shape)
        for k, (i, n) in enumerate(zip(indices, self.shape, strict=True)):
            warn_unobserved(np.bincount(xp.to_numpy(i), minlength=n), f"places of mode {k}")
        self.scale = float(xp.to_numpy(self.inner(self.data, self.data)).max())
        self.truth = truth

    @classmethod
    def from_array(cls, array: Any, truth: Any = None) -> TensorCompletion:
        """From a tensor (n_1, ..., n_d) in which NaN, or the mask of a masked array, marks the unknown entries."""
        if not xp.is_torch(array):
            array = unmasked(array)
            if array.dtype.kind not in "fc":
                raise TypeError(f"array must be floating so that NaN can mark unknown entries, got {array.dtype}")
        if array.ndim < 2:
            raise ValueError(f"array must have at least two axes, got shape {tuple(array.shape)}")
        known = ~xp.namespace(array).isnan(array)
        if not bool(known.any()):
            raise ValueError("array holds only NaN: there are no observed entries")
        where = known.nonzero(as_tuple=True) if xp.is_torch(array) else known.nonzero()
        return cls(where, array[known], tuple(array.shape), truth)

    @classmethod
    def of(cls, tensor: Any) -> TensorCompletion:
        """From what holds a tensor with unknown entries: an array, a sparse torch tensor, or a problem.

        Of a sparse tensor the stored entries, zeros included, are the observed ones.
        """
        if isinstance(tensor, TensorCompletion):
            return tensor
        if xp.is_torch(tensor) and is_sparse(tensor):
            coo = tensor.to_sparse_coo()
            return cls(tuple(coo._indices()), coo._values(), tuple(tensor.shape))
        return cls.from_array(tensor)

    @property
    def observed(self) -> float:
        """Share of the entries that is observed."""
        return self.data.shape[-1] / prod(self.shape)

    def measure(self, *sums):
        known: Heads = {}
        return [sampled_sum(points, self.pattern, known) for points in sums]

    def backproject(self, residual):
        return SampledTensor(self.pattern, residual)

    def surrogate(self):
        return SampledTensor(self.pattern, self.data / self.observed)

    def like(self):
        return self.data

    def error(self, point, residual=None) -> Any:
        return None if self.truth is None else relative_error(point, self.truth)

    def solve_block(self, point, gradient, index, ridge):
        if isinstance(point, TensorFactors) and not point.batch_shape:
            width = point.as_rows(index, gradient).shape[-1]
            if width <= (CORE_WIDTH if point.mode_of(index) is None else WIDTH):
                return self._solve_rows(point, gradient, index, ridge)
        return block_cgls(self, point, gradient, index, ridge)

    def _solve_rows(self, point: TensorFactors, gradient: Array, index: int, ridge: float) -> Array:
        """Each row of the block by its own normal equations."""
        grams = point.grams(index, self.pattern)
        ridge = ridge * float(xp.to_numpy(grams.diagonal(0, -2, -1).real.mean()))
        g = point.as_rows(index, gradient) + ridge * point.as_rows(index, point.arrays()[index])
        return point.from_rows(index, -xp.solve_psd(grams, g[..., None], ridge)[..., 0])


def _sorted(indices: list[Array], values: Array, shape: tuple[int, ...]) -> tuple[list[Array], Array]:
    """Entries in the order of the dense tensor; duplicates are an error."""
    key = indices[0] if xp.is_torch(indices[0]) else indices[0].astype(np.int64)
    for i, n in zip(indices[1:], shape[1:], strict=True):
        key = key * n + i
    order = key.argsort()
    repeated = key[order][1:] == key[order][:-1]
    if bool(repeated.any()):
        first = tuple(int(i[order][1:][repeated][0]) for i in indices)
        raise ValueError(
            f"indices repeat {int(repeated.sum())} positions, the first is {first}; "
            "average or drop duplicate observations first"
        )
    small = indices if xp.is_torch(values) else [i.astype(np.int32) for i in indices]
    return [i[order] for i in small], values[..., order]
