"""Singular vectors from the two ends of the spectrum of a large matrix, without its full decomposition."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowrank_sp.parameterizations.bm import BurerMonteiro, thin_svd

__all__ = ["dominant_svd", "leading", "minor_svd"]

# Up to this many singular values LAPACK takes less time than iterating.
EXACT = 256


def leading(matrix: Any, rank: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Leading ``(U, s, V)`` of a dense matrix (m, n), or exactly those of a `BurerMonteiro` product."""
    if isinstance(matrix, BurerMonteiro):
        u, s, v = thin_svd(matrix.left, matrix.right)
        return u[:, :rank], s[:rank], v[:, :rank]
    return dominant_svd(matrix, rank, rng)


def dominant_svd(weight: Tensor, rank: int, rng: np.random.Generator, sweeps: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Leading ``(U, s, V)`` of a matrix (m, n) by subspace iteration from a Gaussian sketch.

    Oversampled by ``max(10, r)``. Four sweeps are enough for spectra that decay; of a matrix of noise, whose singular
    values crowd together, the last of the leading ones come out a few percent too small, which serves a start as
    well. Source: :cite:`halko2011finding`.
    """
    m, n = weight.shape
    width = min(rank + max(10, rank), m, n)
    if width == min(m, n):
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        return u[:, :rank], s[:rank], vh[:rank].mT
    q = torch.linalg.qr(weight @ _gaussian(weight, n, width, rng)).Q
    for _ in range(sweeps):
        q = torch.linalg.qr(weight @ torch.linalg.qr(weight.mT @ q).Q).Q
    u, s, vh = torch.linalg.svd(q.mT @ weight, full_matrices=False)
    return (q @ u)[:, :rank], s[:rank], vh[:rank].mT


def minor_svd(weight: Tensor, rank: int, rng: np.random.Generator, sweeps: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """The last ``(U, s, V)``, in descending order, of the ``min(m, n)`` singular triplets of a matrix (m, n).

    Small matrices are decomposed. Large ones are reduced to a triangle by one QR factorization, on which inverse
    subspace iteration, oversampled by ``r + 10``, costs two triangular solves a sweep. Where the least singular
    values crowd together the subspace is one of nearly the least, which serves a start as well.
    """
    m, n = weight.shape
    if m < n:
        v, s, u = minor_svd(weight.mT, rank, rng, sweeps)
        return u, s, v
    width = min(2 * rank + 10, n)
    if n <= EXACT or width == n:
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        return u[:, -rank:], s[-rank:], vh[-rank:].mT
    q, r = torch.linalg.qr(weight)
    solvable = _bounded(r)
    z = _gaussian(weight, n, width, rng)
    for _ in range(sweeps):
        z = torch.linalg.solve_triangular(solvable.mT, z, upper=False)
        z = torch.linalg.solve_triangular(solvable, torch.linalg.qr(z).Q, upper=True)
        z = torch.linalg.qr(z).Q
    u, s, vh = torch.linalg.svd(r @ z, full_matrices=False)
    return q @ u[:, -rank:], s[-rank:], z @ vh[-rank:].mT


def _bounded(r: Tensor) -> Tensor:
    """A triangle with its diagonal kept away from zero, so that solving with it stays finite."""
    d = r.diagonal()
    least = 10 * torch.finfo(r.dtype).eps * d.abs().max() + torch.finfo(r.dtype).tiny ** 0.5
    safe = torch.where(d.abs() < least, torch.where(d < 0, -least, least), d)
    return r + torch.diag(safe - d)


def _gaussian(like: Tensor, rows: int, cols: int, rng: np.random.Generator) -> Tensor:
    return torch.as_tensor(rng.standard_normal((rows, cols)), dtype=like.dtype, device=like.device)
