"""Thin updates whose sides are put together: derivatives, what they keep, and the ways of plain addition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import llm_bridge as lb
from llm_bridge.functions import add_sides
from llm_bridge.noise import RankDropout
from lowrank_sp.parameterizations import BSLoRA, BSLoRAGate, BurerMonteiro, RaSA

from .layer_cases import One, move
from .test_functions import saved_bytes

K, M, N = 5, 4, 6
FORMS = [(RaSA.of(1, 2), 2), (BSLoRA, 1), (BSLoRA.of(7, 8), 1), (BSLoRAGate, 1), (BurerMonteiro, 2)]


def draw(*shape, seed=0) -> Any:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()


def arrays_of(form, rank):
    arrays = form.random((M, N), rank, np.random.default_rng(3)).arrays()
    return tuple(torch.as_tensor(a).requires_grad_() for a in arrays)


@pytest.mark.parametrize(("form", "rank"), FORMS)
def test_first_and_second_derivatives(form, rank):
    arrays = arrays_of(form, rank)

    def function(out, x, *arrays):
        return add_sides(out.clone(), x, form, arrays, 0.7)

    inputs = (draw(K, M), draw(K, N), *arrays)
    torch.testing.assert_close(function(*inputs), inputs[0] + 0.7 * inputs[1] @ form(*arrays).dense().mT)
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


@pytest.mark.parametrize("frozen", [[0], [1], [0, 1], [2, 4, 6], [3, 5], [2, 3, 4, 5, 6]])
def test_without_some_gradients(frozen):
    """0 is the output, 1 the input, from 2 on the arrays: left, right, the pools and the values."""
    form, rank = FORMS[0]
    inputs = [draw(K, M), draw(K, N), *arrays_of(form, rank)]
    for index in frozen:
        inputs[index].requires_grad_(False)
    assert gradcheck(lambda out, x, *a: add_sides(out.clone(), x, form, a, 1.5), inputs)


@pytest.mark.parametrize(("form", "rank", "channels"), [(RaSA.of(1, 2), 2, 3), (BSLoRA, 1, 3)])
def test_keeps_the_input_and_the_channels(form, rank, channels):
    arrays, x = arrays_of(form, rank), draw(K, N)
    kept, _ = saved_bytes(lambda: add_sides(torch.zeros(K, M, dtype=x.dtype), x, form, arrays, 1.0), (x, *arrays))
    assert kept == 8 * channels * K


def test_takes_six_thin_products_and_works_on_no_larger_side():
    """With numbers d on the channels, what is elementwise has the size of these: no pass over rows or outputs."""
    form, k, m, n, r = RaSA.of(1, 8), 40, 64, 72, 10
    arrays = [
        torch.as_tensor(a, dtype=torch.float32) for a in form.random((m, n), 3, np.random.default_rng(0)).arrays()
    ]
    tensors = tuple(a.requires_grad_() for a in arrays)
    with FlopCounterMode(display=False) as counter, Elementwise() as passes:
        out, x = torch.zeros(k, m), torch.zeros(k, n, requires_grad=True)
        add_sides(out, x, form, tensors, 0.5).backward(torch.ones(k, m))
    in_place = 2 * k * r * m  # which the counter does not know
    assert counter.get_total_flops() + in_place == 6 * k * r * (m + n)
    assert max(passes.sizes) <= k * r


class Elementwise(TorchDispatchMode):
    """Sizes of what is multiplied number by number."""

    def __init__(self):
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten.mul, torch.ops.aten.mul_):
            self.sizes.append(max(a.numel() for a in args if isinstance(a, torch.Tensor)))
        return function(*args, **(kwargs or {}))


LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), lambda: draw(3, 4, 6)),
    "conv2d": (lambda: nn.Conv2d(2, 5, 3, padding=1), lambda: draw(2, 2, 7, 6)),
    "embedding": (lambda: nn.Embedding(7, 5), lambda: torch.tensor([[0, 4, 6], [3, 3, 2]])),
}


@pytest.mark.parametrize("noise", [None, RankDropout])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", ["rasa", "bslora"])
def test_outputs_and_gradients_are_those_of_plain_addition(name, layer, noise):
    made, data = LAYERS[layer]
    x, found = data(), []
    for combine in (lb.Composed(), lb.Additive()):
        torch.manual_seed(0)
        model: Any = One(made()).double()
        recipe = lb.recipe(name).but("other", combine=combine)
        recipe = recipe if noise is None else recipe.but("noisy", noise=noise)
        rate = {} if noise is None else {"dropout": 0.5}
        lb.adapt(model, recipe, rank=2, targets=["layer"], dtype=torch.float64, seed=4, **rate)
        move(model)
        torch.manual_seed(3)
        out, trained = model(x), [p for p in model.parameters() if p.requires_grad]
        found.append((out, *torch.autograd.grad(out.square().sum(), trained)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_autocast_computes_in_its_type():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 6)), torch.randn(7, 16)
    lb.adapt(model, "rasa", rank=2)
    move(model)
    expected = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        got = model(x)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), expected, atol=0.2, rtol=0.05)
    got.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
