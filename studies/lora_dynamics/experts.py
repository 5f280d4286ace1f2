"""Gates: the probability that hard-concrete ones are open, thresholds of routers, and the balance of typed experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from scipy.integrate import quad
from torch import Tensor, nn

import llm_bridge as lb
from llm_bridge.experts import LowRankExperts, Soft, ThresholdExperts, Typed

__all__ = ["balance", "gates", "threshold"]

Cell = Mapping[str, Any]


# hard-concrete gates ----------------------------------------------------------------------------------------------


def gates(cell: Cell) -> dict[str, Any]:
    """Share of open gates among draws of the policy, against its closed form and against an integral over the noise."""
    model: Any = lb.adapt(nn.Sequential(nn.Linear(64, 64)), "salora", rank=16)
    low, high = cell["range"]
    policy = lb.HardConcreteGates(
        model, lb.optimizer(model), budget=0.5, open=cell["open"], temperature=cell["temperature"], low=low, high=high
    )
    policy.logits.data = policy.logits.data.double()
    generator = torch.Generator().manual_seed(cell["seed"])
    noise = torch.rand(cell["draws"], len(policy.logits), generator=generator, dtype=torch.float64)
    with torch.no_grad():
        drawn, closed = policy.gates(noise), float(policy.open_share())
    policy.finish()
    shift = policy.logits[0].item()

    def is_open(u: float) -> float:
        soft = 1 / (1 + np.exp(-(np.log(u) - np.log1p(-u) + shift) / cell["temperature"]))
        return float(soft * (high - low) + low > 0)

    # The integrand is an indicator: its jump, found by bisection, splits the interval.
    edge = _jump(is_open)
    integral = sum(quad(is_open, a, b)[0] for a, b in ((1e-12, edge), (edge, 1 - 1e-12)))
    share = float((drawn > 0).double().mean())
    error = (closed * (1 - closed) / drawn.numel()) ** 0.5
    return {"drawn": share, "closed": closed, "integral": integral, "standard_errors": abs(share - closed) / error}


def _jump(indicator: Any) -> float:
    low, high = 1e-12, 1 - 1e-12
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if indicator(middle) else (middle, high)
    return high


# thresholds ---------------------------------------------------------------------------------------------------------


def threshold(cell: Cell) -> dict[str, Any]:
    """Gradients in what makes AdaMoLE's threshold: with weights as printed, and with those of the bridge."""
    rng = np.random.default_rng(cell["seed"])
    layer = ThresholdExperts.of(6)
    point = layer(*[torch.as_tensor(rng.standard_normal(s)) / 12**0.5 for s in layer.shapes((8, 12), 1)])
    x, target = torch.as_tensor(rng.standard_normal((64, 12))), torch.as_tensor(rng.standard_normal((64, 6)))
    found = {}
    for name in ("printed", "bridge"):
        moving = point.threshold.clone().requires_grad_()
        moved = point.with_array(point.names.index("threshold"), moving)
        level = torch.sigmoid(x @ moving + moved.offset)[:, None] / 6
        probabilities = moved.probabilities(x)
        weights = moved.weights(x) if name == "bridge" else probabilities * (probabilities > level) + 0 * level
        (gradient,) = torch.autograd.grad((weights - target).square().mean(), moving)
        found[f"{name}_gradient"] = float(gradient.abs().max())
    return found


# typed experts ------------------------------------------------------------------------------------------------------


def balance(cell: Cell) -> dict[str, Any]:
    """A router trained on a balance loss alone: weight on experts of the type of the input, before and after.

    The loss of LoRAMoE is minimized, as it is printed, or maximized, or that of the bridge is minimized.
    """
    form = LowRankExperts.of(8, Soft())
    recipe = lb.recipe("moe-lora").but("typed", form=form)
    model: Any = lb.adapt(nn.Sequential(nn.Linear(12, 8)), recipe, rank=1, seed=cell["seed"])
    adapter = lb.adapted(model)["0"].adapter("default")
    rng = np.random.default_rng(cell["seed"])
    labels = torch.as_tensor(np.arange(64) % 2)
    centres = torch.as_tensor(rng.standard_normal((2, 12)), dtype=torch.float32)
    x = centres[labels] + 0.5 * torch.as_tensor(rng.standard_normal((64, 12)), dtype=torch.float32)
    with torch.no_grad():
        adapter.router.zero_()
    optimizer = torch.optim.SGD([adapter.router], lr=cell["rate"])
    start, slope = _matched(adapter, x, labels), _slopes(cell, adapter, x, labels)
    for _ in range(cell["steps"]):
        optimizer.zero_grad()
        LOSSES[cell["loss"]](adapter.point(), x, labels, cell["delta"]).backward()
        optimizer.step()
    return {"before": start, "after": _matched(adapter, x, labels), **slope}


def _types(labels: Tensor, count: int) -> Tensor:
    """Which experts (..., E) have the type of the input: the first half is of type 0."""
    return (torch.arange(count) * 2 // count)[None, :] == labels[:, None]


def _dispersion(mass: Tensor, labels: Tensor, delta: float) -> Tensor:
    """Equations (128)-(129): variance over mean of ``I o Q``."""
    z = torch.where(_types(labels, mass.shape[1]), 1 + delta, 1 - delta) * mass
    return z.var(correction=0) / z.mean()


LOSSES: dict[str, Callable[..., Tensor]] = {
    "minimized": lambda point, x, labels, delta: _dispersion(point.probabilities(x), labels, delta),
    "maximized": lambda point, x, labels, delta: -_dispersion(point.probabilities(x), labels, delta),
    "bridge": lambda point, x, labels, delta: Typed(delta)(point, x[:, None], labels),
}


def _matched(adapter: Any, x: Tensor, labels: Tensor) -> float:
    """Mean weight of the experts of the type of the input."""
    with torch.no_grad():
        mass = adapter.point().probabilities(x)
        return float((mass * _types(labels, mass.shape[1])).sum(1).mean())


def _slopes(cell: Cell, adapter: Any, x: Tensor, labels: Tensor) -> dict[str, float]:
    """Derivative of the printed loss in the weights of matching and of other experts, at equal weights."""
    mass = adapter.point().probabilities(x).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(_dispersion(mass, labels, cell["delta"]), mass)
    same = _types(labels, mass.shape[1])
    return {"on_matching": float(gradient[same].mean()), "on_others": float(gradient[~same].mean())}
