"""The nearest tensor of a form with at most so many parameters."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np

import lowrank_sp as lr
from lowrank_sp.tensors import mode_product

__all__ = ["nearest"]

Array = np.ndarray

SPECTRAL = 24  # leading spectra on which CP is fitted: what lies beyond is below its error
POLISH = {"CP": 80, "Tucker": 10, "TensorTrain": 10}  # most iterations after the truncated decomposition


def nearest(tensor: Array, form: str, numbers: int) -> dict[str, Any]:
    """Relative error, rank and number of parameters of an approximation with at most ``numbers`` parameters.

    Ranks of Tucker and of the train are those of least error of the truncated higher-order SVD, among all that
    the number of parameters allows; iterations of `lowrank_sp.factorize_tensor` follow.
    """
    if form == "matrix":
        return _matrix(tensor, numbers)
    kind = getattr(lr, form)
    rank = numbers // sum(tensor.shape) if form == "CP" else _best_rank(tensor, kind, numbers)
    target, basis = _with_leading_spectra(tensor) if form == "CP" else (tensor, np.eye(tensor.shape[2]))
    point = lr.factorize_tensor(target, rank, kind, max_iter=POLISH[form], tol=1e-5).point
    gap = tensor - mode_product(point.dense(), basis, 2, 3)
    return {
        "error": float(np.linalg.norm(gap) / np.linalg.norm(tensor)),
        "rank": rank if form == "CP" else list(rank),
        "used": kind.parameter_count(tensor.shape, rank),
    }


def _matrix(tensor: Array, numbers: int) -> dict[str, Any]:
    pixels, bands = tensor.shape[0] * tensor.shape[1], tensor.shape[2]
    values = np.linalg.svd(tensor.reshape(pixels, bands), compute_uv=False)
    rank = numbers // (pixels + bands)
    error = float(np.linalg.norm(values[rank:]) / np.linalg.norm(values))
    return {"error": error, "rank": rank, "used": rank * (pixels + bands)}


def _with_leading_spectra(tensor: Array) -> tuple[Array, Array]:
    """The tensor in coordinates of its leading spectra, and these (bands, spectra)."""
    basis = np.linalg.svd(tensor.reshape(-1, tensor.shape[2]), full_matrices=False)[2][:SPECTRAL].T
    return tensor @ basis, basis


def _best_rank(tensor: Array, kind: Any, numbers: int) -> tuple[int, ...]:
    """Of the ranks with at most ``numbers`` parameters, those that keep most of the core of the HOSVD."""
    kept = tensor
    for k in range(3):
        flat = np.moveaxis(kept, k, 0).reshape(kept.shape[k], -1)
        kept = mode_product(kept, np.linalg.svd(flat, full_matrices=False)[0].T, k, 3)
    energy = (kept**2).cumsum(0).cumsum(1).cumsum(2)  # of the leading block of every size
    found = ((float(energy[tuple(n - 1 for n in block)]), rank) for block, rank in _ranks(tensor.shape, kind, numbers))
    return max(found)[1]


def _ranks(shape: tuple[int, ...], kind: Any, numbers: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Blocks of the core and the ranks of the form that keep them, of those with few enough parameters."""
    for first, last in product(range(1, shape[0] + 1), range(1, shape[2] + 1)):
        if issubclass(kind, lr.TensorTrain):
            options = [((first, shape[1], last), (first, last))] if last <= first * shape[1] else []
        else:
            least, most = -(-max(first, last) // min(first, last)), min(shape[1], first * last)
            options = [((first, middle, last),) * 2 for middle in range(least, most + 1)]
        for block, rank in options:
            if kind.parameter_count(shape, rank) > numbers:
                break
            yield block, rank
