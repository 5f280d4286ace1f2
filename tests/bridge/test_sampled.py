"""Gradients of values at fixed places and of waves: products sampled there, against automatic differentiation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import llm_bridge as lb
from llm_bridge.combines.sampled import (
    Placed,
    Waves,
    mode_products,
    placed_sum,
    sampled_product,
    samples,
    summed_linear,
)

from .layer_cases import One, move

SAMPLED = ["shira", "rosa", "sltrain", "fourierft"]


def draw(*shape, seed=0) -> Any:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + sum(shape)))


def some_places(m, n, count):
    return torch.randperm(m * n, generator=torch.Generator().manual_seed(m)).narrow(0, 0, count).sort().values


@pytest.mark.parametrize("count", [1, 17, 150])
@pytest.mark.parametrize(("k", "m", "n"), [(7, 20, 9), (3, 9, 20), (40, 16, 16)])
def test_the_sampled_product_is_that_of_the_whole_one(k, m, n, count):
    left, right, places = draw(m, k).mT, draw(k, n), some_places(m, n, count)
    expected = torch.einsum("ki,kj->ij", left, right).flatten()[places]
    torch.testing.assert_close(sampled_product(left, right, places), expected)


def test_few_places_need_no_whole_product():
    """The choice by counted operations: none of a matrix product where entries are sampled."""
    k, m, n = 5, 16, 24
    for count in (m * n // 8, m * n // 8 + 1):
        places = some_places(m, n, count)
        with FlopCounterMode(display=False) as counter:
            sampled_product(draw(k, m), draw(k, n), places)
        assert samples(m, n, count) == (count <= m * n // 8)
        assert counter.get_total_flops() == (0 if samples(m, n, count) else 2 * k * m * n)


@pytest.mark.parametrize("count", [3, 30])
@pytest.mark.parametrize(("m", "n"), [(12, 10), (11, 13), (12, 13), (11, 10)])
def test_products_with_modes(m, n, count):
    left, right, modes = draw(7, m), draw(7, n), some_places(m, n, count)
    u, v = modes // n, modes % n
    i, j = torch.arange(m, dtype=left.dtype), torch.arange(n, dtype=left.dtype)
    angles = 2 * torch.pi * (u[:, None, None] * i[:, None] / m + v[:, None, None] * j / n)
    expected = (angles.cos() * (left.mT @ right)).sum((1, 2)) / (m * n) ** 0.5
    torch.testing.assert_close(mode_products(left, right, modes), expected)


@pytest.mark.parametrize("biased", [False, True])
def test_the_sum_with_values_at_places(biased):
    k, m, n, count = 5, 8, 9, 7
    weight, places = draw(m, n, seed=1), some_places(m, n, count)
    x, values = draw(k, n).requires_grad_(), draw(count).requires_grad_()
    bias = (draw(m, seed=3).requires_grad_(),) if biased else ()

    def function(x, values, *bias):
        return summed_linear(
            x, lambda: weight, bias[0] if bias else None, values,
            lambda w, v: placed_sum(w, v, places, 0.7),
            lambda grad, seen: 0.7 * sampled_product(grad, seen, places),
        )  # fmt: skip

    sparse = torch.zeros(m * n, dtype=x.dtype).index_put((places,), values).view(m, n)
    expected = F.linear(x, weight + 0.7 * sparse, bias[0] if bias else None)
    torch.testing.assert_close(function(x, values, *bias), expected)
    assert torch.autograd.gradcheck(function, (x, values, *bias))


def conv1d(inputs, outputs):
    from transformers.pytorch_utils import Conv1D

    return Conv1D(outputs, inputs)


LAYERS = {
    "linear": (lambda: nn.Linear(12, 10), lambda: draw(2, 5, 12)),
    "conv1d": (lambda: conv1d(12, 10), lambda: draw(2, 5, 12)),
    "conv2d": (lambda: nn.Conv2d(3, 10, 2), lambda: draw(2, 3, 4, 4)),
    "embedding": (lambda: nn.Embedding(12, 10), lambda: torch.arange(10).view(2, 5)),
}


def outcome(model, x):
    """Output and all gradients."""
    trained = [p for p in model.parameters() if p.requires_grad]
    out = model(x)
    inputs = [x, *trained] if x.is_floating_point() else trained
    return out, *torch.autograd.grad(out.square().sum(), inputs)


def twins(name, layer, x, combine, **options):
    """The same adapted layer as the recipe has it, and as another way of combining has it."""
    found = []
    for made in (lb.recipe(name), lb.recipe(name).but("other", combine=combine)):
        torch.manual_seed(0)
        model: Any = One(layer()).double()
        calibration = (lambda model=model: model(x).square().sum()) if made.init.needs else None
        targets = ["layer"]
        lb.adapt(model, made, targets=targets, dtype=torch.float64, calibration=calibration, seed=4, **options)
        move(model)
        found.append(model)
    return found


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("name", SAMPLED)
def test_outputs_and_gradients_are_those_of_the_formed_weight(name, kind):
    layer, inputs = LAYERS[kind]
    x = inputs().requires_grad_() if kind != "embedding" else inputs()
    own, other = twins(name, layer, x, lb.Formed(), rank=2)
    assert isinstance(lb.adapted(own)["layer"].adapter("default").combine, (Placed, Waves))
    for a, b in zip(outcome(own, x), outcome(other, x), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["shira", "rosa"])
def test_with_dropout_it_is_the_formed_weight(name):
    x = draw(2, 5, 12)
    own, other = twins(name, LAYERS["linear"][0], x, lb.Formed(), rank=2, dropout=0.4)
    outputs = []
    for model in (own, other):
        torch.manual_seed(7)
        outputs.append(model(x))
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("name", SAMPLED)
def test_nothing_but_the_input_is_kept(name):
    x = draw(30, 12).requires_grad_()
    model, _ = twins(name, LAYERS["linear"][0], x, lb.Formed(), rank=1)
    own = {t.data_ptr() for t in (x, *model.parameters(), *model.buffers())}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        model(x)
    extra = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept if t.data_ptr() not in own}
    assert sum(extra.values()) <= 8 * 30  # the channels of RoSA's low-rank part, of rank 1


@pytest.mark.parametrize("name", SAMPLED)
def test_autocast_takes_the_way_of_the_formed_weight(name):
    x = draw(2, 5, 12)
    own, other = (model.float() for model in twins(name, LAYERS["linear"][0], x, lb.Formed(), rank=2))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = [model(x.float()) for model in (own, other)]
    assert outputs[0].dtype == torch.bfloat16
    torch.testing.assert_close(*outputs)
    outputs[0].float().sum().backward()
