"""Ranks that fall to a budget: the least important components of all layers are switched off."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowrank_sp.coverage import covers

from .base import Budget, RankPolicy, gated
from .importance import Importance, NormShare, Sensitivity

__all__ = ["Pruning", "adalora", "dynamic_components"]


class Pruning(RankPolicy):
    """After every step that is due, only the most important components of all layers keep their gates.

    A gate that was set to zero still has a gradient, and may come back while the budget falls.

    Parameters
    ----------
    model : Module
        With an active adapter of the form DiagonalCore.
    optimizer : Optimizer
    budget : Budget
    importance : Importance
    name : str
        Of the adapter.

    Raises
    ------
    ValueError, TypeError
        If there is no such adapter or its form has no gates, or the budget is above the rank that it has.
    """

    sees_gradients = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        budget: Budget,
        importance: Importance | None = None,
        name: str = "default",
    ):
        self.adapters = gated(model, name)
        self.budget, self.importance = budget, importance or Sensitivity()
        self.components = sum(len(adapter.values) for adapter in self.adapters.values())
        if budget.target * len(self.adapters) > self.components:
            raise ValueError(
                f"the target of {budget.target} components a layer is above the {self.components} of the "
                f"{len(self.adapters)} layers; adapt with a larger rank"
            )
        self.steps = 0
        self.sums = self.importance.zero(self.adapters)
        self.attach(optimizer)

    @torch.no_grad()
    def before(self):
        if self.budget.watched(self.steps + 1):
            self.importance.observe(self.adapters, self.sums)

    @torch.no_grad()
    def after(self):
        self.steps += 1
        if self.budget.due(self.steps):
            for path, off in self._off().items():
                self.adapters[path].values.masked_fill_(off, 0.0)

    def _off(self) -> dict[str, Tensor]:
        """By path, the components (r,) that the budget leaves out."""
        scores = self.importance.scores(self.adapters, self.sums)
        kept = self.budget.at(self.steps, self.components, len(self.adapters))
        off = torch.ones(self.components, dtype=torch.bool, device=next(iter(scores.values())).device)
        off[torch.cat(list(scores.values())).topk(kept).indices] = False
        return dict(zip(scores, off.split([len(score) for score in scores.values()]), strict=True))

    def state(self):
        return {"steps": self.steps, "sums": [[a.clone() for a in column] for column in self.sums]}

    def restore(self, state):
        self.steps = int(state["steps"])
        for mine, theirs in zip(self.sums, state["sums"], strict=True):
            torch._foreach_copy_(mine, list(theirs))


@covers("P20", "R10")
def adalora(model: nn.Module, optimizer: torch.optim.Optimizer, budget: Budget, name: str = "default") -> Pruning:
    """AdaLoRA's schedule of ranks: `Pruning` by `Sensitivity`.

    Parameters
    ----------
    model : Module
        With an adapter whose components have gates, such as the recipe ``"adalora"``.
    optimizer : Optimizer
        Its steps count; the policy is saved and resumed with it.
    budget : Budget
        How many components are left, and when.
    name : str
        Of the adapter.

    Notes
    -----
    Source: :cite:`zhang2023adalora`.

    >>> import llm_bridge as lb
    >>> model = lb.adapt(torch.nn.Sequential(torch.nn.Linear(6, 4)), "adalora", rank=3)
    >>> optimizer = lb.optimizer(model, lr=1e-2)
    >>> policy = lb.adalora(model, optimizer, lb.Budget(target=1, steps=4, last=1))
    >>> for _ in range(4):
    ...     model(torch.ones(3, 6)).square().mean().backward()
    ...     optimizer.step()
    >>> policy.ranks()
    {'0': 1}
    """
    return Pruning(model, optimizer, budget, Sensitivity(), name)


@covers("P36")
def dynamic_components(
    model: nn.Module, optimizer: torch.optim.Optimizer, budget: Budget, name: str = "default"
) -> Pruning:
    """DoRA of Mao et al., with dynamic ranks: `Pruning` by `NormShare`. Parameters as for `adalora`.

    Notes
    -----
    Source: :cite:`mao2024dora`.
    """
    return Pruning(model, optimizer, budget, NormShare(), name)
