"""What a weight becomes when it is stored in a few bits: quantizers of blocks, as functions of tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["NormalFloat", "Quantizer", "Uniform"]


@dataclass(frozen=True)
class Quantizer(ABC):
    """Blocks of successive entries, each with the scale of its largest, and a table of levels in [-1, 1].

    Parameters
    ----------
    bits : int
        From 2 to 8.
    block : int
        Entries that share a scale.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    bits: int = 4
    block: int = 64

    def __post_init__(self):
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits must lie between 2 and 8, got {self.bits}")
        if self.block < 1:
            raise ValueError(f"block must be positive, got {self.block}")

    @abstractmethod
    def levels(self) -> Tensor:
        """The levels in ascending order, in double precision: (2^bits,) or one less."""

    def __call__(self, weight: Tensor) -> Tensor:
        """The nearest weight that can be stored, of the same shape and type."""
        flat = weight.reshape(-1)
        blocks = F.pad(flat, (0, -len(flat) % self.block)).reshape(-1, self.block)
        scale = blocks.abs().amax(1, keepdim=True)
        ratio = blocks / torch.where(scale > 0, scale, 1.0)
        levels = self.levels().to(weight)
        nearest = levels[torch.bucketize(ratio, (levels[1:] + levels[:-1]) / 2)]
        return (nearest * scale).reshape(-1)[: len(flat)].reshape(weight.shape)


@dataclass(frozen=True)
class NormalFloat(Quantizer):
    """Levels at quantiles of the normal distribution, with an exact zero: NF4, and its kin with other bits.

    Source: :cite:`dettmers2023qlora`.
    """

    def levels(self):
        half = 2 ** (self.bits - 1)
        # Quantiles up to the one between the last two of 2^bits and 2^bits - 1 equal parts, as for four bits.
        most = 1 - 0.5 * (0.5 / (2 * half) + 0.5 / (2 * half - 1))
        above = torch.special.ndtri(torch.linspace(most, 0.5, half + 1, dtype=torch.float64)[:-1])
        below = -torch.special.ndtri(torch.linspace(most, 0.5, half, dtype=torch.float64)[:-1])
        found = torch.cat((below, above, torch.zeros(1, dtype=torch.float64))).sort().values
        return found / found.max()


@dataclass(frozen=True)
class Uniform(Quantizer):
    """Equally spaced levels from -1 to 1, with zero among them."""

    def levels(self):
        half = 2 ** (self.bits - 1) - 1
        return torch.arange(-half, half + 1, dtype=torch.float64) / half
