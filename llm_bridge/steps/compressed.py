"""AdamW on whole weights with moments of compressed gradients: the baselines GaLore and FLORA."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowrank_sp.coverage import covers

from ..starts.spectrum import dominant_svd

__all__ = ["CompressedAdamW", "LeadingVectors", "Projection", "RandomVectors", "galore", "random_compression"]


@dataclass(frozen=True)
class Projection(ABC):
    """Chooses the columns P (k, r) on which gradients (k, n) are projected."""

    @abstractmethod
    def columns(self, gradient: Tensor, rank: int, rng: np.random.Generator) -> Tensor:
        """P for a gradient whose first side is the shorter one."""


@dataclass(frozen=True)
class LeadingVectors(Projection):
    """The leading left singular vectors of the gradient."""

    def columns(self, gradient, rank, rng):
        return dominant_svd(gradient, rank, rng)[0]


@dataclass(frozen=True)
class RandomVectors(Projection):
    """Gaussian columns with ``E P P^T = I``."""

    def columns(self, gradient, rank, rng):
        drawn = rng.standard_normal((gradient.shape[0], rank)) / rank**0.5
        return torch.as_tensor(drawn, dtype=gradient.dtype, device=gradient.device)


class CompressedAdamW(torch.optim.Optimizer):
    """``W <- W - lr alpha P N`` with N the direction of Adam for the compressed gradient ``P^T G``.

    Moments have r rows instead of all of them; P acts on the shorter side. Parameters that are no matrices, or whose
    shorter side is not above the rank, get AdamW.

    Parameters
    ----------
    params : iterable of Tensor or of groups
        Weights that train; a group may have its own ``rank``, or None for AdamW.
    lr : float
    rank : int
    every : int
        Steps after which P is chosen again, from the gradient of the next step.
    alpha : float
    projection : Projection
    betas, eps, weight_decay
        As of AdamW.
    seed : int

    Raises
    ------
    ValueError
        If a number is out of range.

    Notes
    -----
    Where P changes, first moments are carried over, ``M <- P_new^T P_old M``, and second ones stay. FLORA does the
    first; the published code of GaLore does not, although the signs of singular vectors are arbitrary.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        rank: int,
        every: int,
        alpha: float,
        projection: Projection,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        seed: int = 0,
    ):
        self.projection, self.seed = projection, seed
        defaults = {"lr": lr, "rank": rank, "every": every, "alpha": alpha}
        super().__init__(params, {**defaults, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        for name, group in ((name, group) for name in defaults for group in self.param_groups):
            if not (group[name] is None and name == "rank") and not group[name] > 0:
                raise ValueError(f"{name} must be positive, got {group[name]}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what ``closure`` did."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        numbered = enumerate((group, p) for group in self.param_groups for p in group["params"])
        for number, (group, p) in numbered:
            if p.grad is not None:
                self._move(number, group, p)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken, with moments in their own type and not that of the weights."""
        super().load_state_dict(state_dict)
        numbers = [n for group in state_dict["param_groups"] for n in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        for number, p in zip(numbers, parameters, strict=True):
            for key, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, Tensor):
                    self.state[p][key] = value.to(p.device, copy=True)

    def _move(self, number: int, group: dict[str, Any], p: Tensor) -> None:
        state, wide = self.state[p], p.ndim == 2 and p.shape[0] > p.shape[1]
        given: Any = p.grad
        gradient = given.to(torch.promote_types(p.dtype, torch.float32))
        gradient = gradient.mT if wide else gradient
        state["step"] = state.get("step", 0) + 1
        compressed = group["rank"] is not None and p.ndim == 2 and group["rank"] < min(p.shape)
        if compressed:
            self._choose(number, group, state, gradient)
            gradient = state["columns"].mT @ gradient
        direction = _adam(state, gradient, group["betas"], group["eps"])
        if compressed:
            direction = group["alpha"] * (state["columns"] @ direction)
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_((direction.mT if wide else direction).to(p.dtype), alpha=-group["lr"])

    def _choose(self, number: int, group: dict[str, Any], state: dict[str, Any], gradient: Tensor) -> None:
        """New columns where they are due, and the first moment in them."""
        if (state["step"] - 1) % group["every"]:
            return
        rng = np.random.default_rng([self.seed, number, state["step"]])
        columns = self.projection.columns(gradient, group["rank"], rng)
        if "first" in state:
            state["first"] = columns.mT @ (state["columns"] @ state["first"])
        state["columns"] = columns


def _adam(state: dict[str, Any], gradient: Tensor, betas: tuple[float, float], eps: float) -> Tensor:
    """The direction of Adam, with moments in ``state``."""
    if "first" not in state:
        state["first"], state["second"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
    state["first"].lerp_(gradient, 1 - betas[0])
    state["second"].mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    first = state["first"] / (1 - betas[0] ** state["step"])
    second = state["second"] / (1 - betas[1] ** state["step"])
    return first / (second.sqrt() + eps)


@covers("O36", "B12", "S22")
def galore(
    params: Iterable[Any], lr: float = 1e-3, rank: int = 8, every: int = 200, alpha: float = 0.25, **options: Any
) -> CompressedAdamW:
    """GaLore: whole weights train with moments of gradients in their leading singular vectors.

    Parameters and errors as for `CompressedAdamW`. Source: :cite:`zhao2024galore`.
    """
    return CompressedAdamW(params, lr, rank, every, alpha, LeadingVectors(), **options)


@covers("O35", "B12")
def random_compression(
    params: Iterable[Any], lr: float = 1e-3, rank: int = 8, every: int = 200, alpha: float = 1.0, **options: Any
) -> CompressedAdamW:
    """FLORA of Hao et al.: whole weights train with moments of randomly projected gradients.

    Parameters and errors as for `CompressedAdamW`.

    Notes
    -----
    The source puts random projections under Adafactor and momentum; here they are under Adam, and the columns are
    kept instead of drawn again from a seed. Not the FLoRA of core spaces.
    Source: :cite:`hao2024flora`; equations (71)-(76) of :cite:`he2026unified`.
    """
    return CompressedAdamW(params, lr, rank, every, alpha, RandomVectors(), **options)
