"""What all mixtures of experts have in common: scores, weights, and the sum of what experts add."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from lowrank_sp.factors import Configured

from ..nonlinear import Bent
from .gates import Gate, Top
from .losses import Auxiliary, Shares, said

__all__ = ["Gated", "Routed", "check_count"]

Array = Any


def check_count(count: Any) -> int:
    """The number of experts, or an error."""
    if isinstance(count, bool) or int(count) != count or count < 1:
        raise ValueError(f"count must be a positive integer, got {count!r}")
    return int(count)


class Routed(Bent, Configured):
    """``sum_e w_e(x) F_e(x)`` with weights that depend on the input.

    The class has the number of experts and the loss beside them as settings.
    """

    count: ClassVar[int] = 8
    loss: ClassVar[Auxiliary] = Shares()
    reason: ClassVar[str] = "which experts act depends on the activations, so no matrix is equal to it"

    @classmethod
    def of(cls, count: int, loss: Auxiliary | None = None) -> Any:
        """The form with so many experts, and a loss beside them."""
        count, (loss, beside) = check_count(count), cls._loss(loss)
        return cls.configured(f"{cls._base().__name__}{count}{beside}", count, loss)

    @classmethod
    def _completed(cls, form):
        form.count, form.loss = form.settings
        return form

    @classmethod
    def _loss(cls, loss: Auxiliary | None) -> tuple[Auxiliary, str]:
        """A loss or the usual one, and what it adds to the name of the form."""
        usual = cls._base().loss
        if loss is not None and not isinstance(loss, Auxiliary):
            raise TypeError(f"loss must be an Auxiliary, such as Shares() or Contrastive(), got {loss!r}")
        return (usual, "") if loss is None or loss == usual else (loss, said(loss))

    @abstractmethod
    def scores(self, x: Tensor) -> Tensor:
        """Of the experts, (..., E), for inputs (..., n)."""

    @abstractmethod
    def weights(self, x: Tensor) -> Tensor:
        """Of the experts, (..., E), zero for those that do not act."""

    @abstractmethod
    def mixed(self, x: Tensor, weights: Tensor) -> Tensor:
        """``sum_e w_e F_e(x)`` (..., m) for given weights (..., E)."""

    def apply(self, x):
        return self.mixed(x, self.weights(x))

    def probabilities(self, x: Tensor) -> Tensor:
        """The softmax of the scores, (..., E), in at least single precision, in which fewer of them are equal."""
        scores = self.scores(x)
        return scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(-1)

    def outputs(self, x: Tensor) -> Tensor:
        """``F_e(x)`` of every expert, (..., E, m)."""
        count = type(self).count
        each = x[..., None, :].expand(*x.shape[:-1], count, x.shape[-1])
        return self.mixed(each, torch.eye(count, dtype=x.dtype, device=x.device))

    def balance(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """The loss beside the experts for inputs (..., n), by default how evenly they are used; see `Shares`."""
        return type(self).loss(self, x, labels)


class Gated(Routed):
    """Weights of a gate over ``softmax(x R)``; `of` is the form with other settings."""

    router: Array
    gate: ClassVar[Gate] = Top(2)

    @classmethod
    def of(cls, count: int, gate: Gate, loss: Auxiliary | None = None) -> Any:
        """The form with ``count`` experts under a gate, and a loss beside them."""
        count = check_count(count)
        if not isinstance(gate, Gate):
            raise TypeError(f"gate must be a Gate, such as Soft() or Top(2), got {gate!r}")
        if not gate.fits(count):
            raise ValueError(f"{gate} must let between 1 and all of the {count} experts act")
        loss, beside = cls._loss(loss)
        active = "".join(str(value) for value in vars(gate).values())
        name = f"{cls._base().__name__}{count}{type(gate).__name__}{active}{beside}"
        return cls.configured(name, count, gate, loss)

    @classmethod
    def _completed(cls, form):
        form.count, form.gate, form.loss = form.settings
        return form

    def scores(self, x):
        return x @ self.router

    def weights(self, x):
        return type(self).gate(self.probabilities(x)).to(x.dtype)
