"""Ranks that a rule of its own decides: closed gates that are dropped, and sizes at a matched budget."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import llm_bridge as lb
import lowrank_sp as lr
from lowrank_sp.rules import Shrinkage

from .training_steps import steps


@pytest.mark.covers("R13", "R23")
@pytest.mark.parametrize("recipe", ["sora", "dynamic-rank"])
def test_closed_gates_are_dropped_by_an_export(recipe, mlp, task, tmp_path):
    """After a proximal step a gate is exactly zero; without its component the model is the same."""
    fresh = copy.deepcopy(mlp)
    assert isinstance(lb.recipe(recipe).move, Shrinkage)
    lb.adapt(mlp, lb.recipe(recipe).but("strong", move=Shrinkage(1.5)), rank=4, targets=["up", "down"])
    steps(mlp, lb.optimizer(mlp, lr=2e-2), task, 40)
    gates = {path: layer.adapter("default").values for path, layer in lb.adapted(mlp).items()}
    left = {path: int(values.count_nonzero()) for path, values in gates.items()}
    assert 0 < sum(left.values()) < 4 * len(left)
    report = lb.export_lora(mlp, tmp_path)
    assert report.ranks == {path: max(count, 1) for path, count in left.items()}
    lb.load_peft(fresh, tmp_path)
    assert torch.allclose(fresh(task[0]), mlp(task[0]), atol=1e-5)


@pytest.mark.covers("R23")
def test_a_stronger_penalty_leaves_fewer_components(mlp, task):
    left = []
    for weight in (0.0, 0.5, 2.0, 8.0):
        model = copy.deepcopy(mlp)
        lb.adapt(model, lb.recipe("dynamic-rank").but("test", move=Shrinkage(weight)), rank=6, targets=["up", "down"])
        steps(model, lb.optimizer(model, lr=2e-2), task, 40)
        left.append(sum(int(layer.adapter("default").values.count_nonzero()) for layer in lb.adapted(model).values()))
    assert left == sorted(left, reverse=True)
    assert left[0] == 6 * 4
    assert left[-1] < left[0]


@pytest.mark.covers("R29", "D74")
@pytest.mark.parametrize(("width", "rank", "number"), [(256, 16, 4), (64, 8, 4), (162, 27, 9)])
def test_ranks_of_blocks_at_a_matched_budget(width, rank, number):
    """``N`` blocks, ``K = sqrt(N)``: blocks of rank r / (N K) and diagonal ones of rank r / N cost 2 d r / N."""
    side = round(number**0.5)
    forms = {
        lr.BurerMonteiro: (rank // number, rank // number),
        lr.BlockGrid.of(side, side): (rank // (number * side), rank // side),
        lr.BlockDiagonal.of(number): (rank // number, rank),
    }
    for form, (size, reached) in forms.items():
        assert form.parameter_count((width, width), size) == 2 * width * rank // number
        point = form.random((width, width), size, np.random.default_rng(0))
        assert np.linalg.matrix_rank(point.dense()) == reached
