"""Weights that follow the change of their low-rank update, without touching them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowrank_sp.coverage import covers

from ..distributed import unwrapped
from ..inject import acting, known
from ..truncation import thin_sum
from .companion import Companion
from .keep import Beside, layer_at, set_past

__all__ = ["DeltaLoRA"]


@covers("O44")
class DeltaLoRA(Companion):
    """Delta-LoRA: after every step ``W`` moves by ``lambda s (B' A' - B A)``, the change of the update.

    All these changes together are ``lambda s (B_t A_t - B_K A_K)`` from the step K at which they begin, of rank 2r at
    most. So the weights stay as they are, and a second adapter ``<name>-past`` that does not train holds the sum as
    thin factors: a step writes arrays of the size of the factors instead of the weights, nothing rounds in half
    precision, and files, merging and `disable` work as ever.

    Parameters
    ----------
    model : Module
        With an active adapter with thin factors that are added to the weights.
    optimizer : Optimizer
    ratio : float
        lambda.
    first : int
        K: steps before the weights begin to follow.
    name : str
        Of the adapter.

    Raises
    ------
    ValueError
        If there is no such adapter, it is not active or has no thin factors to add, or a number is out of range.

    Notes
    -----
    The source leaves out dropout, without which ``B A`` has the same gradient as W. Source: :cite:`zi2023deltalora`;
    named in :cite:`he2026unified`.
    """

    excludes = ("Restarts",)  # which keep theirs in the same place

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        ratio: float = 2.0,
        first: int = 0,
        name: str = "default",
    ):
        model = unwrapped(model)
        made = known(model, name).recipe
        self.model, self.name, self.ratio, self.first = model, name, ratio, first
        self.paths = tuple(acting(model, name))
        if not made.combine.additive or not all(layer_at(model, p).adapter(name).thin for p in self.paths):
            raise ValueError(f"recipe {made.name!r} has no thin factors that are added to the weights; take 'lora'")
        if not ratio > 0 or first < 0:
            raise ValueError(f"ratio must be positive and first not negative, got {ratio} and {first}")
        self.steps = 0
        self.anchors: dict[str, tuple[Tensor, Tensor]] = {}
        self.check(optimizer)
        Beside().prepare(model, name)
        self.attach(optimizer)
        self._anchor()

    def parameters(self):
        return [p for path in self.paths for p in layer_at(self.model, path).adapter(self.name).parameters()]

    def _anchor(self) -> None:
        """Remember, at step K, the updates and what is kept beside already."""
        if self.steps != self.first:
            return
        with torch.no_grad():
            for path in self.paths:
                layer = layer_at(self.model, path)
                own = thin_sum([layer.adapter(self.name)], [-self.ratio])
                past = thin_sum([layer.adapter(f"{self.name}-past")], [1.0])
                used = [pair for pair in (own, past) if pair[0].any() and pair[1].any()] or [
                    (own[0][:, :0], own[1][:, :0])
                ]
                self.anchors[path] = torch.cat([a for a, _ in used], 1), torch.cat([b for _, b in used], 1)

    def before(self):
        pass

    @torch.no_grad()
    def after(self):
        self.steps += 1
        if self.steps > self.first:
            for path in self.paths:
                left, right = thin_sum([layer_at(self.model, path).adapter(self.name)], [self.ratio])
                left0, right0 = self.anchors[path]
                set_past(self.model, self.name, path, torch.cat((left, left0), 1), torch.cat((right, right0), 1))
        self._anchor()

    def state(self):
        anchors = {path: {"left": left, "right": right} for path, (left, right) in self.anchors.items()}
        return {"steps": self.steps, "anchors": anchors}

    def restore(self, state):
        self.steps = int(state["steps"])
        # Saved states are often read to the CPU, and these are no state of a parameter, which torch would move.
        devices = {path: layer_at(self.model, path).adapter(self.name).product()[0].device for path in self.paths}
        self.anchors = {p: (a["left"].to(devices[p]), a["right"].to(devices[p])) for p, a in state["anchors"].items()}
