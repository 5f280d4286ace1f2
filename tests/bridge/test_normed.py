"""Differences of normed directions: derivatives, what is kept, how many operations they take, and their ways."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import llm_bridge as lb
from llm_bridge.functions import add_normed
from llm_bridge.noise import ModuleDropout, RankDropout
from lowrank_sp.parameterizations import DeLoRA
from studies.overhead.ledger import Ledger

from .layer_cases import One, move, outputs_and_gradients
from .test_functions import draw, saved_bytes
from .test_one_sided import conv1d

K, M, N, R = 5, 4, 6, 2
MOST = 3 * 17  # of LoRA there are 17 at most: casts, six products, sums and copies


def arrays(seed=0, grad=True) -> tuple[Any, ...]:
    return (
        draw(M, R, seed=seed + 1, grad=grad), draw(N, R, seed=seed + 2, grad=grad),
        draw(1, seed=seed + 3, grad=grad), draw(N, seed=seed + 4, grad=False).abs(),
    )  # fmt: skip


def change(point, start):
    """Term by term, as the source prints it."""
    total = torch.zeros(M, N, dtype=torch.float64)
    for sign, (left, right, strength, norms) in ((1, point), (-1, start)):
        for x, y in zip(left.T, right.T, strict=True):
            total = total + sign * strength / R * torch.outer(x, y) * norms / (x.norm() * y.norm())
    return total


@pytest.mark.covers("P92")
def test_first_and_second_derivatives():
    moving, start = arrays(), arrays(10, grad=False)
    norms = moving[3]

    def function(out, x, *moving):
        return add_normed(out.clone(), x, DeLoRA(*moving, norms), DeLoRA(*start), 0.7)

    inputs = (draw(K, M), draw(K, N), *moving[:3])
    expected = inputs[0] + 0.7 * inputs[1] @ change(moving, start).T
    torch.testing.assert_close(function(*inputs), expected)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)
    for frozen in range(1, 5):
        some = [t.detach().requires_grad_(i != frozen) for i, t in enumerate(inputs)]
        assert torch.autograd.gradcheck(function, some)


def test_it_starts_exactly_at_zero_in_every_type():
    for dtype in (torch.float32, torch.bfloat16):
        point = DeLoRA(*[a.detach().float() for a in arrays()])
        out, x = torch.randn(K, M).to(dtype), torch.randn(K, N).to(dtype)
        assert torch.equal(add_normed(out.clone(), x, point, point, 2.0), out)


def test_a_direction_that_vanishes_adds_nothing():
    left, right, strength, norms = (a.detach().float() for a in arrays())
    left[:, 0], right[:, 0] = 0, 0
    moving = [t.requires_grad_() for t in (left, right, strength)]
    point, start = DeLoRA(*moving, norms), DeLoRA(*[a.detach().float() for a in arrays(10)])
    x = torch.randn(K, N)
    out = add_normed(torch.zeros(K, M), x, point, start, 1.0)
    torch.testing.assert_close(out, F.linear(x, (point.dense() - start.dense()).detach()))
    out.sum().backward()
    assert all(torch.isfinite(t.grad[:, 1] if t.ndim == 2 else t.grad).all() for t in moving if t.grad is not None)


def test_it_keeps_the_channels_and_what_is_of_the_size_of_the_rank():
    point, start = DeLoRA(*arrays()), DeLoRA(*arrays(10, grad=False))
    x = draw(K, N)
    own = (x, *point.arrays(), *start.arrays())
    kept, _ = saved_bytes(lambda: add_normed(torch.zeros(K, M, dtype=x.dtype), x, point, start, 1.0), own)
    assert kept == 8 * (2 * R * K + 4 * R + 2 * R)


def operations(name):
    """Calls that read or write arrays in a step of one adapted layer in half precision, beyond those without."""
    counts = []
    for adapts in (False, True):
        model: Any = nn.Sequential(nn.Linear(64, 48, bias=False)).bfloat16().requires_grad_(False)
        if adapts:
            lb.adapt(model, name, rank=4, targets=["0"], dtype=torch.float32)
        x = torch.randn(16, 64, dtype=torch.bfloat16, requires_grad=True)
        with Ledger() as ledger:
            model(x).sum().backward()
        counts.append(ledger.kernels)
    return counts[1] - counts[0]


def test_lora_takes_few_operations():
    assert operations("lora") <= MOST / 3


@pytest.mark.parametrize("name", ["delora", "dora"])
def test_fewer_operations_than_three_times_those_of_lora(name):
    assert operations(name) < MOST


OPTIONS: dict[str, tuple[Any, float]] = {
    "plain": (None, 0.0), "dropout": (None, 0.3), "gate": (ModuleDropout, 0.3), "components": (RankDropout, 0.5),
}  # fmt: skip
LAYERS = {
    "linear": (lambda: nn.Linear(12, 10), lambda: draw(20, 5, 12)),
    "conv1d": (lambda: conv1d(12, 10), lambda: draw(20, 5, 12)),
    "conv2d": (lambda: nn.Conv2d(3, 10, 2), lambda: draw(2, 3, 4, 4)),
    "embedding": (lambda: nn.Embedding(12, 10), lambda: torch.arange(10).view(2, 5)),
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", LAYERS)
def test_outputs_and_gradients_are_those_of_thin_factors(kind, options):
    layer, inputs = LAYERS[kind]
    noise, rate = OPTIONS[options]
    ways = (lb.Directed(), lb.Additive())
    found = [outputs_and_gradients("delora", combine, layer, inputs, noise, rate) for combine in ways]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_autocast_computes_in_its_type():
    torch.manual_seed(0)
    model: Any = One(nn.Linear(12, 10))
    lb.adapt(model, "delora", rank=2, targets=["layer"])
    move(model)
    x = torch.randn(7, 12)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), model(x), atol=0.5, rtol=0.05)
    out.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
