"""Training without backward passes: gradients estimated from losses at two points."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowrank_sp.coverage import covers

__all__ = ["ZerothOrder"]


@covers("O23", "B06")
class ZerothOrder:
    """MeZO: the mean of ``z (L(theta + eps z) - L(theta - eps z)) / (2 eps)`` over Gaussian z as a gradient.

    A step needs as much memory as inference, and three arrays of the size of what trains: with adapters, next to
    nothing. The directions come from a seed and are drawn again where they are needed. Any rule may follow: the
    estimate is what the optimizer finds as gradient.

    Parameters
    ----------
    optimizer : Optimizer
        Ours, or any of torch, over what trains.
    epsilon : float
    samples : int
        Directions a step, each with two evaluations of the loss.
    seed : int

    Raises
    ------
    ValueError
        If a number is out of range.

    Notes
    -----
    The published code adds and subtracts directions in place; here the parameters come back exactly. In one process.
    Source: :cite:`malladi2023mezo`, :cite:`survey2026sp`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, epsilon: float = 1e-3, samples: int = 1, seed: int = 0):
        if not epsilon > 0:
            raise ValueError(f"epsilon must be positive, got {epsilon}")
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
            raise ValueError(f"samples must be a positive integer, got {samples!r}")
        self.optimizer, self.epsilon, self.samples, self.seed = optimizer, epsilon, samples, seed
        self.steps = 0

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]

    def directions(self, sample: int) -> Iterator[Tensor]:
        """The Gaussian direction of the present step, one array for every parameter, the same in every call."""
        number = int(np.random.SeedSequence([self.seed, self.steps, sample]).generate_state(1)[0])
        generators: dict[torch.device, torch.Generator] = {}
        for p in self._parameters():
            generator = generators.setdefault(p.device, torch.Generator(p.device).manual_seed(number))
            yield torch.randn(p.shape, generator=generator, device=p.device, dtype=p.dtype)

    @torch.no_grad()
    def step(self, loss: Callable[[], Any]) -> float:
        """One step; returns the mean of the losses that it saw.

        Parameters
        ----------
        loss : callable () -> scalar
            The loss of a batch, which must be the same in all calls within a step. It is called without gradients.

        Raises
        ------
        ValueError
            If a loss is not finite; the parameters are then as they were.
        """
        parameters = self._parameters()
        old = [p.clone() for p in parameters]
        grads, seen = [torch.zeros_like(p) for p in parameters], []
        for sample in range(self.samples):
            try:
                high, low = (self._at(old, sample, sign * self.epsilon, loss) for sign in (1, -1))
            finally:
                torch._foreach_copy_(parameters, old)
            if not np.isfinite(high) or not np.isfinite(low):
                raise ValueError(f"the loss is {high} and {low} near the parameters; a smaller lr or epsilon may help")
            slope = (high - low) / (2 * self.epsilon * self.samples)
            for grad, z in zip(grads, self.directions(sample), strict=True):
                grad.add_(z, alpha=slope)
            seen += [high, low]
        for p, grad in zip(parameters, grads, strict=True):
            p.grad = grad
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1
        return float(np.mean(seen))

    def _at(self, old: list[Tensor], sample: int, distance: float, loss: Callable[[], Any]) -> float:
        for p, start, z in zip(self._parameters(), old, self.directions(sample), strict=True):
            p.copy_(start + distance * z)
        return float(loss())

    def state_dict(self) -> dict[str, int]:
        """Beside the ``state_dict`` of the optimizer, what a resumed run needs."""
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue where `state_dict` was taken."""
        self.steps = int(state_dict["steps"])
