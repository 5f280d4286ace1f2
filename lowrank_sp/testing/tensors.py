"""The part of the contract of a parameterization that only tensor forms have."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np

from .. import trains, xp
from ..tensors import SampledTensor, TensorPattern, mode_product
from .common import require, require_close

__all__ = ["check_tensor"]


def check_tensor(point: Any, g: Any, rank: Any, name: str, tol: float) -> None:
    """Conversions, slices and sampled gradients of a tensor form, against the dense tensor.

    Parameters
    ----------
    point : TensorFactors
    g : array (..., n_1, ..., n_d)
        A gradient.
    rank : int or tuple of int
        The size of the point.
    name : str
        What messages call the form.
    tol : float
    """
    dense = point.dense()
    _check_conversions(point, dense, rank, name, tol)
    _check_slices(point, dense, name, tol)
    _check_sampled(point, g, name, tol)


def _check_conversions(point: Any, dense: Any, rank: Any, name: str, tol: float) -> None:
    require_close(trains.multiplied_out(point.train()), dense, f"{name}: train is an equal tensor train", tol)
    norm = (abs(dense) ** 2).sum(tuple(range(-len(point.shape), 0))) ** 0.5
    require_close(point.frobenius(), norm, f"{name}: frobenius is the norm of dense", tol)
    require_close(point.distance(point) + 0 * norm, 0 * norm, f"{name}: distance to itself", tol)
    twice = point.with_array(0, 2 * point.arrays()[0])
    require_close(point.distance(twice), norm, f"{name}: distance to twice the tensor", tol)
    require_close(point.balanced().dense(), dense, f"{name}: balanced keeps the tensor", tol)
    again = type(point).from_tensor(dense, rank)
    require(type(again) is type(point), f"{name}: from_tensor returned a {type(again).__name__}")
    require_close(again.dense(), dense, f"{name}: from_tensor keeps a tensor of the form", 1e3 * tol)
    larger, sizes = dense, point.shape
    factors = [xp.asarray_like(np.cos(np.outer(np.arange(n + 2), np.arange(n)) + 1.0), dense) for n in sizes]
    for k, u in enumerate(factors):
        larger = mode_product(larger, u, k, len(sizes))
    label = f"{name}: embedded is the product with matrices in all modes"
    require_close(point.embedded(factors).dense(), larger, label, tol)


def _check_slices(point: Any, dense: Any, name: str, tol: float) -> None:
    order = len(point.shape)
    lead = dense.ndim - order
    for modes in permutations(range(order), 2):
        others = [k for k in range(order) if k not in modes]
        index = tuple(point.shape[k] - 1 for k in others)
        moved = xp.namespace(dense).moveaxis(
            dense, tuple(lead + k for k in (*modes, *others)), tuple(range(lead, lead + order))
        )
        for i in reversed(index):
            moved = moved[..., i]
        got = point.matrix(*index, modes=modes)
        require_close(got.dense(), moved, f"{name}: matrix with the modes {modes}", tol)


def _check_sampled(point: Any, g: Any, name: str, tol: float) -> None:
    order = len(point.shape)
    places = np.stack(np.meshgrid(*(np.arange(n) for n in point.shape), indexing="ij")).reshape(order, -1)
    places = places[:, places.sum(0) % 3 != 0]
    if xp.is_torch(g):
        indices = tuple(xp.namespace(g).as_tensor(i) for i in places)
    else:
        indices = tuple(places)
    sampled = SampledTensor(TensorPattern(indices, point.shape), g[(..., *indices)])
    expected = point.pullback(sampled.dense())
    require_close(point.pullback(sampled), expected, f"{name}: pullback of a SampledTensor", tol)
    for i, array in enumerate(point.arrays()):
        require_close(point.partial(i, sampled), expected.arrays()[i], f"{name}: partial {i} of a SampledTensor", tol)
        again = point.from_rows(i, point.as_rows(i, array))
        require_close(again, array, f"{name}: from_rows undoes as_rows, array {i}", 0.0)
