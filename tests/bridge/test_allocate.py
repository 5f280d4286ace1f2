"""Ranks for layers from calibration batches, against the formulas in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import llm_bridge as lb
from llm_bridge.accumulate import Moments, MomentsSketch


def calibration_of(model, task):
    def losses():
        return (model(task[0]) - task[1]).square().mean()

    return losses


@pytest.mark.covers("R17")
def test_ranks_by_importance_are_those_of_the_formula(mlp, task):
    ranks = lb.ranks_by_importance(mlp, calibration_of(mlp, task), 4, 1, 12, targets=["up", "down"], progress=False)
    mlp.zero_grad()
    calibration_of(mlp, task)().backward()
    weights = {path: mlp.get_submodule(path).weight for path in ranks}
    score = {p: float(np.abs(w.detach().numpy() * w.grad.numpy()).mean()) for p, w in weights.items()}
    size = np.sqrt(28)
    budget = 4 * 4 * size
    assert list(ranks) == ["layers.0.up", "layers.0.down", "layers.1.up", "layers.1.down"]
    for path, rank in ranks.items():
        assert rank == np.clip(round(budget * score[path] / sum(score.values()) / size), 1, 12)
    assert len(set(ranks.values())) > 1
    mlp.zero_grad()
    lb.adapt(mlp, "lora", targets=list(ranks), rank_pattern=ranks)
    assert {s.path: s.rank for s in lb.summary(mlp).sites} == ranks


@pytest.mark.covers("R19")
def test_ranks_by_variance_take_the_largest_shares(mlp, task):
    scale = torch.linspace(0.05, 3.0, 12) ** 2
    x = task[0] * scale
    ranks = lb.ranks_by_variance(mlp, [x], 2, most=6, targets=["up", "down"], progress=False)
    inputs = {}
    for path in ("layers.0.up", "layers.0.down", "layers.1.up", "layers.1.down"):
        mlp.get_submodule(path).register_forward_hook(lambda m, a, o, path=path: inputs.update({path: a[0]}))
    mlp(x)
    table = []
    for path, seen in inputs.items():
        squares = np.linalg.svd(seen.detach().numpy(), compute_uv=False) ** 2
        table += [(value, path) for value in (squares / squares.sum())[:6]]
    best = [path for _, path in sorted(table, reverse=True)[:8]]
    assert ranks == {path: best.count(path) for path in inputs if path in best}
    assert sum(ranks.values()) == 8
    assert len(set(ranks.values())) > 1
    lb.adapt(mlp, "eva", targets=list(ranks), rank_pattern=ranks, calibration=[x])


@pytest.mark.covers("R19")
@pytest.mark.parametrize("decay", [1.0, 0.6])
def test_shares_of_a_sketch_count_what_it_drops(decay):
    rows = np.random.default_rng(0).standard_normal((400, 40)) * decay ** np.arange(40)
    squares = np.linalg.svd(rows, compute_uv=False) ** 2
    whole, sketch = Moments(40), MomentsSketch(40, 8)
    for part in torch.as_tensor(rows).split(50):
        whole.add(part)
        sketch.add(part)
    assert np.allclose(whole.shares(), squares / squares.sum())
    expected = squares[:8] / squares.sum()
    assert np.all(sketch.shares().numpy() <= expected + 1e-12)
    assert np.allclose(sketch.shares()[:3], expected[:3], rtol=0.02 if decay < 1 else 0.9)


def test_ranks_out_of_order(mlp, task):
    with pytest.raises(ValueError, match="1 <= least <= rank <= most"):
        lb.ranks_by_importance(mlp, calibration_of(mlp, task), 4, 5)
    with pytest.raises(ValueError, match="1 <= rank <= most"):
        lb.ranks_by_variance(mlp, [task[0]], 4, most=2)


def test_a_loss_without_the_layers(mlp, task):
    constant = torch.zeros((), requires_grad=True)

    def loss():
        return 0 * mlp(task[0]).sum() + constant

    with pytest.raises(ValueError, match="importance of all layers is zero"):
        lb.ranks_by_importance(mlp, loss, progress=False)


@pytest.mark.covers("O49")
def test_no_two_gradients_of_weights_are_held_at_once(mlp, task):
    """Backward hooks of the layers look at what there is while it runs."""
    held, starts = [], lb.recipe("lora-ga").init
    weights = [p for name, p in mlp.named_parameters() if name.startswith("layers") and name.endswith("weight")]

    def look(*_):
        held.append(sum(p.grad is not None for p in weights))

    handles = [layer[name].register_full_backward_hook(look) for layer in mlp.layers for name in ("up", "down")]
    sites = lb.find_sites(mlp, ["up", "down"])
    inputs = task[0].clone().requires_grad_()
    found = lb.collect(mlp, sites, starts, calibration_of(mlp, (inputs, task[1])), progress=False)
    for handle in handles:
        handle.remove()
    assert len(held) == 4
    assert max(held) <= 1
    calibration_of(mlp, task)().backward()
    for site in sites:
        assert torch.allclose(found[site.name], site.layer.weight.grad, atol=1e-6)
