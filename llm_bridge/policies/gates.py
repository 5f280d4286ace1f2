"""Gates that are random while they learn, and closed or open in the end: a budget as a constraint on their number."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lowrank_sp.coverage import covers

from ..distributed import unwrapped
from .base import RankPolicy, gated

__all__ = ["HardConcreteGates"]


@covers("P22", "O39", "R12")
class HardConcreteGates(RankPolicy):
    """SaLoRA: hard-concrete gates with a Lagrangian for the share of them that may be open.

    A gate is ``clip(sigma((log u - log(1 - u) + log d) / tau) (zeta - gamma) + gamma, 0, 1)`` with a u from U(0, 1) for
    every step; it is open with probability ``P = sigma(log d - tau log(-gamma / zeta))``. The gradient of the
    loss in the gates, and that of ``beta (mean P - b)^2``, move ``log d`` by Adam; beta grows with the violation. In
    evaluation mode gates are those of ``u = 1/2``; the adapters hold these between steps, for saving and merging, and
    the random ones from a call of the model in training until the step.

    Parameters
    ----------
    model : Module
        With an active adapter of the form DiagonalCore, whose ``values`` are set by this policy.
    optimizer : Optimizer
        Of the columns.
    budget : float
        b in (0, 1], the share of components.
    lr : float
        Of ``log d``.
    weight, growth : float
        beta at the beginning, and what ``growth (mean P - b)^2`` adds to it in every step.
    open : float
        P at the beginning, in (0, 1).
    temperature, low, high : float
        tau, gamma < 0 and zeta > 1.
    seed : int
    name : str
        Of the adapter.

    Raises
    ------
    ValueError, TypeError
        If there is no such adapter or its form has no gates, or a number is out of range.

    Notes
    -----
    Equation (49) of the survey divides by one layer's rank and sums over layers; here b is the share of all gates.
    How its beta is raised is not given. Source: :cite:`hu2023salora`; equations (46)-(49) of :cite:`he2026unified`.
    """

    sees_gradients = True
    excludes = (*RankPolicy.excludes, "Restarts")

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        budget: float,
        lr: float = 1e-2,
        weight: float = 1.0,
        growth: float = 1.0,
        open: float = 0.9,
        temperature: float = 2 / 3,
        low: float = -0.1,
        high: float = 1.1,
        seed: int = 0,
        name: str = "default",
    ):
        self.adapters = gated(model, name)
        self.check(optimizer)
        if not 0 < budget <= 1 or not 0 < open < 1:
            raise ValueError(f"budget must lie in (0, 1] and open in (0, 1), got {budget} and {open}")
        if not (lr > 0 and weight >= 0 and growth >= 0 and temperature > 0 and low < 0 and high > 1):
            raise ValueError(
                "needs lr > 0, weight >= 0, growth >= 0, temperature > 0, low < 0 and high > 1, got "
                f"{lr}, {weight}, {growth}, {temperature}, {low}, {high}"
            )
        self.budget, self.weight, self.growth = budget, weight, growth
        self.temperature, self.low, self.high = temperature, low, high
        self.sizes = [len(adapter.values) for adapter in self.adapters.values()]
        like = next(iter(self.adapters.values())).values
        at_open = torch.logit(torch.tensor(open, dtype=torch.float64)) + temperature * torch.log(
            torch.tensor(-low / high, dtype=torch.float64)
        )
        self.logits = nn.Parameter(torch.full((sum(self.sizes),), float(at_open), device=like.device))
        self.adam = torch.optim.Adam([self.logits], lr=lr)
        self.random = torch.Generator().manual_seed(seed)
        self.steps = 0
        self._draw()
        self.attach(optimizer)
        self._handles.append(unwrapped(model).register_forward_pre_hook(self._before_forward))

    # gates ---------------------------------------------------------------------------------------------------
    def gates(self, noise: Tensor | None = None) -> Tensor:
        """All gates, differentiable in ``logits``, at a noise u; by default at 1/2."""
        shift = 0.0 if noise is None else torch.logit(noise)
        soft = torch.sigmoid((shift + self.logits) / self.temperature)
        return (soft * (self.high - self.low) + self.low).clamp(0.0, 1.0)

    def open_share(self) -> Tensor:
        """Mean probability that a gate is open, differentiable in ``logits``."""
        shift = self.temperature * torch.log(torch.tensor(-self.low / self.high))
        return torch.sigmoid(self.logits - shift.to(self.logits)).mean()

    def penalty(self) -> Tensor:
        """``beta (mean P - b)^2``."""
        return self.weight * (self.open_share() - self.budget) ** 2

    def ranks(self):
        """By path, the number of components whose gate is open in evaluation."""
        with torch.no_grad():
            counts = [int(part.count_nonzero()) for part in self.gates().split(self.sizes)]
        return dict(zip(self.adapters, counts, strict=True))

    # what the optimizer calls --------------------------------------------------------------------------------
    def before(self):
        grads = [torch.zeros_like(a.values) if a.values.grad is None else a.values.grad for a in self.adapters.values()]
        with torch.enable_grad():
            loss = (self.gates(self.noise) * torch.cat(grads).to(self.logits)).sum() + self.penalty()
            self.logits.grad = torch.autograd.grad(loss, self.logits)[0]

    @torch.no_grad()
    def after(self):
        self.adam.step()
        self.weight += self.growth * float((self.open_share() - self.budget) ** 2)
        self.steps += 1
        self._draw()

    def _before_forward(self, module: nn.Module, _: Any) -> None:
        self._show(module.training)

    def finish(self) -> None:
        """Leave the gates of evaluation in the adapters where a step did not follow the last call of the model."""
        self._show(False)

    def _draw(self) -> None:
        """New noise, for the calls to come."""
        u = torch.rand(sum(self.sizes), generator=self.random).clamp_(1e-6, 1 - 1e-6)
        self.noise = u.to(self.logits)
        self._shown: bool | None = None
        self._show(False)

    @torch.no_grad()
    def _show(self, training: bool) -> None:
        """Write the gates of training or of evaluation into the adapters, where they are not there already."""
        if training is self._shown:
            return
        parts = self.gates(self.noise if training else None).split(self.sizes)
        for adapter, part in zip(self.adapters.values(), parts, strict=True):
            adapter.values.copy_(part)
        self._shown = training

    def state(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "logits": self.logits.detach().clone(),
            "noise": self.noise.clone(),
            "weight": self.weight,
            "adam": self.adam.state_dict(),
            "random": self.random.get_state(),
        }

    def restore(self, state):
        self.steps, self.weight = int(state["steps"]), float(state["weight"])
        with torch.no_grad():
            self.logits.copy_(state["logits"])
        self.noise = state["noise"].to(self.logits)
        self.adam.load_state_dict(state["adam"])
        self.random.set_state(state["random"].cpu())
        self._shown = None
        self._show(False)
