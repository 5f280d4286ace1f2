"""Steps among matrices of one rank against dense projections, the core's solver, and training from scratch."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import llm_bridge as lb
import lowrank_sp as lr
from llm_bridge.starts import NonZero
from lowrank_sp.rules import Plain

from .training_steps import steps

RATE = 0.2


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def product(alpha=3.0, rank=2):
    """A layer (9, 7) whose product is off zero, and its adapter."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 9, bias=False)).double()
    lb.adapt(model, "lora", rank=rank, alpha=alpha, dtype=torch.float64)
    adapter = lb.adapted(model)["0"].adapter("default")
    with torch.no_grad():
        adapter.left.copy_(normal(9, rank, seed=1))
    return model, adapter


def image(adapter):
    return adapter.update().detach()


@pytest.mark.covers("O48")
@pytest.mark.parametrize("ratio", [1.0, 0.3])
def test_a_step_is_the_projected_gradient_and_the_nearest_matrix_of_the_rank(ratio):
    model, adapter = product()
    optimizer = lb.optimizer(model, lr=RATE)
    lb.FixedRankSteps(model, optimizer, every=1, ratio=ratio)
    x, y = normal(20, 7, seed=2), normal(20, 9, seed=3)
    (model(x) - y).square().mean().backward()
    w = image(adapter).requires_grad_()
    base = lb.adapted(model)["0"].base.weight.detach()
    (g,) = torch.autograd.grad((x @ (base + w).T - y).square().mean(), w)
    w = w.detach()
    u, _, vh = np.linalg.svd(w.numpy())
    pu, pv = u[:, :2] @ u[:, :2].T, vh[:2].T @ vh[:2]
    g = g.numpy()
    moved = w.numpy() - ratio * RATE * (pu @ g + g @ pv - pu @ g @ pv)
    a, s, b = np.linalg.svd(moved)
    optimizer.step()
    assert np.allclose(image(adapter).numpy(), (a[:, :2] * s[:2]) @ b[:2])
    assert torch.allclose(adapter.left.T @ adapter.left, adapter.right.T @ adapter.right)


@pytest.mark.covers("O48")
def test_steps_alone_are_riemannian_descent():
    model, adapter = product()
    target = normal(9, 7, seed=4)
    problem = lr.MatrixFactorization(target.numpy())
    start = lr.BurerMonteiro((adapter.scale * adapter.left).detach().numpy().copy(), adapter.right.detach().numpy())
    expected = lr.solve(problem, start.map(np.copy), lr.RiemannianGD(RATE), max_iter=10, tol=0)
    optimizer = lb.optimizer(model, lr=RATE, rule=Plain())
    lb.FixedRankSteps(model, optimizer, every=1)
    for _ in range(10):
        optimizer.zero_grad()
        (0.5 * (adapter.update() - target).square().sum()).backward()
        optimizer.step()
    assert np.allclose(image(adapter).numpy(), expected.point.dense(), atol=1e-8)


@pytest.mark.covers("O48")
def test_layers_of_low_rank_train_from_scratch(mlp, task):
    """Weights of zero and products that are not: what trains is the product, by both kinds of steps."""
    with torch.no_grad():
        for name in ("up", "down"):
            for block in mlp.layers:
                block[name].weight.zero_()
    small = lb.recipe("lora").but("scratch", init=NonZero(1.0, 1.0))
    lb.adapt(mlp, small, rank=3, targets=["up", "down"], also_train=["head"])
    for layer in lb.adapted(mlp).values():
        adapter = layer.adapter("default")  # the start is part of the model here
        adapter.start_left.zero_()
    optimizer = lb.optimizer(mlp, lr=1e-2)
    companion = lb.FixedRankSteps(mlp, optimizer, every=5, ratio=5.0)
    first = steps(mlp, optimizer, task, 1)
    assert not optimizer.state.get(companion.adapter("layers.0.up").left)  # it has not moved them yet
    assert steps(mlp, optimizer, task, 4) < first
    assert optimizer.state[companion.adapter("layers.0.up").left]["step"] == 4
    steps(mlp, optimizer, task, 1)
    assert not optimizer.state.get(companion.adapter("layers.0.up").left)  # forgotten
    assert steps(mlp, optimizer, task, 60) < 0.7 * first


@pytest.mark.covers("O48")
def test_products_below_their_rank_are_left_to_the_optimizer(mlp, task):
    plain = copy.deepcopy(mlp)
    for model, every in ((mlp, 1000), (plain, None)):
        lb.adapt(model, "lora", rank=2, targets=["up", "down"])
        optimizer = lb.optimizer(model, lr=1e-2)
        if every is not None:
            lb.FixedRankSteps(model, optimizer, every=every)
        steps(model, optimizer, task, 3)
    assert all(torch.equal(a, b) for a, b in zip(mlp.parameters(), plain.parameters(), strict=True))


def test_a_resumed_run_is_the_same(mlp, task):
    fresh = copy.deepcopy(mlp)

    def prepared(model):
        lb.adapt(model, "lora", rank=2, targets=["up", "down"])
        optimizer = lb.optimizer(model, lr=1e-2)
        lb.FixedRankSteps(model, optimizer, every=3)
        return optimizer

    optimizer = prepared(mlp)
    steps(mlp, optimizer, task, 7)
    saved = copy.deepcopy((mlp.state_dict(), optimizer.state_dict()))
    steps(mlp, optimizer, task, 7)
    again = prepared(fresh)
    fresh.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    steps(fresh, again, task, 7)
    assert all(torch.equal(a, b) for a, b in zip(mlp.parameters(), fresh.parameters(), strict=True))


def test_bad_input(mlp):
    for wrong in ({"every": 0}, {"ratio": 0.0}):
        model = copy.deepcopy(mlp)
        lb.adapt(model, "lora", rank=2)
        with pytest.raises(ValueError, match="every and ratio must be positive"):
            lb.FixedRankSteps(model, lb.optimizer(model), **wrong)
    lb.adapt(mlp, "lora-fa", rank=2)
    with pytest.raises(TypeError, match="recipe 'lora-fa' has no product of two factors that both train"):
        lb.FixedRankSteps(mlp, lb.optimizer(mlp))
    lb.activate(mlp)
    with pytest.raises(ValueError, match="is not active"):
        lb.FixedRankSteps(mlp, torch.optim.SGD(mlp.parameters(), lr=1.0))
