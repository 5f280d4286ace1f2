"""Higher-order singular vectors of a tensor, and its canonical polyadic form by simultaneous diagonalization."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import xp
from ..tensors import mode_product, unfold

__all__ = ["diagonalized", "leading_bases"]

Array = Any


def leading_bases(tensor: Array, order: int, ranks: Any) -> list[Array]:
    """Leading left singular vectors (..., n_k, r_k) of every unfolding: the factors of the HOSVD.

    From a QR factorization of the transposed unfolding, so that small singular values are right.
    Source: :cite:`delathauwer2000hosvd`.
    """
    backend, bases = xp.namespace(tensor), []
    for k in range(order):
        flat = unfold(tensor, k, order)
        if flat.shape[-1] > flat.shape[-2]:
            flat = xp.adjoint(backend.linalg.qr(xp.adjoint(flat))[1])
        u = backend.linalg.svd(flat, full_matrices=False)[0]
        bases.append(u[..., : ranks[k]])
    return bases


def compressed(tensor: Array, bases: list[Array]) -> Array:
    """``tensor x_1 U_1^H ... x_d U_d^H``."""
    for k, u in enumerate(bases):
        tensor = mode_product(tensor, xp.adjoint(u), k, len(bases))
    return tensor


def diagonalized(tensor: Array, order: int, rank: int) -> list[Array]:
    """Factors (..., n_k, rank) of a CP tensor near ``tensor`` (..., n_1, ..., n_d).

    The tensor is compressed to its leading singular subspaces. Two mixtures of the slices of the core then have
    the factor of one mode as generalized eigenvectors, and what remains of every component is a rank-one tensor.
    Exact for a generic tensor of that rank if two of the sizes are at least the rank; else the factors are
    random, and the point is only a start.
    Source: :cite:`leurgans1993cp`.
    """
    shape = tuple(int(n) for n in tensor.shape[-order:])
    a, b = sorted(range(order), key=lambda k: -shape[k])[:2]
    if rank > shape[b]:
        rng = np.random.default_rng(0)
        batch = tensor.shape[: tensor.ndim - order]
        return [xp.asarray_like(rng.standard_normal((*batch, n, rank)), tensor) for n in shape]
    bases = leading_bases(tensor, order, [min(rank, n) for n in shape])
    factors = _eigenfactors(compressed(tensor, bases), order, a, b)
    return [u @ f for u, f in zip(bases, factors, strict=True)]


def _eigenfactors(core: Array, order: int, a: int, b: int) -> list[Array]:
    """Factors of a core whose sizes in the modes a and b are the rank."""
    backend, lead = xp.namespace(core), core.ndim - order
    rank = core.shape[lead + a]
    slices = backend.moveaxis(core, (lead + a, lead + b), (-2, -1))
    slices = slices.reshape(*slices.shape[:lead], -1, rank, rank)
    first, second = (_mixture(slices, seed) for seed in (0, 1))
    eigenvectors = _real_like(backend.linalg.eig(first @ backend.linalg.pinv(second)), core)
    rest = backend.linalg.pinv(eigenvectors) @ unfold(core, a, order)  # (..., rank, product of the others)
    others = [core.shape[lead + k] for k in range(order) if k != a]
    parts = _rank_one(rest.reshape(*rest.shape[:-1], *others), order - 1)
    parts.insert(a, eigenvectors)
    return parts


def _mixture(slices: Array, seed: int) -> Array:
    weights = np.random.default_rng(seed).standard_normal(slices.shape[-3])
    return (xp.asarray_like(weights, slices)[:, None, None] * slices).sum(-3)


def _real_like(pair: Any, like: Array) -> Array:
    """Eigenvectors; for real data, real and imaginary parts of complex pairs."""
    values, vectors = pair
    if like.dtype.is_complex if xp.is_torch(like) else like.dtype.kind == "c":
        return vectors
    if not xp.is_torch(vectors) and vectors.dtype.kind != "c":
        return vectors
    return xp.namespace(like).where(values.imag[..., None, :] < 0, vectors.imag, vectors.real)


def _rank_one(tensors: Array, order: int) -> list[Array]:
    """Leading vectors of tensors (..., rank, n_1, ...), as columns (..., n_k, rank); the first has the size."""
    if order == 1:
        return [tensors.mT]
    vectors = [u[..., 0] for u in leading_bases(tensors, order, [1] * order)]
    size = compressed(tensors, [v[..., None] for v in vectors])
    vectors[0] = vectors[0] * size.reshape(*size.shape[: size.ndim - order])[..., None]
    return [v.mT for v in vectors]
