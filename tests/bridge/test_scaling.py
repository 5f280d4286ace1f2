"""Sizes of columns against dense least squares, moments that follow, and updates of high rank."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import scipy.optimize
import torch

import llm_bridge as lb
from llm_bridge.steps import best_scales
from llm_bridge.steps.keep import InWeights

from .training_steps import steps

R, RATE = 3, 2e-2


def drawn(seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((8, R)), rng.standard_normal((6, R)), rng.standard_normal((8, 6))


def directions(b, a, g):
    """By column, what a step on B and on A does to the weight, as columns of vectors."""
    parts = [np.outer(b[:, i], g.T @ b[:, i]) for i in range(R)] + [np.outer(g @ a[:, i], a[:, i]) for i in range(R)]
    return np.stack([part.ravel() for part in parts], 1)


@pytest.mark.covers("O34")
@pytest.mark.parametrize("seed", range(4))
def test_scales_are_the_dense_nonnegative_fit(seed):
    b, a, g = drawn(seed)
    expected = scipy.optimize.nnls(directions(b, a, g), g.ravel())[0]
    sizes = np.concatenate(((b**2).sum(0), (a**2).sum(0)))
    expected = np.sqrt(expected * sizes.sum() / (expected * sizes).sum())
    found = best_scales(*map(torch.as_tensor, (b, a, g @ a, g.T @ b)), limit=1e9)
    assert np.allclose(torch.cat(found), expected, atol=1e-5)
    rescaled = (b * found[0].numpy(), a * found[1].numpy())
    assert np.isclose(sum((f**2).sum() for f in rescaled), sizes.sum())


@pytest.mark.covers("O34")
def test_no_other_sizes_bring_the_step_closer_to_the_gradient():
    b, a, g = drawn()

    def miss(scales):
        step = directions(b * scales[:R], a * scales[R:], g).sum(1)
        return 1 - (step @ g.ravel()) ** 2 / (step @ step) / (g.ravel() @ g.ravel())

    best = miss(torch.cat(best_scales(*map(torch.as_tensor, (b, a, g @ a, g.T @ b)), limit=1e9)).numpy())
    rng = np.random.default_rng(1)
    assert all(best <= miss(np.exp(rng.standard_normal(2 * R))) + 1e-9 for _ in range(200))
    assert best < miss(np.ones(2 * R))


def test_columns_that_make_no_difference_keep_their_size():
    b, a, g = drawn()
    scales = best_scales(*map(torch.as_tensor, (0 * b, a, g @ a, 0 * a)))  # the start of LoRA
    assert all(torch.equal(s, torch.ones(R, dtype=s.dtype)) for s in best_scales(*[torch.zeros(4, R)] * 4))
    assert torch.equal(scales[0], torch.ones(R, dtype=scales[0].dtype))
    limited = torch.cat(best_scales(*map(torch.as_tensor, (b, a, g @ a, g.T @ b)), limit=1.1))
    assert ((limited >= 1 / 1.1 - 1e-12) & (limited <= 1.1 + 1e-12)).all()


def prepared(model, keep=None, every=1, **options):
    lb.adapt(model, "lora", rank=2, targets=["up", "down"], dtype=torch.float64)
    optimizer = lb.optimizer(model, lr=RATE)
    return optimizer, lb.ColumnScaling(model, optimizer, every=every, keep=keep, **options)


@pytest.mark.covers("O34")
@pytest.mark.parametrize("keep", [None, InWeights()])
def test_the_model_stays_and_the_moments_follow(keep, mlp, task):
    model, data = mlp.double(), [t.double() for t in task]
    optimizer, scaling = prepared(model, keep)
    steps(model, optimizer, data, 5)
    optimizer.zero_grad()
    (model(data[0]) - data[1]).square().mean().backward()
    before = model(data[0]).detach()
    adapter = scaling.adapter("layers.0.up")
    old = {n: getattr(adapter, n).detach().clone() for n in ("left", "right")}
    moments = {n: copy.deepcopy(optimizer.state[getattr(adapter, n)]) for n in old}
    scaling.before()
    assert torch.allclose(model(data[0]), before, atol=1e-9)
    changed = {n: (getattr(adapter, n) / old[n]).detach() for n in old}
    assert max(float((c - 1).abs().max()) for c in changed.values()) > 0.01
    for name, other in (("left", "right"), ("right", "left")):
        state, factor = optimizer.state[getattr(adapter, name)], changed[other][0]
        torch.testing.assert_close(state["exp_avg"], moments[name]["exp_avg"] * factor)
        torch.testing.assert_close(state["exp_avg_sq"], moments[name]["exp_avg_sq"] * factor**2)
    given = {n: getattr(adapter, n).grad.clone() for n in old}
    optimizer.zero_grad()
    (model(data[0]) - data[1]).square().mean().backward()
    for name, gradient in given.items():  # they are the gradients at the new factors
        torch.testing.assert_close(getattr(adapter, name).grad, gradient, atol=1e-9, rtol=1e-6)


@pytest.mark.covers("O34")
def test_changes_add_up_to_a_high_rank(mlp, task):
    model, data = mlp.double(), [t.double() for t in task]
    optimizer, _ = prepared(model, InWeights())
    start = {path: layer.base.weight.detach().clone() for path, layer in lb.adapted(model).items()}
    first = steps(model, optimizer, data, 1)
    assert steps(model, optimizer, data, 60) < 0.8 * first
    for path, layer in lb.adapted(model).items():
        total = layer.base.weight - start[path] + layer.adapter("default").update()
        values = torch.linalg.svdvals(total)
        assert int((values > 1e-3 * values[0]).sum()) > 2  # the rank of the adapter


@pytest.mark.covers("O34")
def test_a_resumed_run_is_the_same(mlp, task):
    model, data = mlp.double(), [t.double() for t in task]
    fresh = copy.deepcopy(model)
    optimizer, _ = prepared(model, every=3)
    steps(model, optimizer, data, 7)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    steps(model, optimizer, data, 7)
    again, _ = prepared(fresh, every=3)
    fresh.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    steps(fresh, again, data, 7)
    assert torch.allclose(model(data[0]), fresh(data[0]), atol=1e-12)


def test_bad_input(mlp):
    for wrong in ({"every": 0}, {"limit": 1.0}):
        model = copy.deepcopy(mlp)
        with pytest.raises(ValueError, match="every must be positive and limit above 1"):
            prepared(model, **wrong)
    lb.adapt(mlp, "reflora", rank=2)
    with pytest.raises(TypeError, match="recipe 'reflora' has no columns that AdamW moves; take 'lora'"):
        lb.ColumnScaling(mlp, lb.optimizer(mlp))
    lb.activate(mlp)
    with pytest.raises(ValueError, match="is not active"):
        lb.ColumnScaling(mlp, torch.optim.SGD(mlp.parameters(), lr=1.0))
