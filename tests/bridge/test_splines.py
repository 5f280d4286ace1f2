"""The channels of AURORA: derivatives, what is kept, how many operations they take, and their ways."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from torch import nn

import llm_bridge as lb
from llm_bridge.functions import GRID, ORDER, add_splines, spline_basis
from llm_bridge.noise import ModuleDropout
from llm_bridge.nonlinear import Aurora

from .layer_cases import One, move, outputs_and_gradients
from .test_functions import draw, saved_bytes
from .test_normed import LAYERS, MOST, operations

K, M, N, R = 5, 4, 6, 3


def arrays(dtype=torch.float64) -> list[Any]:
    drawn = Aurora.random((M, N), R, np.random.default_rng(0))
    return [torch.as_tensor(a, dtype=dtype).requires_grad_() for a in drawn.arrays()]


@pytest.mark.covers("P102")
def test_outputs_and_derivatives():
    def function(out, x, *moving):
        return add_splines(out.clone(), x, Aurora(*moving), 0.7)

    moving = arrays()
    inputs = (draw(K, M), 0.1 * draw(K, N).detach(), *moving)
    inputs[1].requires_grad_()
    x, (left, right, core, weights) = inputs[1], moving
    inside = (x @ right).detach().numpy()
    assert abs(inside).max() < 1  # where the splines of scipy are defined
    knots = -1 + 2 / GRID * np.arange(-ORDER, GRID + ORDER + 1)
    splines = [BSpline(knots, w, ORDER, extrapolate=False) for w in weights.detach().numpy()]
    bent = np.stack([np.nan_to_num(s(column)) for s, column in zip(splines, inside.T, strict=True)], 1)
    smooth = np.tanh(np.tanh(inside) @ core.detach().numpy())
    expected = inputs[0] + 0.7 * torch.as_tensor(smooth + bent) @ left.mT
    torch.testing.assert_close(function(*inputs), expected.detach())
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)
    for frozen in range(1, 6):
        some = [t.detach().requires_grad_(i != frozen) for i, t in enumerate(inputs)]
        assert torch.autograd.gradcheck(function, some)


def test_single_precision_is_kept_far_from_the_grid_and_near_it():
    """Splines of large and small numbers are those of double precision, to the precision of the number."""
    h = torch.cat((torch.linspace(-2.5, 2.5, 997), torch.tensor([-1e4, 30.0, 1e6]))).double()
    torch.testing.assert_close(spline_basis(h.float()).double(), spline_basis(h), atol=1e-6, rtol=0)


def test_it_keeps_the_channels():
    point, x = Aurora(*arrays()), draw(K, N)
    out = torch.zeros(K, M, dtype=x.dtype)
    kept, _ = saved_bytes(lambda: add_splines(out, x, point, 1.0), (x, *point.arrays()))
    assert kept == 8 * (3 * R * K + GRID + ORDER)


def test_fewer_operations_than_three_times_those_of_lora():
    assert operations("aurora") < MOST


OPTIONS: dict[str, tuple[Any, float]] = {"plain": (None, 0.0), "dropout": (None, 0.3), "gate": (ModuleDropout, 0.3)}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", ["linear", "conv1d", "conv2d"])
def test_outputs_and_gradients_are_those_of_automatic_differentiation(kind, options):
    layer, inputs = LAYERS[kind]
    noise, rate = OPTIONS[options]
    ways = (lb.Splined(), lb.Additive())
    found = [outputs_and_gradients("aurora", combine, layer, inputs, noise, rate) for combine in ways]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_autocast_computes_in_its_type_and_channels_in_theirs():
    torch.manual_seed(0)
    model: Any = One(nn.Linear(12, 10))
    lb.adapt(model, "aurora", rank=2, targets=["layer"])
    move(model)
    x = torch.randn(7, 12)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), model(x), atol=0.1, rtol=0.05)
    out.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
