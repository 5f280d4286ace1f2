"""Shared pairs of a model with layers of several shapes: who shares what, and where training starts."""

from __future__ import annotations

import pytest
import torch

import llm_bridge as lb
from llm_bridge.recipes import bslora_gate_of, bslora_kronecker_of

from .test_recipes import train


@pytest.mark.covers("P64")
@pytest.mark.parametrize(("recipe_of", "rows", "cols"), [(bslora_gate_of, 16, 16), (bslora_kronecker_of, 4, 4)])
def test_one_pair_for_all_shapes(recipe_of, rows, cols, mlp, task):
    before = mlp(task[0])
    lb.adapt(mlp, recipe_of(mlp), rank=2)
    assert torch.allclose(mlp(task[0]), before, atol=1e-6)
    up, down, other = (layer.adapter("default") for layer in list(lb.adapted(mlp).values())[:3])
    assert up.left_layer is down.left_layer
    assert up.left_layer is not other.left_layer
    assert up.left_model is other.left_model
    assert up.left_model.shape == (rows, 2)
    assert up.right_model.shape == (cols, 2)
    assert up.rows_model is not other.rows_model
    losses = train(mlp, task, 40)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.covers("P64")
def test_gates_are_open_at_the_start():
    """The first gradients in the shared part are as large as in a column of the module's own."""
    model = lb.adapt(torch.nn.Sequential(torch.nn.Linear(512, 384)), "bslora-gate", rank=8)
    generator = torch.Generator().manual_seed(0)
    x, target = (torch.randn(32, k, generator=generator) for k in (512, 384))
    adapter = lb.adapted(model)["0"].adapter("default")
    loss = (model(x) - target).square().sum()
    own, *shared = torch.autograd.grad(loss, [adapter.right, adapter.cols_layer, adapter.cols_model])
    column = own.norm(dim=0).mean()
    assert all(0.1 * column < grad.norm() < 10 * column for grad in shared)
