"""Ranks that fall and grow: against PEFT's allocator, their formulas, and bad input."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import llm_bridge as lb

from .conftest import Mlp
from .training_steps import adapted, steps

# AdaLoRA --------------------------------------------------------------------------------------------------------


def peft_twin(base, rank, budget):
    """The same layers in PEFT, with its allocator, whose factors are those of ``ours`` after `copy_over`."""
    from peft import AdaLoraConfig, get_peft_model
    from peft.tuners.adalora.layer import RankAllocator

    config = AdaLoraConfig(
        init_r=rank,
        target_r=budget.target,
        tinit=budget.first,
        tfinal=budget.last,
        deltaT=budget.every,
        total_step=budget.steps,
        beta1=0.8,
        beta2=0.7,
        target_modules=["up", "down"],
    )
    model = get_peft_model(copy.deepcopy(base), config)
    return model, RankAllocator(model, config, "default")


def pairs(adapters, peft):
    """Parameters of ours and of PEFT that correspond, with a view that turns ours into theirs."""
    modules = dict(peft.base_model.model.named_modules())
    for path, adapter in adapters.items():
        layer = modules[path]
        yield adapter.left, layer.lora_B["default"], lambda a: a
        yield adapter.values, layer.lora_E["default"], lambda a: a[:, None]
        yield adapter.right, layer.lora_A["default"], lambda a: a.mT


@pytest.mark.covers("P20", "R10")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("every", [1, 3])
def test_masks_are_those_of_peft_at_equal_gradients(every, mlp):
    budget = lb.Budget(target=2, steps=30, first=4, last=6, every=every)
    peft, allocator = peft_twin(mlp, 4, budget)
    optimizer = adapted(mlp, targets=["up", "down"])
    policy = lb.Pruning(mlp, optimizer, budget, lb.Sensitivity(0.8, 0.7))
    generator = torch.Generator().manual_seed(0)
    for t in range(1, 31):
        for ours, theirs, view in pairs(policy.adapters, peft):
            with torch.no_grad():
                ours.add_(torch.randn(ours.shape, generator=generator))
                theirs.copy_(view(ours))
            ours.grad = torch.randn(ours.shape, generator=generator)
            theirs.grad = view(ours.grad).clone()
        policy.before()
        policy.after()
        kept, _ = allocator.update_and_allocate(peft, t)
        assert budget.at(t, 16, 4) == kept
        for ours, theirs, view in pairs(policy.adapters, peft):
            assert torch.equal(view(ours), theirs)
    assert sum(policy.ranks().values()) == 8
    assert len(set(policy.ranks().values())) > 1


@pytest.mark.covers("P20", "R10")
def test_ranks_fall_to_the_budget_in_training(mlp, task):
    optimizer = adapted(mlp, targets=["up", "down"])
    policy = lb.adalora(mlp, optimizer, lb.Budget(target=2, steps=40, first=5, last=10))
    first = steps(mlp, optimizer, task, 5)
    assert sum(policy.ranks().values()) == 16
    assert steps(mlp, optimizer, task, 35) < first
    assert sum(policy.ranks().values()) == 8


@pytest.mark.covers("P36")
def test_shares_are_norms_of_components(mlp, task):
    optimizer = adapted(mlp, targets=["up", "down"])
    policy = lb.dynamic_components(mlp, optimizer, lb.Budget(target=1, steps=30, first=5, last=5))
    steps(mlp, optimizer, task, 1)  # gates start at zero
    policy.sums = policy.importance.zero(policy.adapters)
    expected = {path: np.zeros(4) for path in policy.adapters}
    for _ in range(5):
        for path, a in policy.adapters.items():
            left, d, right = (getattr(a, n).detach().double().numpy() for n in ("left", "values", "right"))
            parts = [d[i] * np.outer(left[:, i], right[:, i]) for i in range(4)]
            share = [np.linalg.norm(part) / np.linalg.norm(sum(parts)) for part in parts]
            expected[path] = 0.9 * expected[path] + 0.1 * np.array(share)
        steps(mlp, optimizer, task, 1)
    for path, score in policy.importance.scores(policy.adapters, policy.sums).items():
        assert np.allclose(score.numpy(), expected[path], atol=1e-5)
    steps(mlp, optimizer, task, 24)
    assert sum(policy.ranks().values()) == 4


@pytest.mark.parametrize(
    "wrong",
    [
        {"target": 0, "steps": 10},
        {"target": 1, "steps": 10, "every": 0},
        {"target": 1, "steps": 10, "first": -1},
        {"target": 1, "steps": 10, "first": 5, "last": 5},
    ],
)
def test_budgets_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match=r"must be positive|must be less than steps"):
        lb.Budget(**wrong)


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_decays_out_of_range(decay):
    with pytest.raises(ValueError, match="decay must lie"):
        lb.Sensitivity(decay)


def test_policies_refuse_what_has_no_gates(mlp):
    optimizer = adapted(mlp, "lora")
    with pytest.raises(TypeError, match="recipe 'lora' does not have; take 'adalora'"):
        lb.adalora(mlp, optimizer, lb.Budget(1, 10))
    with pytest.raises(ValueError, match="no adapter 'other'"):
        lb.adalora(mlp, optimizer, lb.Budget(1, 10), name="other")
    lb.unload(mlp)
    optimizer = adapted(mlp, "adalora", rank=2)
    with pytest.raises(ValueError, match="target of 3 components a layer is above"):
        lb.adalora(mlp, optimizer, lb.Budget(3, 10))
    lb.activate(mlp)
    with pytest.raises(ValueError, match="is not active"):
        lb.adalora(mlp, optimizer, lb.Budget(1, 10))


def test_a_closure_is_refused_where_gradients_are_looked_at(mlp, task):
    optimizer = adapted(mlp)
    lb.adalora(mlp, optimizer, lb.Budget(1, 10))
    with pytest.raises(ValueError, match="without a closure"):
        optimizer.step(lambda: (mlp(task[0]) - task[1]).square().mean())


# IncreLoRA ------------------------------------------------------------------------------------------------------


@pytest.mark.covers("P21", "I25", "R11")
def test_important_layers_grow_until_the_budget_is_used(mlp, task):
    optimizer = adapted(mlp, "increlora", targets=["up", "down"])
    policy = lb.Growing(mlp, optimizer, budget=9, steps=60, every=4, layers=2, warmup=3)
    with torch.no_grad():
        for adapter in policy.adapters.values():
            adapter.values[0] = 0.1
    counts = []
    for _ in range(8):
        acting = {p: int((b != -2).sum()) for p, b in policy.born.items()}
        assert all(torch.all(policy.adapters[p].values[n:] == 0) for p, n in acting.items())
        steps(mlp, optimizer, task, 4)
        grown = [p for p, b in policy.born.items() if int((b != -2).sum()) > acting[p]]
        order = (policy.mean * policy.uncertain).argsort(descending=True).tolist()
        room = [p for p in (list(policy.adapters)[i] for i in order) if acting[p] < 4]
        assert set(grown) == set(room[: len(grown)])
        counts.append(sum(acting.values()))
        for p in grown:
            assert policy.adapters[p].values[acting[p]].item() == pytest.approx(1e-2)
    assert counts == [4, 6, 8, 9, 9, 9, 9, 9]
    assert sum(policy.ranks().values()) == 9


@pytest.mark.covers("O47")
def test_a_new_component_has_a_rate_of_its_own(task):
    torch.manual_seed(0)
    model = Mlp()
    lb.adapt(model, lb.recipe("increlora").but("plain", rule=lb.recipe("lora").rule), rank=3)
    optimizer = lb.optimizer(model, lr=1e-2)
    policy = lb.Growing(model, optimizer, budget=6, steps=20, every=2, layers=1, warmup=4)
    steps(model, optimizer, task, 2)
    path = next(p for p, b in policy.born.items() if bool((b >= 0).any()))
    adapter, expected = policy.adapters[path], [(t + 1) / 4 * (1 - t / 18) for t in range(4)]
    for t, factor in enumerate(expected):
        assert policy.factors(path)[:2].tolist() == pytest.approx([1.0, factor])
        twin = copy.deepcopy(model)
        other = lb.optimizer(twin, lr=1e-2)
        state = copy.deepcopy(optimizer.state_dict())
        state.pop("companions")
        other.load_state_dict(state)
        optimizer.zero_grad()
        (model(task[0]) - task[1]).square().mean().backward()
        for a, b in zip(twin.parameters(), model.parameters(), strict=True):
            a.grad = None if b.grad is None else b.grad.clone()
        same = lb.adapted(twin)[path].adapter("default")
        assert same.values.grad is not None
        same.values.grad[2:] = 0
        before = adapter.left.detach().clone()
        optimizer.step()
        other.step()
        free = same.left - before
        moved = adapter.left - before
        assert torch.allclose(moved[:, 0], free[:, 0], atol=1e-7), t
        assert torch.allclose(moved[:, 1], factor * free[:, 1], atol=1e-7), t


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"budget": 3}, "budget must lie between 5"),
        ({"budget": 99}, "budget must lie between 5"),
        ({"budget": 8, "first": 9}, "first must lie between"),
        ({"budget": 8, "every": 0}, "every must be positive"),
        ({"budget": 8, "gate": -1.0}, "gate must be positive"),
    ],
)
def test_growing_that_makes_no_sense(wrong, message, mlp):
    optimizer = adapted(mlp, "increlora")
    with pytest.raises(ValueError, match=message):
        lb.Growing(mlp, optimizer, steps=20, **wrong)
