"""Weights of components that held-out data choose, while the columns learn from the other data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_sp.coverage import covers

from .base import RankPolicy, gated

__all__ = ["SelectionWeights"]


@covers("O43", "R14")
class SelectionWeights(RankPolicy):
    """AutoLoRA: gates ``softmax(w)`` over the components of a layer, where w learns from held-out data.

    Steps of the optimizer move the columns, and whatever else it has, and leave w; those inside of `held_out` move w
    alone: nothing else moves, and the moments of the optimizer see no gradient of held-out data.
    Afterwards `chosen_ranks` counts the components with enough weight, for a second run at these ranks.

    Parameters
    ----------
    model : Module
        With an active adapter of the form DiagonalCore, whose ``values`` are set by this policy.
    optimizer : Optimizer
        Of the columns.
    lr : float
        Of w, by Adam.
    name : str
        Of the adapter.

    Raises
    ------
    ValueError, TypeError
        If there is no such adapter or its form has no gates, or the rate is not positive.

    Notes
    -----
    To first order: the gradient of w does not see how the columns would respond to it. The formula is that of the
    published method, which the survey names only. Source: :cite:`zhang2024autolora`, :cite:`he2026unified`.
    """

    sees_gradients = True
    excludes = (*RankPolicy.excludes, "Restarts")

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, lr: float = 1e-2, name: str = "default"):
        self.adapters, self.optimizer = gated(model, name), optimizer
        self.check(optimizer)
        if not lr > 0:
            raise ValueError(f"lr must be positive, got {lr}")
        self.logits = [nn.Parameter(torch.zeros_like(a.values)) for a in self.adapters.values()]
        self.adam = torch.optim.Adam(self.logits, lr=lr)
        self.steps, self.selecting = 0, False
        self._show()
        self.attach(optimizer)

    @contextmanager
    def held_out(self) -> Iterator[None]:
        """Steps of the optimizer inside move the weights of the components, by the gradients of held-out data."""
        self.selecting = True
        try:
            yield
        finally:
            self.selecting = False

    def weights(self) -> dict[str, Tensor]:
        """By path, the weights of the components (r,), which add up to one."""
        return {path: w.detach().softmax(0) for path, w in zip(self.adapters, self.logits, strict=True)}

    def chosen_ranks(self, threshold: float | None = None) -> dict[str, int]:
        """By path, the number of components with at least this weight; by default with their even share, 1 / r.

        At least one for every layer.
        """
        shares = {
            path: w.new_tensor(1 / len(w) if threshold is None else threshold) for path, w in self.weights().items()
        }
        return {path: max(1, int((w >= shares[path] - 1e-6).sum())) for path, w in self.weights().items()}

    @torch.no_grad()
    def before(self):
        if self.selecting:
            for adapter, logits in zip(self.adapters.values(), self.logits, strict=True):
                weights = logits.softmax(0)
                grad = torch.zeros_like(logits) if adapter.values.grad is None else adapter.values.grad.to(logits)
                logits.grad = weights * (grad - (weights * grad).sum())
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None

    @torch.no_grad()
    def after(self):
        self.steps += 1
        if self.selecting:
            self.adam.step()
        self._show()

    @torch.no_grad()
    def _show(self) -> None:
        for adapter, weights in zip(self.adapters.values(), self.weights().values(), strict=True):
            adapter.values.copy_(weights)

    def state(self) -> dict[str, Any]:
        logits = [w.detach().clone() for w in self.logits]
        return {"steps": self.steps, "logits": logits, "adam": self.adam.state_dict()}

    def restore(self, state):
        self.steps = int(state["steps"])
        with torch.no_grad():
            torch._foreach_copy_(self.logits, list(state["logits"]))
        self.adam.load_state_dict(state["adam"])
        self._show()
