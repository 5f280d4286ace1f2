"""How the changes of several adapters become one: summed or by elected signs, of all entries or of some."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowrank_sp.coverage import covers

from .adapter import Adapter
from .truncation import additive_change

__all__ = [
    "Elected",
    "Largest",
    "Merging",
    "Rescaled",
    "Sparsify",
    "Summed",
    "dare",
    "dare_ties",
    "magnitude_prune",
    "ties",
]


class Sparsify(ABC):
    """Zeros among the entries of a change of weights."""

    @abstractmethod
    def __call__(self, change: Tensor, rng: np.random.Generator) -> Tensor:
        """The change (out, in) with fewer entries."""


def _check_density(density: Any) -> None:
    if isinstance(density, bool) or not 0 < density <= 1:
        raise ValueError(f"density must lie in (0, 1], got {density!r}")


@dataclass(frozen=True)
class Largest(Sparsify):
    """The share ``density`` of the entries that are largest in size."""

    density: float = 0.2

    def __post_init__(self):
        _check_density(self.density)

    def __call__(self, change, rng):
        kept = change.abs().flatten().topk(int(self.density * change.numel())).indices
        return torch.zeros_like(change).flatten().scatter(0, kept, change.flatten()[kept]).view_as(change)


@dataclass(frozen=True)
class Rescaled(Sparsify):
    """Every entry with probability ``density``, divided by it, so that the mean is the change itself."""

    density: float = 0.5

    def __post_init__(self):
        _check_density(self.density)

    def __call__(self, change, rng):
        kept = torch.as_tensor(rng.random(tuple(change.shape)) < self.density, device=change.device)
        return change * kept / self.density


class Merging(ABC):
    """From the changes of several adapters in one layer to one."""

    @abstractmethod
    def __call__(self, adapters: Sequence[Adapter], weights: Sequence[float], path: str) -> Any:
        """The matrix (out, in), or thin factors of it."""


@dataclass(frozen=True)
class Summed(Merging):
    """The weighted sum of the changes, or of what `Sparsify` leaves of them.

    Parameters
    ----------
    keep : Sparsify, optional
        By default all entries, and thin factors stay thin.
    seed : int
        Together with the path of a layer and the number of an adapter it determines what chance keeps.
    """

    keep: Sparsify | None = None
    seed: int = 0

    def __call__(self, adapters, weights, path):
        if self.keep is None:
            return additive_change(adapters, weights)
        changes = _sparse(adapters, self.keep, self.seed, path)
        return sum((w * c for w, c in zip(weights, changes, strict=True)), torch.zeros_like(changes[0]))


@dataclass(frozen=True)
class Elected(Merging):
    """Entry by entry the mean of the weighted changes that have the sign of the sum of all changes.

    Changes with another sign, or none, do not count. The sign is elected without the weights.

    Parameters
    ----------
    keep : Sparsify
    seed : int
        As in `Summed`.
    """

    keep: Sparsify
    seed: int = 0

    def __call__(self, adapters, weights, path):
        changes = torch.stack(_sparse(adapters, self.keep, self.seed, path))
        sign = torch.where(changes.sum(0) >= 0, 1.0, -1.0).to(changes.dtype)
        agree = changes.sign() == sign
        weighted = changes * torch.tensor(weights, dtype=changes.dtype, device=changes.device)[:, None, None]
        return (weighted * agree).sum(0) / agree.sum(0).clamp_min(1)


def _sparse(adapters: Sequence[Adapter], keep: Sparsify, seed: int, path: str) -> list[Tensor]:
    rngs = [np.random.default_rng([seed, zlib.crc32(path.encode()), i]) for i in range(len(adapters))]
    return [keep(a.update().double(), rng) for a, rng in zip(adapters, rngs, strict=True)]


@covers("A18")
def ties(density: float = 0.2) -> Elected:
    """The largest entries, an elected sign, the mean of those that agree. Source: :cite:`yadav2023ties`."""
    return Elected(Largest(density))


@covers("A18")
def dare(density: float = 0.5, seed: int = 0) -> Summed:
    """Random entries, scaled up, and their sum. Source: :cite:`yu2024dare`."""
    return Summed(Rescaled(density), seed)


@covers("A18")
def dare_ties(density: float = 0.5, seed: int = 0) -> Elected:
    """Random entries, scaled up, and the mean of those with the elected sign. Source: :cite:`yu2024dare`."""
    return Elected(Rescaled(density), seed)


@covers("A18")
def magnitude_prune(density: float = 0.2) -> Summed:
    """The sum of the largest entries of every change."""
    return Summed(Largest(density))
