"""Steps that say little about any single sample: clipped gradients of samples, and noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowrank_sp.coverage import covers

__all__ = ["PrivateSteps"]


@covers("O50", "A24")
class PrivateSteps:
    """DP-SGD: ``(sum_i g_i min(1, C / ||g_i||) + N(0, (sigma C)^2)) / B`` in place of the gradient of a batch.

    With the recipe 'lora-fa' only one factor trains, so that the update is linear in what is noisy and no product of
    noise with noise arises. Any rule may follow. One backward pass for every sample; gradients have the size of the
    factors.

    Parameters
    ----------
    optimizer : Optimizer
        Ours, or any of torch, over what trains.
    clip : float
        C, the largest norm of a sample's gradient over all that trains.
    noise : float
        sigma, the noise multiplier, at least 0.
    batch : int
        B, the expected size of a batch, whatever the sizes of the batches drawn.
    seed : int
        Of the noise. Privacy asks for one that nobody knows, such as ``secrets.randbits(128)``.

    Raises
    ------
    ValueError
        If a number is out of range.

    Notes
    -----
    Drawing batches (every sample on its own, with the same probability) and accounting for the privacy that all steps
    together spend are up to the caller. The noise is that of torch's generators, which are not made for cryptography.
    In one process: samples are differentiated without DistributedDataParallel.
    Source: :cite:`abadi2016dpsgd`, :cite:`sun2024ffalora`; named in :cite:`survey2026sp`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, clip: float, noise: float, batch: int, seed: int = 0):
        if not clip > 0 or not noise >= 0 or not batch >= 1:
            raise ValueError(f"clip and batch must be positive and noise not negative, got {clip}, {batch} and {noise}")
        self.optimizer, self.clip, self.noise, self.batch, self.seed = optimizer, clip, noise, batch, seed
        self.steps = 0

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]

    def step(self, loss: Callable[[Any], Tensor], samples: Sequence[Any]) -> float:
        """One step; returns the mean loss, which is not private.

        Parameters
        ----------
        loss : callable (sample) -> scalar
            Of one sample alone.
        samples : sequence
            The batch, which may be empty: then there is noise alone.

        Raises
        ------
        ValueError
            If a loss or a gradient is not finite.
        """
        parameters, seen = self._parameters(), []
        total = [torch.zeros_like(p) for p in parameters]
        for sample in samples:
            value = loss(sample)
            grads = torch.autograd.grad(value, parameters, allow_unused=True)
            found = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)]
            norm = torch.stack(torch._foreach_norm(found)).norm()
            if not torch.isfinite(norm) or not torch.isfinite(value.detach()):
                raise ValueError("the loss or the gradient of a sample is not finite; no step was taken")
            shrink = float((self.clip / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp(max=1.0))
            torch._foreach_add_(total, found, alpha=shrink)
            seen.append(float(value.detach()))
        number = int(np.random.SeedSequence([self.seed, self.steps]).generate_state(1, np.uint64)[0])
        generators: dict[torch.device, torch.Generator] = {}
        for p, grad in zip(parameters, total, strict=True):
            generator = generators.setdefault(p.device, torch.Generator(p.device).manual_seed(number))
            drawn = torch.randn(p.shape, generator=generator, device=p.device, dtype=p.dtype)
            p.grad = (grad + self.noise * self.clip * drawn) / self.batch
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1
        return float(np.mean(seen)) if seen else float("nan")

    def state_dict(self) -> dict[str, int]:
        """Beside the ``state_dict`` of the optimizer, what a resumed run needs."""
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue where `state_dict` was taken."""
        self.steps = int(state_dict["steps"])
