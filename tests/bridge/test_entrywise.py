"""Functions of every entry of a thin product: derivatives, what is kept, what is moved, and the ways they take."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import llm_bridge as lb
import lowrank_sp as lr
from llm_bridge.combines.base import _formed
from llm_bridge.functions import add_entrywise, add_times, entrywise_linear
from llm_bridge.noise import ModuleDropout
from studies.overhead.ledger import Ledger

from .layer_cases import One, move
from .test_functions import draw, saved_bytes
from .test_one_sided import conv1d

K, M, N, R = 5, 4, 6, 2
SINE, SINTER = lr.Sine.of(3.0, 2.0), lr.Sinter.of(0.5, 2.0)


def reference(form, left, right):
    """The functions as their sources print them."""
    z = left @ right.mT
    return torch.sin(3.0 * z) / 2.0 if form is SINE else 0.5 * torch.sin(2.0 * z) * z + z


@pytest.mark.covers("P103", "P104")
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("form", [SINE, SINTER])
def test_first_and_second_derivatives(form, biased):
    weight = draw(M, N, seed=9, grad=False)
    bias = (draw(M, seed=7),) if biased else ()

    def function(x, left, right, *bias):
        return entrywise_linear(x, lambda: weight, bias[0] if bias else None, form(left, right), 0.7)

    inputs = (draw(K, N), draw(M, R, seed=1), draw(N, R, seed=2), *bias)
    expected = F.linear(inputs[0], weight + 0.7 * reference(form, *inputs[1:3]), *bias)
    torch.testing.assert_close(function(*inputs), expected)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)
    kept, _ = saved_bytes(lambda: function(*inputs), inputs)
    assert kept == 0
    for frozen in (0, 1, 2):
        some = [t.detach().requires_grad_(i != frozen) for i, t in enumerate(inputs)]
        assert torch.autograd.gradcheck(function, some)


def added(form, weight, left, right):
    """The change of the layer's weight, by independent code; without a form that of HiRA."""
    return weight * (left @ right.mT) if form is None else reference(form, left, right)


@pytest.mark.parametrize("form", [SINE, SINTER, None])
def test_the_change_alone(form):
    weight = draw(M, N, seed=9, grad=False)

    def function(out, x, left, right):
        if form is None:
            return add_times(out.clone(), x, lambda: weight, (left, right), 0.7)
        return add_entrywise(out.clone(), x, form(left, right), 0.7)

    inputs = (draw(K, M), draw(K, N), draw(M, R, seed=1), draw(N, R, seed=2))
    expected = inputs[0] + 0.7 * inputs[1] @ added(form, weight, *inputs[2:]).mT
    torch.testing.assert_close(function(*inputs), expected)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("form", [SINE, SINTER])
def test_it_starts_exactly_at_the_base(form):
    weight, x = torch.randn(7, 9), torch.randn(3, 9)
    for dtype in (torch.float32, torch.bfloat16):
        point, own = form(torch.zeros(7, 2), torch.randn(9, 2)), weight.to(dtype)
        out = entrywise_linear(x.to(dtype), lambda own=own: own, None, point, 2.0)
        assert torch.equal(out, F.linear(x.to(dtype), own))


@pytest.mark.parametrize("form", [SINE, SINTER])
def test_half_precision_does_not_lose_small_updates(form):
    torch.manual_seed(0)
    weight, x = torch.randn(64, 64).bfloat16(), torch.randn(500, 64).bfloat16()
    left, right = torch.full((64, 1), 1e-3, requires_grad=True), torch.randn(64, 1).sign()
    out = entrywise_linear(x, lambda: weight, None, form(left, right), 1.0)
    change = (out.double() - F.linear(x, weight).double()).flatten()
    wanted = F.linear(x.double(), reference(form, left.double(), right.double())).flatten()
    assert 0.4 < (change @ wanted) / (wanted @ wanted) < 1.1
    out.float().sum().backward()
    assert left.grad is not None
    assert left.grad.dtype == torch.float32


