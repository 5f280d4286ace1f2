"""Adapted layers in the modes that torch has beside training: inference, hooks, weights that train, no samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import llm_bridge as lb

from .layer_cases import One, move
from .test_layers import ALL, adapt_one, by_hand, formula

DIRECT = ["vera", "randlora", "fourierft", "loha", "hira", "dora"]


@ALL
def test_a_weight_that_trains_gets_its_gradient(variant):
    model, x = adapt_one("linear", variant)
    adapted = model.layer
    weight = adapted.base.weight.requires_grad_()
    expected = by_hand(adapted.base, x, formula(variant, weight, adapted.adapter("default")))
    found = [torch.autograd.grad(out.square().sum(), weight)[0] for out in (model(x), expected)]
    torch.testing.assert_close(*found, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("name", ["vera", "randlora", "fourierft"])
def test_a_weight_that_trains_beside_values_gets_its_gradient(name):
    torch.manual_seed(0)
    model: Any = One(nn.Linear(12, 10)).double()
    lb.adapt(model, name, rank=3, targets=["layer"], dtype=torch.float64)
    move(model)
    adapted, x = model.layer, torch.randn(30, 12, dtype=torch.float64)
    weight = adapted.base.weight.requires_grad_()
    adapter = adapted.adapter("default")
    expected = F.linear(x, weight + adapter.scale * adapter.point().dense(), adapted.base.bias)
    found = [torch.autograd.grad(out.square().sum(), weight)[0] for out in (model(x), expected)]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", ["lora", *DIRECT])
def test_inference_mode_computes_the_same_and_training_goes_on(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 10), nn.Linear(10, 7))
    lb.adapt(model, name, rank=3, targets=["0", "1"])
    move(model)
    x = torch.randn(5, 12)
    expected = model(x)
    with torch.inference_mode():
        torch.testing.assert_close(model(x.clone()), expected.detach())
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_dropout_in_inference_mode():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 10))
    lb.adapt(model, "lora", rank=3, targets=["0"], dropout=0.5)
    move(model)
    model.train()
    with torch.inference_mode():
        x = torch.randn(5, 12)
        assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize("pre", [False, True])
@ALL
def test_a_hook_on_gradients_of_the_base(variant, pre):
    model, x = adapt_one("linear", variant)
    x = x.clone().requires_grad_()
    trained = [p for p in model.parameters() if p.requires_grad]
    expected = torch.autograd.grad(model(x).square().sum(), [x, *trained])
    base = model.layer.base
    if pre:
        base.register_full_backward_pre_hook(lambda *_: None)
    else:
        base.register_full_backward_hook(lambda *_: None)
    for a, b in zip(torch.autograd.grad(model(x).square().sum(), [x, *trained]), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["vera", "randlora"])
def test_a_hook_on_the_base_is_called(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 10))
    lb.adapt(model, name, rank=3, targets=["0"])
    move(model)
    x, seen = torch.randn(5, 12), []
    expected, base = model(x), lb.adapted(model)["0"].base
    base.register_forward_hook(lambda module, inputs, out: seen.append(out))
    base.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(seen[0], x)
    torch.testing.assert_close(seen[1], F.linear(x, base.weight, base.bias))


@pytest.mark.parametrize("shape", [(0,), (2, 0)])
@pytest.mark.parametrize("name", ["lora", *DIRECT, "lokr", "oft", "boft", "hra"])
def test_no_samples(name, shape):
    model = nn.Sequential(nn.Linear(16, 8))
    lb.adapt(model, name, rank=2, targets=["0"])
    out = model(torch.ones(*shape, 16))
    assert out.shape == (*shape, 8)
    out.sum().backward()
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)
