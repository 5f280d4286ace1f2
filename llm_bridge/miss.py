"""Sums over groups of inputs as the fixed factor of a product: MiSS."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .starts import Start

__all__ = ["Shards", "shards"]


def shards(inputs: int, groups: int, like: Tensor) -> Tensor:
    """The matrix (inputs, groups) that adds up the inputs whose numbers leave the same remainder."""
    eye = torch.eye(groups, dtype=like.dtype, device=like.device)
    return eye[torch.arange(inputs, device=like.device) % groups]


@dataclass(frozen=True)
class Shards(Start):
    """A zero factor after fixed sums over groups of inputs. Source: :cite:`kang2024miss`."""

    def __call__(self, site):
        site.require("left", "right")
        right = shards(site.shape[1], site.rank, site.weight())
        return site.form(right.new_zeros(site.shape[0], site.rank), right)
