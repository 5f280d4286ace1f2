"""Directions of the weight that training has turned to."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import llm_bridge as lb
from llm_bridge.trainer import trained_state


def begin(model, after=4, count=3):
    lb.adapt(model, "lora", rank=2, targets=["up", "down"])
    dash = lb.TaskDirections(model, after, count)
    optimizer = lb.optimizer(model, lr=1e-2)
    dash.attach(optimizer)
    return optimizer, dash


def run(model, optimizer, task, count):
    for _ in range(count):
        optimizer.zero_grad()
        loss = (model(task[0]) - task[1]).square().mean()
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.mark.covers("I20")
def test_the_directions_with_the_largest_rates_of_change_train(mlp, task):
    twin = copy.deepcopy(mlp)
    optimizer, _ = begin(mlp)
    run(mlp, optimizer, task, 4)
    lb.adapt(twin, "lora", rank=2, targets=["up", "down"])
    run(twin, lb.optimizer(twin, lr=1e-2), task, 4)
    assert torch.equal(mlp(task[0]), twin(task[0]))  # nothing but LoRA until then, and d starts at zero
    for layer in lb.adapted(mlp).values():
        weight, change = layer.base.weight.double(), layer.adapter("default").update().detach().double().numpy()
        u, s, vh = np.linalg.svd(weight.detach().numpy(), full_matrices=False)
        rates = np.abs(np.array([u[:, i] @ change @ vh[i] for i in range(len(s))])) / s
        extra = layer.adapter("default-dash")
        for k, i in enumerate(np.argsort(-rates)[:3]):
            outer = np.outer(extra.left[:, k], extra.right[:, k])
            assert np.allclose(outer, np.outer(u[:, i], vh[i]), atol=1e-4)
        assert not extra.values.any()
    run(mlp, optimizer, task, 20)
    assert all(layer.adapter("default-dash").values.all() for layer in lb.adapted(mlp).values())


def test_a_resumed_run_is_the_same_to_the_bit(mlp, task):
    for steps in (2, 6):
        base, whole = copy.deepcopy(mlp), copy.deepcopy(mlp)
        optimizer, _ = begin(whole)
        run(whole, optimizer, task, steps)
        kept = copy.deepcopy((trained_state(whole), optimizer.state_dict()))
        run(whole, optimizer, task, 5)
        again, dash = begin(base)
        base.load_state_dict(kept[0], strict=False)
        again.load_state_dict(kept[1])
        assert dash.steps == steps
        run(base, again, task, 5)
        pairs = zip(whole.state_dict().values(), base.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_both_adapters_are_saved(mlp, task, tmp_path):
    base = copy.deepcopy(mlp)
    optimizer, _ = begin(mlp)
    run(mlp, optimizer, task, 8)
    for name in ("default", "default-dash"):
        lb.save(mlp, tmp_path / name, name)
        lb.load(base, tmp_path / name)
    lb.activate(base, "default", "default-dash")
    assert torch.allclose(base(task[0]), mlp(task[0]), atol=1e-6)


def test_an_optimizer_from_before_is_refused(mlp):
    lb.adapt(mlp, "lora", rank=2, targets=["up", "down"])
    optimizer = lb.optimizer(mlp)
    with pytest.raises(ValueError, match="does not move all parameters that TaskDirections acts on"):
        lb.TaskDirections(mlp).attach(optimizer)


def test_bad_input(mlp):
    lb.adapt(mlp, "dora", rank=2)
    with pytest.raises(ValueError, match="recipe 'dora' has no thin factors that are added"):
        lb.TaskDirections(mlp)
    lb.unload(mlp)
    lb.adapt(mlp, "lora", rank=2)
    with pytest.raises(ValueError, match="after must be a positive number"):
        lb.TaskDirections(mlp, after=0)
    with pytest.raises(ValueError, match="rank must lie between"):
        lb.TaskDirections(mlp, count=99)
    assert list(lb.setups(mlp)) == ["default"]
    lb.activate(mlp)
    with pytest.raises(ValueError, match="is not active"):
        lb.TaskDirections(mlp)
