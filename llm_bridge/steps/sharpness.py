"""Steps by the gradient at the worst point nearby: sharpness-aware minimization around any optimizer."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from lowrank_sp.coverage import covers

__all__ = ["SharpnessAware"]


@covers("O21")
class SharpnessAware:
    """SAM: ``g = grad L(theta + rho grad L / ||grad L||)`` in place of the gradient, and a step of the optimizer.

    Two backward passes a step. The parameters come back exactly to where they were before the step is taken.
    Schedulers, clipping (in the closure), and ``state_dict`` are those of the optimizer, which this one only calls.
    Not for scaled losses: train in bfloat16, or in single precision.

    Parameters
    ----------
    optimizer : Optimizer
        Ours, or any of torch.
    radius : float
        rho.
    roles : collection of str, optional
        Move only the parameters of groups with these roles to the worst point: ``lb.SharpnessAware.ADAPTERS`` for the
        factors alone, while a head that also trains stays where it is. By default all that the optimizer has.

    Raises
    ------
    ValueError
        If the radius is not positive, or no group has such a role.

    Notes
    -----
    In problems that depend on ``X Y^T`` alone it also reduces ``| ||X||_F^2 - ||Y||_F^2 |``.
    Source: :cite:`foret2021sam`, :cite:`survey2026sp`.
    """

    ADAPTERS = ("factors", "bucket")

    def __init__(self, optimizer: torch.optim.Optimizer, radius: float = 0.05, roles: Collection[str] | None = None):
        if not radius > 0:
            raise ValueError(f"radius must be positive, got {radius}")
        there = {str(group.get("role", "")) for group in optimizer.param_groups}
        if roles is not None and there.isdisjoint(roles):
            raise ValueError(f"no group of the optimizer has a role among {', '.join(roles)}; there are {there}")
        self.optimizer, self.radius, self.roles = optimizer, radius, roles

    def _moved(self) -> list[Tensor]:
        groups = [g for g in self.optimizer.param_groups if self.roles is None or g.get("role") in self.roles]
        return [p for group in groups for p in group["params"] if p.grad is not None]

    def step(self, closure: Callable[[], Any]) -> Any:
        """One step; returns the loss where the parameters were.

        Parameters
        ----------
        closure : callable () -> loss
            Clears the gradients, computes the loss and calls backward, as optimizers of torch ask for it.

        Raises
        ------
        ValueError
            If nothing that moves has a gradient after it.
        """
        with torch.enable_grad():
            loss = closure()
        moved = self._moved()
        if not moved:
            raise ValueError("no parameter that moves has a gradient after the closure; it must call backward")
        with torch.no_grad():
            old = [p.detach().clone() for p in moved]
            grads = [p.grad for p in moved if p.grad is not None]
            norms = torch.stack(torch._foreach_norm(grads))
            scale = self.radius / norms.norm().clamp_min(torch.finfo(norms.dtype).tiny)
            torch._foreach_add_(moved, [grad * scale.to(grad.dtype) for grad in grads])
        try:
            with torch.enable_grad():
                closure()
        finally:
            with torch.no_grad():
                torch._foreach_copy_(moved, old)
        self.optimizer.step()
        return loss

    def zero_grad(self) -> None:
        """As that of the optimizer."""
        self.optimizer.zero_grad()
