"""Directions of the pretrained weight that training has turned to, as further components that train."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lowrank_sp.coverage import covers

from ..distributed import unwrapped
from ..inject import acting, adapt, check_name, known
from ..life import activate, active
from ..precision import precise
from ..truncation import thin_sum
from .companion import Companion
from .keep import layer_at

__all__ = ["TaskDirections"]


@covers("I20")
class TaskDirections(Companion):
    """LoRA-Dash: after some steps add ``sum_i d_i u_i v_i^T``, d from zero, for the directions that changed most.

    With the singular value decomposition ``W = sum_i sigma_i u_i v_i^T`` and the update ``D`` so far, those with the
    largest ``|u_i^T D v_i| / sigma_i``. They are a second adapter ``<name>-dash`` of the recipe 'lora-dash', there from
    the beginning and zero until then. Make this object, then the optimizer, and `attach` it to that.

    Parameters
    ----------
    model : Module
        With an active adapter with thin factors that are added to the weights.
    after : int
        Steps before the directions are chosen.
    count : int
        Directions of a layer, at most its shorter side.
    name : str
        Of the adapter.

    Raises
    ------
    ValueError
        If there is no such adapter, it is not active or has no thin factors to add, or a number is out of range.

    Notes
    -----
    Choosing takes a full decomposition of every weight, once. The numbers are those of published code; the formula is
    named only in :cite:`he2026unified`. Source: :cite:`si2024loradash`.
    """

    def __init__(self, model: nn.Module, after: int = 100, count: int = 8, name: str = "default"):
        model = unwrapped(model)
        made = known(model, name).recipe
        self.paths = tuple(acting(model, name))
        if not made.combine.additive or not all(layer_at(model, p).adapter(name).thin for p in self.paths):
            raise ValueError(f"recipe {made.name!r} has no thin factors that are added to the weights; take 'lora'")
        if after < 1:
            raise ValueError(f"after must be a positive number of steps, got {after}")
        self.model, self.name, self.after_steps, self.count, self.steps = model, name, after, count, 0
        self.extra = f"{name}-dash"
        check_name(model, self.extra)
        names, wanted = active(model), set(self.paths)
        flags = {id(p): p.requires_grad for p in model.parameters()}
        adapt(model, "lora-dash", rank=count, targets=lambda path, _: path in wanted, name=self.extra)
        activate(model, *names, self.extra)
        for p in model.parameters():
            p.requires_grad_(flags.get(id(p), p.requires_grad))
        for path in self.paths:
            extra = layer_at(model, path).adapter(self.extra)
            extra.left.zero_()  # until the directions are chosen
            extra.right.zero_()

    def parameters(self):
        return [p for path in self.paths for p in layer_at(self.model, path).adapter(self.extra).parameters()]

    def before(self):
        pass

    @torch.no_grad()
    def after(self):
        self.steps += 1
        if self.steps == self.after_steps:
            for path in self.paths:
                self._choose(path)

    def _choose(self, path: str) -> None:
        layer = layer_at(self.model, path)
        weight = layer.kind.weight(layer.base)
        u, s, vh = torch.linalg.svd(precise(weight), full_matrices=False)
        changes = change_rates(u, s, vh.mT, *thin_sum([layer.adapter(self.name)], [1.0]))
        best = changes.topk(self.count).indices
        extra: Any = layer.adapter(self.extra)
        extra.left.copy_(u[:, best])
        extra.right.copy_(vh[best].mT)

    def state(self):
        return {"steps": self.steps}

    def restore(self, state):
        self.steps = int(state["steps"])


def change_rates(u: Tensor, s: Tensor, v: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``|u_i^T left right^T v_i| / s_i`` for every direction (k,), without the matrix."""
    change = ((u.mT.to(left.dtype) @ left) * (v.mT.to(right.dtype) @ right)).sum(1).abs()
    return change / s.to(change.dtype).clamp_min(torch.finfo(s.dtype).tiny)
