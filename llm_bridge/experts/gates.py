"""From the probabilities of a router to the weights of experts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Gate", "Hard", "Soft", "Top", "TopShare"]


class Gate(ABC):
    """From the probabilities (..., E) of a router to the weights of the experts."""

    @abstractmethod
    def __call__(self, probabilities: Tensor) -> Tensor:
        """Weights (..., E), zero for experts that do not act."""

    @abstractmethod
    def fits(self, count: int) -> bool:
        """Whether it can choose among so many experts."""


@dataclass(frozen=True)
class Soft(Gate):
    """All experts act, with their probabilities."""

    def __call__(self, probabilities):
        return probabilities

    def fits(self, count):
        return True


@dataclass(frozen=True)
class Top(Gate):
    """The most probable experts act, with their probabilities as they are.

    Parameters
    ----------
    active : int
    """

    active: int = 2

    def __call__(self, probabilities):
        kept = probabilities.topk(self.active, -1).indices
        return probabilities * torch.zeros_like(probabilities).scatter(-1, kept, 1.0)

    def fits(self, count):
        return self.active in range(1, count + 1)


@dataclass(frozen=True)
class TopShare(Gate):
    """The most probable experts act, with probabilities that add up to one again.

    Parameters
    ----------
    active : int
        With one, its weight is one and the router has no gradient; `Hard` gives it one.
    """

    active: int = 2

    def __call__(self, probabilities):
        kept = Top(self.active)(probabilities)
        return kept / kept.sum(-1, keepdim=True)

    def fits(self, count):
        return self.active in range(1, count + 1)


@dataclass(frozen=True)
class Hard(Gate):
    """The most probable expert acts with weight one, whose gradient is that of its probability (straight through)."""

    def __call__(self, probabilities):
        chosen = Top(1)(probabilities)
        return chosen - chosen.detach() + (chosen > 0).to(chosen.dtype)

    def fits(self, count):
        return count >= 1
