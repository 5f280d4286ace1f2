"""The nearest plain LoRA of a change of weights, and how far it is: for exports and combinations."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowrank_sp.parameterizations.bm import thin_svd

from .adapter import Adapted, Adapter
from .starts.spectrum import dominant_svd

__all__ = ["Thin", "TruncationReport", "additive_change", "change_of", "check_rank", "nearest", "reduced", "thin_sum"]


@dataclass(frozen=True)
class TruncationReport:
    """What is left of the changes of all layers; prints as a table.

    Attributes
    ----------
    ranks : dict
        Rank by path.
    errors : dict
        By path, Frobenius norm of what was cut off over that of the change; 0 where nothing changes.
    """

    ranks: dict[str, int]
    errors: dict[str, float]

    @property
    def worst(self) -> float:
        """Largest of the errors."""
        return max(self.errors.values(), default=0.0)

    def __str__(self) -> str:
        width = max((len(path) for path in self.ranks), default=5)
        lines = [f"{'layer':{width}}  rank  relative error"]
        lines += [f"{path:{width}}  {rank:>4}  {self.errors[path]:.2e}" for path, rank in self.ranks.items()]
        return "\n".join([*lines, f"{len(self.ranks)} layers, largest error {self.worst:.2e}"])


@dataclass(frozen=True)
class Thin:
    """A product ``left right^T`` (out, r), (in, r), and the relative error of standing for something larger."""

    left: Tensor
    right: Tensor
    error: float


def thin_sum(adapters: Sequence[Adapter], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Thin factors of a weighted sum of additive updates, with their scales, side by side in double precision."""
    products = [adapter.product() for adapter in adapters]
    left = [w * a.scale * left.double() for w, a, (left, _) in zip(weights, adapters, products, strict=True)]
    return torch.cat(left, -1), torch.cat([right.double() for _, right in products], -1)


def reduced(left: Tensor, right: Tensor, tolerance: float = 1e-14) -> tuple[Tensor, Tensor]:
    """The same product ``left right^T`` with as few columns as it needs, the singular values in both factors.

    Parameters
    ----------
    left, right : Tensor (out, k) and (in, k)
    tolerance : float
        Singular values below this share of the largest are left out; one column always stays.
    """
    u, s, v = thin_svd(left, right)
    kept = max(int((s > tolerance * s[0]).sum()), 1)
    root = s[:kept].sqrt()
    return u[:, :kept] * root, v[:, :kept] * root


def additive_change(adapters: Sequence[Adapter], weights: Sequence[float]) -> Tensor | tuple[Tensor, Tensor]:
    """A weighted sum of additive updates: thin factors where all forms have them, else the matrix (out, in)."""
    if all(adapter.thin for adapter in adapters):
        return thin_sum(adapters, weights)
    return sum((w * a.update().double() for w, a in zip(weights, adapters, strict=True)), torch.tensor(0.0))


def change_of(layer: Adapted, adapters: Sequence[Adapter]) -> Tensor | tuple[Tensor, Tensor]:
    """``W' - W`` of a layer with adapters, whatever their way of combining."""
    if all(adapter.combine.additive for adapter in adapters):
        return additive_change(adapters, [1.0] * len(adapters))
    weight = layer.kind.weight(layer.base).double()
    changed = weight
    for adapter in adapters:
        changed = adapter.combine.weight(changed, adapter)
    return changed - weight


def nearest(change: Tensor | tuple[Tensor, Tensor], rank: int | None, path: str) -> Thin:
    """The best approximation of a rank, with the singular values shared between both factors.

    Parameters
    ----------
    change : Tensor (out, in), or thin factors (out, k) and (in, k)
        Thin factors are reduced exactly, through their QR factorizations; a dense matrix by a randomized range
        finder where the rank is small, else by its SVD.
    rank : int, optional
        At most this. By default as many as the change has, so that nothing but rounding is lost.
    path : str
        Of the layer, which seeds the range finder.
    """
    if isinstance(change, Tensor):
        return _dense(change, rank, np.random.default_rng(zlib.crc32(path.encode())))
    u, s, v = thin_svd(*change)
    nonzero = max(int((s > 1e-14 * s[0]).sum()), 1)  # closed gates leave no component
    kept = nonzero if rank is None else min(rank, len(s))
    return _cut(u[:, :kept], s[:kept], v[:, :kept], float(s[kept:].norm()), float(s.norm()))


def _dense(change: Tensor, rank: int | None, rng: np.random.Generator) -> Thin:
    if rank is None:
        u, s, vh = torch.linalg.svd(change, full_matrices=False)
        # Below single precision of the largest one, singular values are rounding of the factors.
        kept = max(int((s > torch.finfo(torch.float32).eps * s[0]).sum()), 1)
        u, s, v = u[:, :kept], s[:kept], vh[:kept].mT
    else:
        u, s, v = dominant_svd(change, rank, rng)
    return _cut(u, s, v, float((change - (u * s) @ v.mT).norm()), float(change.norm()))


def _cut(u: Tensor, s: Tensor, v: Tensor, lost: float, size: float) -> Thin:
    root = s.sqrt()
    return Thin((u * root).float(), (v * root).float(), lost / size if size > 0 else 0.0)


def check_rank(rank: Any) -> None:
    """Raise unless a rank is None or a positive integer."""
    if rank is None:
        return
    if isinstance(rank, bool) or not isinstance(rank, (int, np.integer)):
        raise TypeError(f"rank must be an integer or None, got {rank!r}")
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
