"""Columns of the factors at the sizes for which the next step of the weight is closest to that of full training."""

from __future__ import annotations

import numpy as np
import scipy.optimize
import torch
from torch import Tensor, nn

from lowrank_sp.coverage import covers
from lowrank_sp.parameterizations import BurerMonteiro
from lowrank_sp.rules import Adam

from ..distributed import placements, unwrapped
from ..inject import acting, known
from .companion import Companion
from .keep import Beside, Keep, layer_at

__all__ = ["ColumnScaling", "best_scales"]


def best_scales(
    left: Tensor, right: Tensor, left_grad: Tensor, right_grad: Tensor, limit: float = 2.0
) -> tuple[Tensor, Tensor]:
    """Factors (r,) for the columns of B and A that bring a step of ``B A^T`` closest to the gradient G.

    A step of descent with ``B diag(a)`` and ``A diag(b)`` moves the weight along
    ``sum_i a_i^2 b_i (G^T b_i)^T + b_i^2 (G a_i) a_i^T``. The squares are the nonnegative least squares fit of that to
    a multiple of G, whose normal equations need nothing but ``G A`` and ``G^T B``, the gradients of the factors; the
    multiple is the one that keeps the sum of squares of the factors.

    Parameters
    ----------
    left, right : Tensor (m, r) and (n, r)
        B and A.
    left_grad, right_grad : Tensor (m, r) and (n, r)
        ``G A`` and ``G^T B``, or multiples of them.
    limit : float
        Factors lie between its inverse and itself.

    Returns
    -------
    tuple of Tensor (r,)
        Ones for columns whose size makes no difference.
    """
    b, a, p, q = (t.double() for t in (left, right, left_grad, right_grad))
    cross = (b.mT @ p) * (q.mT @ a)
    gram = torch.cat(
        (torch.cat(((b.mT @ b) * (q.mT @ q), cross), 1), torch.cat((cross.mT, (p.mT @ p) * (a.mT @ a)), 1))
    )
    wanted = torch.cat((q.square().sum(0), p.square().sum(0)))
    sizes = torch.cat((b.square().sum(0), a.square().sum(0)))
    squares = torch.as_tensor(_nonnegative(gram.cpu().numpy(), wanted.cpu().numpy())).to(sizes)
    matters = (gram.diagonal() > 0) & (sizes > 0)
    total = (squares * sizes)[matters].sum()
    if not total > 0:
        return torch.ones_like(left[0]), torch.ones_like(right[0])
    squares = squares * (sizes[matters].sum() / total)
    scales = torch.where(matters, squares.sqrt().clamp(1 / limit, limit), 1.0)
    first, second = scales.chunk(2)
    return first.to(left.dtype), second.to(right.dtype)


def _nonnegative(gram: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The minimiser of ``v^T gram v - 2 v . wanted`` over ``v >= 0``, for a positive semidefinite matrix."""
    values, vectors = np.linalg.eigh(gram)
    kept = values > 1e-12 * max(values[-1], 0.0)
    if not kept.any():
        return np.zeros_like(wanted)
    root = np.sqrt(values[kept])
    return scipy.optimize.nnls(root[:, None] * vectors[:, kept].T, vectors[:, kept].T @ wanted / root)[0]


@covers("O34")
class ColumnScaling(Companion):
    """ScaLoRA: before a step, the columns of B and A take the sizes of `best_scales`, and the model stays the same.

    What the update loses by that is kept, beside the weights or in them, so that the changes of many steps add up to a
    high rank. AdamW goes on as if the columns had had their sizes all along: its moments are multiplied as the
    gradients are, those of B by the scales of A and the other way round.

    Parameters
    ----------
    model : Module
        With an active adapter of plain LoRA's form and rule.
    optimizer : Optimizer
    every : int
        Steps between two changes of sizes.
    limit : float
        Largest factor by which a column is changed at once.
    keep : Keep, optional
        By default `Beside`, whose rank grows by up to twice that of the adapter each time; `InWeights` is the published
        way.
    name : str
        Of the adapter.

    Raises
    ------
    ValueError, TypeError
        If there is no such adapter, it is not active, is of another form or rule, or a number is out of range.

    Notes
    -----
    The least squares problem is that of the source, whose constant (the smoothness of the loss times the learning
    rate) is not known; here the sum of squares of the factors stays. The fit is done on the CPU, so that a step waits
    for the device. The survey names the method without its rule. Source: :cite:`zhang2025scalora`.
    """

    sees_gradients = True
    excludes = ("Restarts", "DeltaLoRA")

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        every: int = 1,
        limit: float = 2.0,
        keep: Keep | None = None,
        name: str = "default",
    ):
        model = unwrapped(model)
        made = known(model, name).recipe
        self.model, self.name, self.every, self.limit = model, name, every, limit
        self.paths = tuple(acting(model, name))
        for adapter in map(self.adapter, self.paths):
            plain = adapter.form is BurerMonteiro and not adapter.shifted and set(adapter.trains) == {"left", "right"}
            if not plain or not adapter.combine.additive or made.rule != Adam() or made.shares:
                raise TypeError(f"recipe {made.name!r} has no columns that AdamW moves; take 'lora' or 'rslora'")
            if any(placements(p) is not None for p in adapter.parameters()):
                raise ValueError("the factors are sharded; their columns can be changed as a whole only")
        if every < 1 or not limit > 1:
            raise ValueError(f"every must be positive and limit above 1, got {every} and {limit}")
        self.check(optimizer)
        self.optimizer, self.keep, self.steps = optimizer, keep or Beside(), 0
        self.keep.prepare(model, name)
        self.attach(optimizer)

    def adapter(self, path: str):
        """The adapter of a layer."""
        return layer_at(self.model, path).adapter(self.name)

    def parameters(self):
        return [p for path in self.paths for p in self.adapter(path).parameters()]

    @torch.no_grad()
    def before(self):
        if self.steps % self.every == 0:
            for path in self.paths:
                self._scale(path)

    def _scale(self, path: str) -> None:
        adapter = self.adapter(path)
        left, right = adapter.left, adapter.right
        if left.grad is None or right.grad is None:
            return
        first, second = best_scales(left, right, left.grad, right.grad, self.limit)
        old = adapter.scale * left.detach().double(), right.detach().double().clone()
        left.mul_(first)
        right.mul_(second)
        self._transport(left, second)
        self._transport(right, first)
        new = -adapter.scale * left.detach().double(), right.detach().double()
        pair = torch.cat((old[0], new[0]), 1), torch.cat((old[1], new[1]), 1)
        self.keep.absorb(self.model, self.name, path, *pair)

    def _transport(self, parameter: Tensor, scales: Tensor) -> None:
        """Gradient and moments as they would be with the other factor's columns at their new sizes."""
        gradient, state = parameter.grad, self.optimizer.state.get(parameter, {})
        if gradient is not None:
            gradient.mul_(scales)
        if "exp_avg" in state:
            state["exp_avg"].mul_(scales)
            state["exp_avg_sq"].mul_(scales**2)

    def after(self):
        self.steps += 1

    def state(self):
        return {"steps": self.steps}

    def restore(self, state):
        self.steps = int(state["steps"])
