"""Importance by ablation against models with the components taken out by hand, and ranks that move."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

import llm_bridge as lb

from .training_steps import steps

PATHS = ["layers.0.up", "layers.0.down", "layers.1.up", "layers.1.down"]


def prepared(mlp, task, rank=3) -> Any:
    lb.adapt(mlp, "dynamic-rank", rank=rank, targets=["up", "down"])
    with torch.no_grad():
        for k, layer in enumerate(lb.adapted(mlp).values()):
            left = layer.adapter("default").left
            left.copy_(0.5 * torch.randn(left.shape, generator=torch.Generator().manual_seed(k)))
    return mlp


def score_of(model, task):
    return lambda: -(model(task[0]) - task[1]).square().mean().item()


def by_hand(model, task, keep) -> float:
    """The score with the components that ``keep(path, i)`` names."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for path, layer in lb.adapted(other).items():
            values = layer.adapter("default").values
            for i in range(len(values)):
                values[i] *= float(keep(path, i))
    return score_of(other, task)()


@pytest.mark.covers("R16")
def test_scores_are_those_of_models_with_components_taken_out(mlp, task):
    model = prepared(mlp, task)
    model.train()
    before = copy.deepcopy(model.state_dict())
    scores = lb.ablation(model, score_of(model, task))
    assert model.training
    assert all(torch.equal(a, before[k]) for k, a in model.state_dict().items())
    whole = by_hand(model, task, lambda p, i: True)
    for path in PATHS:
        for i in range(3):
            without = by_hand(model, task, lambda p, j, path=path, i=i: (p, j) != (path, i))
            alone = by_hand(model, task, lambda p, j, path=path, i=i: (p, j) == (path, i))
            assert scores[path][i].item() == pytest.approx(whole - without + alone, abs=1e-6)


@pytest.mark.covers("R16")
def test_the_worst_components_make_room_for_new_ones(mlp, task):
    model = prepared(mlp, task)
    scores = {path: torch.tensor([3.0, 2.0, 1.0]) + 10 * k for k, path in enumerate(PATHS)}
    old = {path: layer.adapter("default").point() for path, layer in lb.adapted(model).items()}
    assert lb.reallocated(model, scores, 2, new="next") == "next"
    layers = lb.adapted(model)
    ranks = {path: layer.adapter("next").point().rank for path, layer in layers.items()}
    assert ranks == dict(zip(PATHS, [1, 3, 4, 4], strict=True))
    assert sum(ranks.values()) == 12
    for path, layer in layers.items():
        adapter, kept = layer.adapter("next"), min(ranks[path], 3)
        expected = (old[path].left[:, :kept] * old[path].values[:kept]) @ old[path].right[:, :kept].T
        assert layer.active == ("next",)
        assert torch.allclose(adapter.point().dense(), expected, atol=1e-6)  # what is new vanishes
        assert adapter.scale == layer.adapter("default").scale
    first = steps(model, lb.optimizer(model, lr=1e-2), task, 1)
    assert steps(model, lb.optimizer(model, lr=1e-2), task, 40) < first


@pytest.mark.covers("R16")
def test_training_scoring_moving_and_training_again(mlp, task, tmp_path):
    model = prepared(mlp, task, rank=2)
    steps(model, lb.optimizer(model, lr=1e-2), task, 20)
    scores = lb.ablation(model, score_of(model, task))
    worst = min((float(s.min()), path) for path, s in scores.items() if len(s) > 1)[1]
    lb.reallocated(model, scores, 1)
    after = {path: layer.adapter("default-reallocated").point().rank for path, layer in lb.adapted(model).items()}
    assert after[worst] == 1
    assert sorted(after.values()) == [1, 2, 2, 3]
    steps(model, lb.optimizer(model, lr=1e-2), task, 20)
    expected = model(task[0])
    lb.save(model, tmp_path, name="default-reallocated")
    lb.unload(model)
    lb.load(model, tmp_path)
    assert torch.allclose(model(task[0]), expected, atol=1e-6)


def test_an_error_of_the_score_leaves_the_model(mlp, task):
    model = prepared(mlp, task)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="score must be finite, got nan"):
        lb.ablation(model, lambda: float(np.nan))
    calls = []

    def fails():
        calls.append(1)
        if len(calls) > 3:
            raise RuntimeError("out of data")
        return 0.0

    with pytest.raises(RuntimeError, match="out of data"):
        lb.ablation(model, fails)
    assert all(torch.equal(a, before[k]) for k, a in model.state_dict().items())


def test_bad_input(mlp, task):
    model = prepared(mlp, task)
    scores = {path: torch.arange(3.0) for path in PATHS}
    with pytest.raises(ValueError, match="count must lie between 1 and 8"):
        lb.reallocated(model, scores, 9)
    with pytest.raises(ValueError, match="one number for every component"):
        lb.reallocated(model, {path: torch.arange(2.0) for path in PATHS}, 1)
    lb.unload(model)
    lb.adapt(model, "lora", rank=2, targets=["up"])
    with pytest.raises(TypeError, match="needs components with gates"):
        lb.ablation(model, lambda: 0.0)
