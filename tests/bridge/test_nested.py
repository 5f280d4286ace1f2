"""Adapters that are good at every rank up to their own."""

from __future__ import annotations

import copy

import pytest
import torch

import llm_bridge as lb

from .training_steps import adapted, steps


@pytest.mark.covers("O45", "R22", "R24")
@pytest.mark.parametrize("only_last", [False, True])
def test_only_leading_components_act_and_move(only_last, mlp, task):
    optimizer = adapted(mlp, "lora", targets=["up", "down"], alpha=8)
    policy = lb.NestedRanks(mlp, optimizer, only_last=only_last)
    mlp.train()
    seen = set()
    for _ in range(20):
        b = policy.rank
        seen.add(b)
        with torch.no_grad():  # the same model with its factors cut by hand
            cut = copy.deepcopy(mlp)
            for path in policy.adapters:
                own = lb.adapted(cut)[path].adapter("default")
                own.left[:, b:] = 0
                own.left[:, :b] *= (8 / b) / own.scale
        cut.eval()
        assert torch.allclose(mlp(task[0]), cut(task[0]), atol=1e-5)
        before = {p: (a.left.detach().clone(), a.right.detach().clone()) for p, a in policy.adapters.items()}
        steps(mlp, optimizer, task, 1)
        for p, (left, right) in before.items():
            for old, new in ((left, policy.adapters[p].left), (right, policy.adapters[p].right)):
                still = [i for i in range(4) if torch.equal(old[:, i], new[:, i])]
                assert set(still) >= set(range(b, 4)) | (set(range(b - 1)) if only_last else set())
    assert seen == {1, 2, 3, 4}


def test_every_rank_is_an_adapter(mlp, task):
    optimizer = adapted(mlp, "lora", targets=["up", "down"], lr=3e-2)
    before = (mlp(task[0]) - task[1]).square().mean().item()
    lb.NestedRanks(mlp, optimizer)
    steps(mlp, optimizer, task, 80)
    losses = []
    for rank in (1, 2, 3, 4):
        name = lb.with_leading_ranks(mlp, rank, "default")
        adapter = lb.adapted(mlp)["layers.0.up"].adapter(name)
        assert adapter.left.shape == (16, rank)
        assert adapter.scale == 4 / rank
        losses.append((mlp.eval()(task[0]) - task[1]).square().mean().item())
    assert all(loss < before for loss in losses)
    lb.activate(mlp, "default")
    whole = mlp.eval()(task[0])
    lb.activate(mlp, "default-rank4")
    assert torch.allclose(mlp(task[0]), whole, atol=1e-6)


def test_nested_ranks_of_bad_input(mlp):
    optimizer = adapted(mlp, "adalora")
    with pytest.raises(TypeError, match="components of plain LoRA, got recipe 'adalora'"):
        lb.NestedRanks(mlp, optimizer)
    lb.unload(mlp)
    optimizer = adapted(mlp, "lora", dropout=0.1)
    with pytest.raises(ValueError, match="adapt with dropout=0"):
        lb.NestedRanks(mlp, optimizer)
    lb.unload(mlp)
    optimizer = adapted(mlp, "lora")
    with pytest.raises(ValueError, match="1 <= least <= most <= 4"):
        lb.NestedRanks(mlp, optimizer, least=3, most=2)
    with pytest.raises(ValueError, match="rank must lie between 1 and 4"):
        lb.with_leading_ranks(mlp, 5)
    with pytest.raises(ValueError, match="has an adapter 'default' already"):
        lb.with_leading_ranks(mlp, 2, new="default")


def test_detached_adapters_train_all_their_components(mlp, task):
    optimizer = adapted(mlp, "lora")
    policy = lb.NestedRanks(mlp, optimizer, most=1)
    steps(mlp, optimizer, task, 2)
    truncated = mlp.train()(task[0])
    policy.detach()
    assert torch.equal(mlp(task[0]), mlp.eval()(task[0]))
    steps(mlp.train(), optimizer, task, 2)
    assert not torch.equal(mlp(task[0]), truncated)
    assert all(layer.adapter("default").left[:, 1:].any() for layer in lb.adapted(mlp).values())
