"""Steps of steepest descent among the matrices of the adapter's rank, in between those of the optimizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lowrank_sp.coverage import covers
from lowrank_sp.parameterizations import BurerMonteiro, FixedRank

from ..distributed import placements, unwrapped
from ..inject import acting, known
from .companion import Companion
from .forget import forget
from .keep import layer_at

__all__ = ["FixedRankSteps"]


@covers("O48")
class FixedRankSteps(Companion):
    """LORO: every so many steps the product ``B A^T`` moves along its Riemannian gradient, whatever the factors are.

    ``B A^T <- P_r(B A^T - eta P_T(G))`` with the projection P_T of the gradient on the tangent space of the matrices of
    rank r, and P_r back on them by the singular values of a matrix of rank 2 r. Both need nothing but the gradients of
    the factors, which are balanced afterwards. In these steps the optimizer leaves the factors alone, and what it
    knows of them is forgotten; in the others it moves them as ever.

    Parameters
    ----------
    model : Module
        With an active adapter of LoRA's form, such as products that start off zero beside weights that are zero, to
        train layers of low rank from scratch.
    optimizer : Optimizer
    every : int
        Steps from one to the next; the first step is one.
    ratio : float
        eta over the learning rate of the optimizer, which is that of plain descent here.
    name : str
        Of the adapter.

    Raises
    ------
    ValueError, TypeError
        If there is no such adapter, it is not active or of another form, or a number is out of range.

    Notes
    -----
    A product of less than the full rank, as at the start of LoRA, is no point of the manifold: there the optimizer
    takes its own step. Source: :cite:`mo2025loro`, whose abstract and description of its code state the two kinds of
    steps; section VI-B of :cite:`survey2026sp`.
    """

    sees_gradients = True
    excludes = ("ColumnScaling", "DeltaLoRA")

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        every: int = 100,
        ratio: float = 1.0,
        name: str = "default",
    ):
        model = unwrapped(model)
        made = known(model, name).recipe
        self.model, self.name, self.every, self.ratio, self.optimizer = model, name, every, ratio, optimizer
        self.paths = tuple(acting(model, name))
        for adapter in map(self.adapter, self.paths):
            if adapter.form is not BurerMonteiro or set(adapter.trains) != {"left", "right"} or made.shares:
                raise TypeError(f"recipe {made.name!r} has no product of two factors that both train; take 'lora'")
            if any(placements(p) is not None for p in adapter.parameters()):
                raise ValueError("the factors are sharded; their product can be moved as a whole only")
        if every < 1 or not ratio > 0:
            raise ValueError(f"every and ratio must be positive, got {every} and {ratio}")
        self.steps = 0
        self.attach(optimizer)

    def adapter(self, path: str) -> Any:
        """The adapter of a layer."""
        return layer_at(self.model, path).adapter(self.name)

    def parameters(self):
        return [getattr(self.adapter(path), name) for path in self.paths for name in ("left", "right")]

    @torch.no_grad()
    def before(self):
        if self.steps % self.every:
            return
        rates = {id(p): group["lr"] for group in self.optimizer.param_groups for p in group["params"]}
        moved = [a for a in map(self.adapter, self.paths) if _move(a, self.ratio * rates[id(a.left)])]
        for adapter in moved:
            adapter.left.grad = adapter.right.grad = None
        forget(self.optimizer, moved)

    def after(self):
        self.steps += 1

    def state(self):
        return {"steps": self.steps}

    def restore(self, state):
        self.steps = int(state["steps"])


def _move(adapter: Any, lr: float) -> bool:
    """One step of a product, unless it has less than its rank or no gradient; returns whether it was taken."""
    factors: list[Any] = [adapter.left, adapter.right]
    if any(f.grad is None for f in factors):
        return False
    left, right = (f.detach().double() for f in factors)
    left_grad, right_grad = (f.grad.double() / adapter.scale for f in factors)
    if not (_full(left) and _full(right)):
        return False
    point = FixedRank.from_product(adapter.scale * left, right)
    # G V and G^T U from G A and G^T B: the columns of V and U are combinations of those of A and B.
    gv = left_grad @ torch.linalg.lstsq(right, point.right).solution
    gu = right_grad @ torch.linalg.lstsq(left, point.left).solution
    core = point.left.mT @ gv
    tangent = FixedRank(gv - point.left @ core, core, gu - point.right @ core.mT)
    new = point.retract(tangent, lr)
    root = (new.core.diagonal() / adapter.scale).sqrt()
    adapter.left.copy_(new.left * root)
    adapter.right.copy_(new.right * root)
    return True


def _full(factor: Tensor) -> bool:
    """Whether the columns are independent, far from rounding."""
    values = torch.linalg.svdvals(factor)
    return bool(values[-1] > 1e-6 * values[0])
