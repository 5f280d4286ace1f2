"""Rotations of the input of a layer: orthogonal while they train, equal to the product of matrices."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import llm_bridge as lb
from llm_bridge.sizes import block_count, block_side, butterfly_side, even

from .test_recipes import train

ROTATIONS = ["oft", "boft", "boft-scaled", "hra"]


@pytest.mark.covers("P94", "P95", "P96", "P97")
@pytest.mark.parametrize("name", ROTATIONS)
def test_rotations_stay_orthogonal_and_keep_singular_values(name, mlp, task):
    """Adam moves free parameters, so that no step leaves the set; the spectrum of W P is that of W."""
    lb.adapt(mlp, name, rank=2)
    train(mlp, task, 30)
    for layer in lb.adapted(mlp).values():
        adapter = layer.adapter("default")
        p, eye = adapter.point().dense().double(), torch.eye(layer.in_features, dtype=torch.float64)
        assert not torch.allclose(p, eye, atol=1e-3)
        assert torch.allclose(p @ p.T, eye, atol=1e-5)
        changed = layer.base.weight.double() @ p
        old, new = torch.linalg.svdvals(layer.base.weight.double()), torch.linalg.svdvals(changed)
        assert torch.allclose(old, new, atol=1e-5)


@pytest.mark.covers("P93", "P97")
@pytest.mark.parametrize("name", [*ROTATIONS, "ether+"])
def test_the_output_is_that_of_the_product(name):
    torch.manual_seed(0)
    layer, x = nn.Linear(12, 7), torch.randn(2, 5, 12)
    model = nn.Sequential(layer)
    lb.adapt(model, name, rank=3)
    adapter = lb.adapted(model)["0"].adapter("default")
    with torch.no_grad():
        for p in adapter.parameters():
            p.add_(0.3 * torch.randn(p.shape))
    scale = adapter.outputs[:, None] if name == "boft-scaled" else 1.0
    expected = nn.functional.linear(x, scale * (layer.weight @ adapter.point().dense()), layer.bias)
    assert torch.allclose(model(x), expected, atol=1e-5)


def test_only_layers_that_multiply_rows(mlp):
    model = nn.Sequential(nn.Embedding(6, 4))
    lb.adapt(model, "hra", rank=2, targets=["0"])
    with pytest.raises(TypeError, match="rotations of the input need a linear layer, got Embedding"):
        model(torch.tensor([1, 2]))


def test_sizes_follow_the_divisors_of_the_inputs():
    shape = (7, 12)
    assert [block_side(shape, r) for r in (1, 2, 3, 5, 12)] == [2, 2, 3, 6, 12]
    assert [butterfly_side(shape, r) for r in (1, 2, 3, 6)] == [2, 2, 6, 6]
    assert [block_count(shape, r) for r in (1, 5, 7)] == [1, 4, 6]
    assert [even(shape, r) for r in (1, 2, 3)] == [2, 2, 4]
    with pytest.raises(ValueError, match="must divide the side 9"):
        lb.adapt(nn.Sequential(nn.Linear(9, 4)), "boft", rank=2)


def test_a_relaxed_reflection_is_a_thin_update_of_rows():
    """Six products with 2 k columns, as LoRA has them, and two with the weight: nothing passes over the input alone."""
    layer, x = nn.Linear(48, 32, bias=False).requires_grad_(False), torch.randn(40, 48, requires_grad=True)
    model = nn.Sequential(layer)
    lb.adapt(model, "ether+", rank=2)
    with FlopCounterMode(display=False) as counter:
        out = model(x)
        out.backward(torch.ones_like(out))
    in_place = 2 * 40 * 32 * 4  # which the counter does not know
    thin, whole = 3 * 2 * 40 * 4 * (48 + 32), 2 * 2 * 32 * 48 * 4
    assert counter.get_total_flops() + in_place == 2 * (2 * 40 * 48 * 32) + thin + whole
