"""Ranks that grow: the most important layers get more components, each with a learning rate of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowrank_sp.coverage import covers

from .base import RankPolicy, gated, zero_gradients

__all__ = ["Growing"]

_ARRAYS = ("left", "values", "right")


@covers("P21", "O47", "I25", "R11")
class Growing(RankPolicy):
    """IncreLoRA: every so many steps the most important layers get one more component, until a budget is used.

    The rank of the adapter is the most that a layer can get. Components that do not act yet have a gate of zero and
    random columns, which only the penalty on their orthogonality moves; a new one starts with a small gate, and its
    learning rate rises and then falls to zero at the end of the run.

    Parameters
    ----------
    model : Module
        With an active adapter of the form DiagonalCore.
    optimizer : Optimizer
    budget : int
        Components of all layers together, in the end.
    steps : int
        Of the whole run.
    every, layers : int
        Every so many steps so many layers get a component.
    first : int
        Components of each layer at the beginning.
    gate : float
        Value at which a new gate starts.
    warmup : int
        Steps in which the learning rate of a new component rises, linearly; it falls linearly afterwards. Those
        of the beginning follow the schedule of the optimizer alone.
    decay, decay_uncertainty : float
        Of the running means of the importance, in (0, 1).
    name : str
        Of the adapter.

    Raises
    ------
    ValueError, TypeError
        If there is no such adapter or its form has no gates, or a number is out of range.

    Notes
    -----
    The importance of a layer is the running mean of its sensitivity times that of its uncertainty, as for AdaLoRA. The
    source averages over the entries of the update; here it is the mean over acting components of
    ``|d g_d| + mean |a g_a| + mean |b g_b|``, so that no gradient of the size of the layer is needed. The shape of the
    schedules is not given in :cite:`he2026unified`. Source: :cite:`zhang2023increlora`.
    """

    sees_gradients = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        budget: int,
        steps: int,
        every: int = 10,
        layers: int = 1,
        first: int = 1,
        gate: float = 1e-2,
        warmup: int = 10,
        decay: float = 0.85,
        decay_uncertainty: float = 0.85,
        name: str = "default",
    ):
        self.adapters = gated(model, name)
        self.check(optimizer)
        sizes = {path: len(adapter.values) for path, adapter in self.adapters.items()}
        _check_numbers(sizes, budget, first, steps=steps, every=every, layers=layers, gate=gate, warmup=warmup)
        self.budget, self.total, self.every, self.layers = budget, steps, every, layers
        self.gate, self.warmup, self.decays = gate, warmup, (decay, decay_uncertainty)
        self.steps = 0
        # By layer, the step at which each component began, -1 for those of the beginning, -2 for those to come.
        device = next(iter(self.adapters.values())).values.device
        self.born = {path: torch.full((r,), -2, device=device) for path, r in sizes.items()}
        for path, born in self.born.items():
            born[:first] = -1
            self._switch_off(path)
        self.mean, self.uncertain = (torch.zeros(len(sizes), device=device) for _ in range(2))
        self._old: dict[str, list[Tensor]] = {}
        self.attach(optimizer)

    @torch.no_grad()
    def before(self):
        zero_gradients(self.adapters, {path: born == -2 for path, born in self.born.items()})
        raw = torch.stack([self._raw(path).to(self.mean) for path in self.adapters])
        self.mean.lerp_(raw, 1 - self.decays[0])
        self.uncertain.lerp_((raw - self.mean).abs(), 1 - self.decays[1])
        young = [path for path, born in self.born.items() if bool((born >= 0).any())]
        self._old = {path: [getattr(self.adapters[path], name).clone() for name in _ARRAYS] for path in young}

    @torch.no_grad()
    def after(self):
        for path, old in self._old.items():
            factor = self.factors(path).to(old[0].dtype)
            for name, before in zip(_ARRAYS, old, strict=True):
                array = getattr(self.adapters[path], name)
                array.copy_(before + factor * (array - before))
        self._old = {}
        self.steps += 1
        if self.steps % self.every == 0:
            self._grow()

    def factors(self, path: str) -> Tensor:
        """What multiplies the learning rate of every component (r,) of a layer in the step to come."""
        born = self.born[path]
        age = self.steps - born
        rise = ((age + 1) / self.warmup).clamp(max=1.0) if self.warmup else torch.ones_like(age, dtype=torch.float)
        fall = (1 - age / (self.total - born).clamp_min(1)).clamp_min(0.0)
        return torch.where(born >= 0, rise * fall, 1.0)

    def _raw(self, path: str) -> Tensor:
        """Mean sensitivity of the components that act."""
        adapter, acting = self.adapters[path], self.born[path] != -2
        found = adapter.values.new_zeros(len(acting))
        for name in _ARRAYS:
            array = getattr(adapter, name)
            if array.grad is not None:
                size = (array * array.grad).abs()
                found = found + (size.mean(0) if size.ndim == 2 else size)
        return (found * acting).sum() / acting.sum()

    def _grow(self) -> None:
        free = self.budget - sum(int((born != -2).sum()) for born in self.born.values())
        paths = list(self.adapters)
        order = (self.mean * self.uncertain).argsort(descending=True, stable=True).tolist()
        room = [paths[i] for i in order if bool((self.born[paths[i]] == -2).any())]
        for path in room[: min(self.layers, free)] if free > 0 else []:
            index = int((self.born[path] == -2).nonzero()[0])
            self.born[path][index] = self.steps
            self.adapters[path].values[index] = self.gate

    @torch.no_grad()
    def _switch_off(self, path: str) -> None:
        self.adapters[path].values.masked_fill_(self.born[path] == -2, 0.0)

    def state(self):
        born = {path: a.clone() for path, a in self.born.items()}
        return {"steps": self.steps, "born": born, "mean": self.mean.clone(), "uncertain": self.uncertain.clone()}

    def restore(self, state):
        self.steps = int(state["steps"])
        for path, born in state["born"].items():
            self.born[path].copy_(born)
        self.mean.copy_(state["mean"])
        self.uncertain.copy_(state["uncertain"])


def _check_numbers(sizes: dict[str, int], budget: int, first: int, **positive: float) -> None:
    for what, number in positive.items():
        if not number > 0 and not (what == "warmup" and number == 0):
            raise ValueError(f"{what} must be positive, got {number}")
    if not 1 <= first <= min(sizes.values()):
        raise ValueError(f"first must lie between 1 and the rank, {min(sizes.values())}, got {first}")
    if not first * len(sizes) <= budget <= sum(sizes.values()):
        raise ValueError(
            f"budget must lie between {first * len(sizes)}, the components of the beginning, and "
            f"{sum(sizes.values())}, all that the ranks allow, got {budget}"
        )
