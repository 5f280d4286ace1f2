"""Steps of LoRA on a linear layer by the optimizer of the bridge, with the gradients in the weight beside them.

Symbols are those of the source: W (m, n) acts on rows from the right, the update is ``s A B``; layers of torch store
the transposed matrices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import llm_bridge as lb
import lowrank_sp as lr
from llm_bridge.steps.compressed import CompressedAdamW, Projection
from lowrank_sp.rules import Plain, translate
from studies.lora_dynamics.common import gap

__all__ = ["closed", "compression", "oscillation"]

Cell = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """What a run leaves: scale, factors before every step and after the last, and the gradients (m, n) of W."""

    scale: float
    left: list[np.ndarray]
    right: list[np.ndarray]
    gradients: list[np.ndarray]

    @property
    def updates(self) -> list[np.ndarray]:
        """``s A_t B_t``."""
        return [self.scale * a @ b for a, b in zip(self.left, self.right, strict=True)]

    def sums(self) -> list[np.ndarray]:
        """Sums of the first t gradients, for t = 0, 1, ..."""
        return [np.zeros_like(self.gradients[0]), *np.cumsum(self.gradients, axis=0)]


def _layer(size: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(size, size, bias=False)).double()


def _batches(size: int, steps: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Inputs, and targets of another matrix: a regression with fresh data in every step."""
    rng = np.random.default_rng([seed, 1])
    truth = rng.standard_normal((size, size)) / size**0.5
    inputs = [rng.standard_normal((4 * size, size)) for _ in range(steps)]
    return [(torch.as_tensor(x), torch.as_tensor(x @ truth)) for x in inputs]


