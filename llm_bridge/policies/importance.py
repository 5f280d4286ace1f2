"""How much a component matters: from its parameters and their gradients, or from the size of what it adds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..adapter import Adapter

__all__ = ["Importance", "NormShare", "Sensitivity"]

_ARRAYS = ("left", "values", "right")


@dataclass(frozen=True)
class Importance(ABC):
    """A score for every component of every layer, accumulated over steps; the sums are lists of tensors."""

    @abstractmethod
    def zero(self, adapters: Mapping[str, Adapter]) -> list[list[Tensor]]:
        """The sums before the first step."""

    @abstractmethod
    def observe(self, adapters: Mapping[str, Adapter], sums: list[list[Tensor]]) -> None:
        """Add what factors and gradients say in this step, in place."""

    @abstractmethod
    def scores(self, adapters: Mapping[str, Adapter], sums: list[list[Tensor]]) -> dict[str, Tensor]:
        """By path, a score (r,) of every component."""


@dataclass(frozen=True)
class Sensitivity(Importance):
    """Sensitivity times uncertainty of every parameter of a component: the importance of AdaLoRA.

    With ``I = |w g|`` and running means ``I_ = b1 I_ + (1 - b1) I`` and ``U = b2 U + (1 - b2) |I - I_|`` the score of a
    parameter is ``I_ U``; that of a component adds the score of its gate to the means over both of its columns.

    Parameters
    ----------
    decay, decay_uncertainty : float
        b1 and b2, in (0, 1).

    Notes
    -----
    Equation (42) of the survey has the running mean of the step before in U; the published method and its code have
    that of the step itself. The parameters are those at which the gradient was taken; published code multiplies it
    with those after the step. Source: :cite:`zhang2023adalora`; equations (40)-(44) of :cite:`he2026unified`.
    """

    decay: float = 0.85
    decay_uncertainty: float = 0.85

    def __post_init__(self):
        for name in ("decay", "decay_uncertainty"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in (0, 1), got {getattr(self, name)}")

    def zero(self, adapters):
        arrays = _arrays(adapters)
        return [[torch.zeros_like(a) for a in arrays] for _ in range(2)]

    def observe(self, adapters, sums):
        arrays, (mean, uncertain) = _arrays(adapters), sums
        raw = torch._foreach_mul(arrays, [_gradient(a) for a in arrays])
        torch._foreach_abs_(raw)
        torch._foreach_lerp_(mean, raw, 1 - self.decay)
        torch._foreach_sub_(raw, mean)
        torch._foreach_abs_(raw)
        torch._foreach_lerp_(uncertain, raw, 1 - self.decay_uncertainty)

    def scores(self, adapters, sums):
        products = iter(torch._foreach_mul(*sums))
        found = {}
        for path in adapters:
            left, values, right = next(products), next(products), next(products)
            found[path] = values + left.mean(0) + right.mean(0)
        return found


@dataclass(frozen=True)
class NormShare(Importance):
    """The share of a component in the update of its layer, ``||d_i a_i b_i^T||_F / ||sum_j d_j a_j b_j^T||_F``.

    Parameters
    ----------
    decay : float
        Of the running mean over steps, in [0, 1).

    Notes
    -----
    The surveys name the method without a formula; this is that of the published one.
    Source: :cite:`mao2024dora`.
    """

    decay: float = 0.9

    def __post_init__(self):
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {self.decay}")

    def zero(self, adapters):
        return [[torch.zeros_like(a.values) for a in adapters.values()]]

    def observe(self, adapters, sums):
        shares = []
        for adapter in adapters.values():
            left, values, right = (getattr(adapter, name).detach() for name in _ARRAYS)
            gram = (left.mT @ left) * (right.mT @ right) * values[:, None] * values
            whole = gram.sum().clamp_min(torch.finfo(gram.dtype).tiny)
            shares.append((gram.diagonal() / whole).clamp_min(0).sqrt())
        torch._foreach_lerp_(sums[0], shares, 1 - self.decay)

    def scores(self, adapters, sums):
        return dict(zip(adapters, sums[0], strict=True))


def _arrays(adapters: Mapping[str, Adapter]) -> list[Tensor]:
    return [getattr(adapter, name) for adapter in adapters.values() for name in _ARRAYS]


def _gradient(array: Any) -> Tensor:
    return torch.zeros_like(array) if array.grad is None else array.grad
