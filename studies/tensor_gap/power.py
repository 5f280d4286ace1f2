"""Tensor power iteration from many starts at once."""

from __future__ import annotations

import numpy as np

__all__ = ["power_iteration"]

Array = np.ndarray


def power_iteration(tensor: Array, starts: list[Array], sweeps: int) -> tuple[list[Array], Array]:
    """Alternating power iteration: each vector in turn is the contraction of the tensor with the other two.

    Parameters
    ----------
    tensor : array (n_1, n_2, n_3)
    starts : three arrays (n_k, starts)
        Columns of any length; the first is not read.

    Returns
    -------
    vectors : three arrays (n_k, starts)
        Columns of unit length.
    fit : array (starts,)
        The tensor contracted with all three: the size of the rank-one term.

    Notes
    -----
    The same iterates as `lowrank_sp.ALS` without a ridge on a `CP` point of rank one, but the starts share each
    pass over the tensor, which is never subtracted from. Source: :cite:`richard2014tensor`.
    """
    a, b, c = tensor.shape
    last, first = tensor.reshape(a * b, c), tensor.reshape(a, b * c)
    _, v, w = (x / np.linalg.norm(x, axis=0) for x in starts)
    fit = u = np.empty(0)
    for _ in range(sweeps):
        slab = (last @ w).reshape(a, b, -1)
        u = _unit(np.einsum("ijs,js->is", slab, v))[0]
        v = _unit(np.einsum("ijs,is->js", slab, u))[0]
        w, fit = _unit(np.einsum("jks,js->ks", (first.T @ u).reshape(b, c, -1), v))
    return [u, v, w], fit


def _unit(x: Array) -> tuple[Array, Array]:
    size = np.linalg.norm(x, axis=0)
    return x / size, size