def _loss(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    return 0.5 * (x @ weight.mT - y).square().sum(1).mean()


def lora(cell: Cell, recipe: str = "lora", start: tuple[Tensor, ...] | None = None) -> Run:
    """Plain descent of the factors; the start is that of the recipe unless given."""
    model = lb.adapt(_layer(cell["size"], cell["seed"]), recipe, cell["rank"], alpha=2.0 * cell["rank"],
                     seed=cell["seed"], dtype=torch.float64)  # fmt: skip
    layer: Any = lb.adapted(model)["0"]
    adapter = layer.adapter("default")
    if start is not None:
        with torch.no_grad():
            for name, value in zip(("left", "right"), start, strict=True):
                getattr(adapter, name).copy_(value)
    optimizer = lb.optimizer(model, lr=cell["rate"], rule=Plain())
    run = Run(adapter.scale, [], [], [])
    for x, y in _batches(cell["size"], cell["steps"], cell["seed"]):
        _note(run, adapter)
        whole = (layer.base.weight + adapter.update()).detach().requires_grad_()
        run.gradients.append(torch.autograd.grad(_loss(x, y, whole), whole)[0].numpy().T)
        optimizer.zero_grad()
        (0.5 * (model(x) - y).square().sum(1).mean()).backward()
        optimizer.step()
    _note(run, adapter)
    return run


def _note(run: Run, adapter: Any) -> None:
    run.left.append(adapter.right.detach().numpy().copy())
    run.right.append(adapter.left.detach().numpy().T.copy())


# closed forms -----------------------------------------------------------------------------------------------------


def inductive(gradients: list[np.ndarray], rate: float) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """``f_A(t)`` and ``f_B(t)`` of equations (72)-(73) for t = 0, 1, ..., with ``rate = eta s``."""
    m, n = gradients[0].shape
    on_a, on_b = [np.zeros((m, m))], [np.zeros((m, n))]
    for g in gradients:
        on_a, on_b = (
            [*on_a, on_a[-1] - rate * g @ on_b[-1].T],
            [*on_b, on_b[-1] - g - rate * on_a[-1].T @ g],
        )
    return on_a, on_b


def bounds(gradients: list[np.ndarray], rate: float, on_a: list[np.ndarray]) -> tuple[float, float]:
    """``eta s L``, and the largest ``||f_A(t)||_2`` relative to the bound (75), with the smallest L that is allowed."""
    limit = max(np.linalg.norm(total) for total in np.cumsum(gradients, axis=0))
    q = (rate * limit) ** 2
    ratios = [
        np.linalg.norm(f, 2) / (rate * limit**2 * (1 - q**t) / (1 - q)) for t, f in enumerate(on_a) if t and q < 1
    ]
    return rate * limit, max(ratios, default=float("nan"))


def closed(cell: Cell) -> dict[str, Any]:
    """A run of LoRA against its closed forms, and against the compression of gradients by its start."""
    run = lora(cell)
    s, eta, a0 = run.scale, cell["rate"], run.left[0]
    on_a, on_b = inductive(run.gradients, eta * s)
    product, end = a0 @ a0.T, run.updates[-1]
    first, second = eta * s**2 * product @ on_b[-1], eta**2 * s**3 * on_a[-1] @ product @ on_b[-1]
    compressed = -eta * s**2 * product @ run.sums()[-1]
    small, share = bounds(run.gradients, eta * s, on_a)
    return {
        "left_gap": max(gap(a, a0 + eta * s * f @ a0) for a, f in zip(run.left, on_a, strict=True)),
        "right_gap": max(gap(b, eta * s * a0.T @ f) for b, f in zip(run.right[1:], on_b[1:], strict=True)),
        "update_gap": gap(end, first + second),
        "printed_gap": gap(end, eta * s**2 * product @ on_a[-1] + eta**2 * s**3 * on_b[-1] @ product @ on_a[-1]),
        "second_term": float(np.linalg.norm(second) / np.linalg.norm(first)),
        "rate_times_limit": small,
        "rate_over_limit": eta * s / (small / (eta * s)),
        "bound_share": share,
        "compression_gap": gap(end, compressed),
        "sign": float((end * (-compressed)).sum() / np.linalg.norm(end) / np.linalg.norm(compressed)),
        **_one_step(cell),
    }


def _one_step(cell: Cell) -> dict[str, float]:
    """The first step from two random factors against equation (4), with no, one and two powers of the scale."""
    size, rank = cell["size"], cell["rank"]
    rng = np.random.default_rng([cell["seed"], 2])
    b, a = (torch.as_tensor(rng.standard_normal((size, rank)) / size**0.5) for _ in range(2))
    step = lora({**cell, "steps": 1, "rate": 1e-6}, start=(b, a))
    g, left, right = step.gradients[0], step.left[0], step.right[0]
    moved = (step.updates[1] - step.updates[0]) / -1e-6
    direction = left @ left.T @ g + g @ right.T @ right
    return {f"step_gap_{power}": gap(moved, step.scale**power * direction) for power in (0, 1, 2)}


def oscillation(cell: Cell) -> dict[str, Any]:
    """Two batches with opposite gradients in turn: their sums stay bounded, and the factors do not."""
    rng = np.random.default_rng(cell["seed"])
    m, n, r = 12, 10, 3
    g = np.outer(rng.standard_normal(m), rng.standard_normal(n))
    g /= np.linalg.norm(g)
    a0, gradients, rule = rng.standard_normal((m, r)), [], Plain()
    point: Any = lr.BurerMonteiro(a0, np.zeros((n, r)))
    for t in range(cell["steps"]):
        gradients.append((-1) ** t * g)
        direction, _ = rule.update(point.pullback(gradients[-1]), (), point)
        point = translate(point, direction, cell["rate"])
    on_a, _ = inductive(gradients, cell["rate"])
    return {
        "left_gap": gap(point.left, a0 + cell["rate"] * on_a[-1] @ a0),
        "bound_share": bounds(gradients, cell["rate"], on_a)[1],
    }


# compression ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Given(Projection):
    """The columns of a matrix that is given."""

    matrix: Any

    def columns(self, gradient, rank, rng):
        return self.matrix


def compression(cell: Cell) -> dict[str, Any]:
    """AdamW on whole weights with moments of compressed gradients, against LoRA with the same matrix frozen as A."""
    size, rank = cell["size"], cell["rank"]
    frozen: Any = lb.adapt(_layer(size, cell["seed"]), "lora-fa", rank, dtype=torch.float64, seed=cell["seed"])
    layer = lb.adapted(frozen)["0"]
    columns = layer.adapter("default").right.detach().clone()
    # Gradients (out, in) of a square layer are projected from the left, so the whole weights are trained transposed.
    whole = nn.Parameter(_layer(size, cell["seed"])[0].weight.detach().T.contiguous())
    optimizers = [
        lb.optimizer(frozen, lr=cell["rate"]),
        CompressedAdamW([whole], cell["rate"], rank, 10**9, 1.0, Given(columns)),
    ]
    for x, y in _batches(size, cell["steps"], cell["seed"]):
        outputs = (partial(frozen, x), partial(torch.matmul, x, whole))
        for output, optimizer in zip(outputs, optimizers, strict=True):
            optimizer.zero_grad()
            (0.5 * (output() - y).square().sum(1).mean()).backward()
            optimizer.step()
    start = _layer(size, cell["seed"])[0].weight.detach().T.numpy()
    ends = [(layer.base.weight + layer.adapter("default").update()).detach().T.numpy(), whole.detach().numpy()]
    state = optimizers[1].state[whole]
    return {
        "weights_gap": gap(*[end - start for end in ends]),
        "state_share": float(state["first"].numel() / whole.numel()),
        "rank_share": rank / size,
        "moved": float(np.linalg.norm(ends[1] - start) / np.linalg.norm(start)),
    }