@pytest.mark.parametrize("form", [SINE, SINTER])
def test_autocast_computes_in_its_type(form):
    torch.manual_seed(0)
    weight, x = torch.randn(M, N), torch.randn(K, N, requires_grad=True)
    left, right = torch.randn(M, R, requires_grad=True), torch.randn(N, R, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = entrywise_linear(x, lambda: weight, None, form(left, right), 1.0)
    assert out.dtype == torch.bfloat16
    expected = F.linear(x, weight + reference(form, left, right))
    torch.testing.assert_close(out.float(), expected, atol=0.3, rtol=0.05)
    wanted = torch.autograd.grad(expected.sum(), (x, left, right))
    found = torch.autograd.grad(out.float().sum(), (x, left, right))
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 0.1 * b.norm()


def moved_entries(recipe, dtype, m=192, n=256, k=2, dropout=0.0):
    """Bytes moved by a step of one layer with few tokens, for every entry of its weight."""
    model: Any = nn.Sequential(nn.Linear(n, m, bias=False)).to(dtype).requires_grad_(False)
    lb.adapt(model, recipe, rank=2, targets=["0"], dtype=torch.float32, dropout=dropout)
    x = torch.randn(k, n, dtype=dtype, requires_grad=True)
    with Ledger() as ledger:
        model(x).sum().backward()
    return ledger.moved / (m * n)


# In half and in single precision. A thin product writes a matrix, a product with activations reads or writes one, the
# two products that pull a gradient back to the factors read it, and an elementwise operation does as its arrays say.
PASSES = {"sine": (20, 22), "loran": (30, 32), "hira": (17, 16)}


@pytest.mark.parametrize("name", PASSES)
def test_few_passes_over_matrices_of_the_size_of_the_layer_in_the_type_of_the_input(name):
    """Counted; beside those, factors and activations are small."""
    passes = [moved_entries(name, dtype) / dtype.itemsize for dtype in (torch.bfloat16, torch.float32)]
    assert passes == pytest.approx(PASSES[name], rel=0.1)
    if name != "hira":
        recipe = lb.recipe(name).but("formed", combine=lb.Formed())
        assert passes[0] < moved_entries(recipe, torch.bfloat16) / 2 / 4


@pytest.mark.parametrize("name", PASSES)
def test_dropout_does_not_take_many_more_passes(name):
    """Products of the layer and of the change read the weight and the change, forward and back; no sum is formed."""
    assert moved_entries(name, torch.bfloat16, dropout=0.3) / 2 < PASSES[name][0] + 3


class Formerly(lb.TimesBase):
    """By automatic differentiation."""

    def forward(self, kind, layer, x, adapter):
        return _formed(self, kind, layer, x, adapter)


LAYERS = {
    "linear": (lambda: nn.Linear(12, 10), lambda: draw(20, 5, 12)),
    "conv1d": (lambda: conv1d(12, 10), lambda: draw(20, 5, 12)),
    "conv2d": (lambda: nn.Conv2d(3, 10, 2), lambda: draw(2, 3, 4, 4)),
    "embedding": (lambda: nn.Embedding(12, 10), lambda: torch.arange(10).view(2, 5)),
}
OPTIONS: dict[str, dict[str, Any]] = {"plain": {}, "dropout": {"dropout": 0.3}, "gate": {"dropout": 0.3}}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("name", ["sine", "loran", "hira"])
def test_outputs_and_gradients_are_those_of_a_formed_matrix(name, kind, options):
    layer, inputs = LAYERS[kind]
    found = []
    for combine in (lb.recipe(name).combine, Formerly() if name == "hira" else lb.Formed()):
        torch.manual_seed(0)
        model: Any = One(layer()).double()
        made = lb.recipe(name).but("other", combine=combine)
        if options == "gate":
            made = made.but("other", noise=ModuleDropout)
        lb.adapt(model, made, rank=2, targets=["layer"], dtype=torch.float64, seed=4, **OPTIONS[options])
        move(model)
        torch.manual_seed(3)
        out = model(inputs())
        trained = [p for p in model.parameters() if p.requires_grad]
        found.append((out, *torch.autograd.grad(out.square().sum(), trained)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
