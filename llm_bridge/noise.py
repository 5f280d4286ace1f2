"""Noise in training: dropout on the input, on rank components or on whole updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, rand

from lowrank_sp.coverage import covers

from .masks import dropout

__all__ = ["InputDropout", "ModuleDropout", "Noise", "RankDropout"]


@dataclass(frozen=True)
class Noise:
    """No noise; the base of the others. ``rate`` is the probability of a zero, in [0, 1).

    ``on_input`` says that the update sees other activations than the layer, which a layer that takes a single
    weight (attention, recurrent) cannot do.
    """

    rate: float = 0.0
    on_input: ClassVar[bool] = False

    def __post_init__(self):
        if not 0 <= self.rate < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.rate}")

    def input(self, x: Any, training: bool) -> Any:
        """What the update sees in place of the input."""
        return x

    def components(self, rank: int, like: Tensor, training: bool) -> Tensor | None:
        """A factor for every rank component (rank,), or None."""
        return None

    def gate(self, training: bool) -> Any:
        """A factor for the whole update."""
        return 1.0


@dataclass(frozen=True)
class InputDropout(Noise):
    """Zeros in the input of the update, as LoRA has it.

    Layers that are called one after another with the same tensor (query, key and value) share a mask, of which
    one bit a number is kept: see `llm_bridge.masks.dropout`. Indices, the input of embeddings, have no dropout.
    """

    on_input = True

    def input(self, x, training):
        active = self.rate > 0 and training and x.is_floating_point()
        return dropout(x, self.rate, self) if active else x


@covers("P09")
@dataclass(frozen=True)
class RankDropout(Noise):
    """Whole rank components dropped, the same for all tokens of a pass: DropLoRA.

    Kept components are scaled by ``1 / (1 - rate)``, so that the expected update is the one that merging uses.
    Named in section III-F of :cite:`shunfoundation`.
    """

    def components(self, rank, like, training):
        if not training or self.rate == 0:
            return None
        return ((rand(rank, device=like.device) >= self.rate) / (1 - self.rate)).to(like.dtype)


@dataclass(frozen=True)
class ModuleDropout(Noise):
    """The update of a whole layer dropped for a pass, scaled by ``1 / (1 - rate)`` when it is kept."""

    def gate(self, training):
        if not training or self.rate == 0:
            return 1.0
        return float(rand(()) >= self.rate) / (1 - self.rate)
