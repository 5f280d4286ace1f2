"""Spectral starts of tensor problems: singular subspaces of every unfolding of the data."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from .. import xp
from ..coverage import covers
from ..parameterizations import Tucker
from ..parameterizations.tucker import TuckerImage
from ..tensors import SampledTensor

__all__ = ["tensor_spectral"]

Array = Any


@covers("I04")
def tensor_spectral(problem: Any, form: Any, rank: Any) -> Any:
    """The spectral start of a tensor form: the truncated decomposition of ``A^* y``, scaled to fit the data.

    Dense surrogates are decomposed as they are: by the HOSVD, by the TT-SVD, for `CP` by simultaneous
    diagonalization. Sampled ones are never formed: leading eigenvectors of ``M_k M_k^H`` for every unfolding
    M_k, whose diagonal is scaled by the share observed because it alone does not suffer from missing entries;
    then the same decomposition of the small core.

    Parameters
    ----------
    problem : LeastSquares
        Of a tensor.
    form : type[TensorFactors]
    rank : int or tuple of int
        The size of the form.

    Returns
    -------
    TensorFactors
        A point of the form for the order of the tensor.

    Notes
    -----
    Source: :cite:`tong2022tensor`, whose published code scales the diagonal as here.
    """
    form = form.for_shape(problem.shape)
    surrogate = problem.surrogate()
    if isinstance(surrogate, SampledTensor):
        sizes = _subspace_sizes(form, problem.shape, rank)
        bases = [_leading(surrogate, k, r, problem.observed) for k, r in enumerate(sizes)]
        first = Tucker(xp.namespace(bases[0]).zeros_like(_corner(bases[0], sizes)), *bases)
        point = form.from_tensor(first.partial(0, surrogate), rank).embedded(bases)
    else:
        point = form.from_tensor(surrogate, rank)
    size = problem.amplitude(problem.measure((point,))[0])
    free = next(i for i, space in enumerate(point.spaces) if space.linear)  # where a form has constraints
    return point.with_array(free, xp.expand(size, point.ndims[free]) * point.arrays()[free])


def _corner(basis: Array, sizes: tuple[int, ...]) -> Array:
    """Some array (..., r_1, ..., r_d) of the type and with the batch axes of ``basis`` (..., n, r)."""
    batch = basis.shape[:-2]
    return basis[..., :1, :1].reshape(*batch, *(1 for _ in sizes)) * xp.asarray_like(np.ones(sizes), basis)


def _subspace_sizes(form: Any, shape: tuple[int, ...], rank: Any) -> tuple[int, ...]:
    """How many leading vectors each mode needs to hold the tensors of that size."""
    if issubclass(form, TuckerImage):
        return form.shapes(shape, rank)[0]
    cores = form.shapes(shape, rank)[-len(shape) :]  # those of the modes come last
    widths = [prod(core) // n for n, core in zip(shape, cores, strict=True)]
    return tuple(min(n, w) for n, w in zip(shape, widths, strict=True))


def _leading(surrogate: SampledTensor, mode: int, rank: int, observed: float) -> Array:
    """Leading eigenvectors (..., n_mode, rank) of one unfolding times its adjoint, with a corrected diagonal."""
    indices = [xp.to_numpy(i).astype(np.int64) for i in surrogate.pattern.indices]
    column = np.zeros_like(indices[0])
    for k, (i, n) in enumerate(zip(indices, surrogate.shape, strict=True)):
        column = column if k == mode else column * n + i
    column = np.unique(column, return_inverse=True)[1]
    values = xp.to_numpy(surrogate.values)
    out = np.empty((*values.shape[:-1], surrogate.shape[mode], rank), values.dtype)
    for b in np.ndindex(*values.shape[:-1]):
        out[b] = _eigenvectors(values[b], indices[mode], column, surrogate.shape[mode], observed)[:, -rank:]
    return xp.asarray_like(out[..., ::-1].copy(), surrogate.values)


def _eigenvectors(values: np.ndarray, rows: np.ndarray, columns: np.ndarray, size: int, share: float) -> np.ndarray:
    from scipy.sparse import csr_array

    flat = csr_array((values, (rows, columns)), shape=(size, int(columns.max()) + 1))
    gram = (flat @ flat.conj().T).toarray()
    gram[np.diag_indices(size)] *= share
    return np.linalg.eigh(gram)[1]
