"""Gates that learn: hard-concrete ones, weights that held-out data choose, and columns with data of their own."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.stats import uniform

import llm_bridge as lb

from .training_steps import adapted, steps


def values(policy):
    return torch.cat([a.values.detach() for a in policy.adapters.values()])


# SaLoRA ---------------------------------------------------------------------------------------------------------


@pytest.mark.covers("P22", "R12")
def test_gates_have_the_distribution_of_the_survey(mlp):
    optimizer = adapted(mlp, "salora")
    policy = lb.HardConcreteGates(mlp, optimizer, budget=0.5)
    d, tau, low, high = 0.7, 2 / 3, -0.1, 1.1
    with torch.no_grad():
        policy.logits.fill_(np.log(d))
    u = uniform.rvs(size=200_000, random_state=0)
    stretched = 1 / (1 + np.exp(-(np.log(u / (1 - u)) + np.log(d)) / tau)) * (high - low) + low
    assert policy.open_share().item() == pytest.approx((stretched > 0).mean(), abs=3e-3)
    some = torch.as_tensor(u[: len(policy.logits)], dtype=torch.float32)
    assert np.allclose(policy.gates(some).detach(), stretched[: len(some)].clip(0, 1), atol=1e-5)


@pytest.mark.covers("P22", "O39")
def test_gates_follow_the_gradient_of_loss_and_constraint(mlp, task):
    optimizer = adapted(mlp, "salora", targets=["up", "down"])
    policy = lb.HardConcreteGates(mlp, optimizer, budget=0.5, weight=3.0)
    steps(mlp, optimizer, task, 3)
    optimizer.zero_grad()
    (mlp(task[0]) - task[1]).square().mean().backward()
    policy.before()

    def objective(logits):
        """The loss with gates as a function of their logits, by functional_call."""
        soft = torch.sigmoid((torch.logit(policy.noise) + logits) / policy.temperature)
        gates = (soft * 1.2 - 0.1).clamp(0, 1)
        names = {id(p): n for n, p in mlp.named_parameters()}
        values = [names[id(a.values)] for a in policy.adapters.values()]
        out = torch.func.functional_call(mlp, dict(zip(values, gates.split(policy.sizes), strict=True)), (task[0],))
        likely = torch.sigmoid(logits - policy.temperature * np.log(0.1 / 1.1)).mean()
        return (out - task[1]).square().mean() + policy.weight * (likely - 0.5) ** 2

    expected = torch.func.grad(objective)(policy.logits.detach())
    assert torch.allclose(policy.logits.grad, expected, atol=1e-6)


def test_the_constraint_is_met_and_evaluation_is_deterministic(mlp, task):
    optimizer = adapted(mlp, "salora", targets=["up", "down"])
    policy = lb.HardConcreteGates(mlp, optimizer, budget=0.5, lr=0.1, weight=1.0)
    mlp.train()
    first = steps(mlp, optimizer, task, 1)
    steps(mlp, optimizer, task, 150)
    assert policy.open_share().item() == pytest.approx(0.5, abs=0.1)
    assert policy.weight > 1.0
    noisy = mlp(task[0]).detach()
    mlp.eval()
    calm = mlp(task[0]).detach()
    assert torch.equal(calm, mlp(task[0]))
    assert not torch.equal(calm, noisy)
    mlp.train()
    assert torch.equal(mlp(task[0]), noisy)
    assert (calm - task[1]).square().mean() < first
    steps(mlp, optimizer, task, 1)
    assert torch.equal(values(policy), policy.gates().detach())  # what is saved after a step is not noisy
    mlp(task[0])
    assert not torch.equal(values(policy), policy.gates().detach())
    policy.finish()
    gates = torch.cat([a.values.detach() for a in policy.adapters.values()])
    assert torch.equal(gates, policy.gates().detach())
    assert sum(policy.ranks().values()) == int(gates.count_nonzero())


@pytest.mark.parametrize("wrong", [{"budget": 0.0}, {"budget": 0.5, "open": 1.0}, {"budget": 0.5, "low": 0.1}])
def test_gates_that_make_no_sense(wrong, mlp):
    optimizer = adapted(mlp, "salora")
    with pytest.raises(ValueError, match=r"budget must lie|needs lr > 0"):
        lb.HardConcreteGates(mlp, optimizer, **wrong)


# AutoLoRA and BiLoRA --------------------------------------------------------------------------------------------


@pytest.mark.covers("O43", "R14")
def test_weights_learn_from_held_out_data_alone(mlp, task):
    optimizer = adapted(mlp, "salora", targets=["up", "down"])
    policy = lb.SelectionWeights(mlp, optimizer, lr=5e-2)
    train, held = [a[:16] for a in task], [a[16:] for a in task]
    start = {p: w.clone() for p, w in policy.weights().items()}
    assert all(torch.allclose(w, torch.full((4,), 0.25)) for w in start.values())
    steps(mlp, optimizer, train, 5)
    assert all(torch.equal(w, start[p]) for p, w in policy.weights().items())
    columns = [array.clone() for a in policy.adapters.values() for array in (a.left, a.right)]

    def objective(logits):
        names = {id(p): n for n, p in mlp.named_parameters()}
        values = {names[id(a.values)]: w.softmax(0) for a, w in zip(policy.adapters.values(), logits, strict=True)}
        out = torch.func.functional_call(mlp, values, (held[0],))
        return (out - held[1]).square().mean()

    expected = torch.func.grad(objective)([w.detach() for w in policy.logits])
    with policy.held_out():
        steps(mlp, optimizer, held, 1)
    for w, gradient in zip(policy.logits, expected, strict=True):
        assert w.grad is not None
        assert torch.allclose(w.grad, gradient, atol=1e-6)
    after = [array for a in policy.adapters.values() for array in (a.left, a.right)]
    assert all(torch.equal(a, b) for a, b in zip(columns, after, strict=True))
    for _ in range(40):
        steps(mlp, optimizer, train, 1)
        with policy.held_out():
            steps(mlp, optimizer, held, 1)
    assert all(w.sum().item() == pytest.approx(1.0) for w in policy.weights().values())
    ranks = policy.chosen_ranks()
    assert all(1 <= r < 4 for r in ranks.values())
    assert policy.chosen_ranks(0.0) == dict.fromkeys(ranks, 4)
    assert policy.chosen_ranks(2.0) == dict.fromkeys(ranks, 1)


@pytest.mark.covers("O43", "R14")
@pytest.mark.parametrize("recipe", ["salora", "adalora"])
def test_held_out_data_reach_nothing_but_the_weights(recipe, mlp, task):
    """With weights that cannot move, steps on held-out data leave no trace, in heads and moments neither."""
    train, held = [a[:16] for a in task], [a[16:] for a in task]
    models = [mlp, copy.deepcopy(mlp)]
    for model in models:
        optimizer = adapted(model, recipe, targets=["up", "down"], also_train=["head"])
        policy = lb.SelectionWeights(model, optimizer, lr=1e-30)
        for _ in range(3):
            steps(model, optimizer, train, 2)
            if model is mlp:
                with policy.held_out():
                    steps(model, optimizer, held, 1)
    assert all(torch.equal(a, b) for a, b in zip(*(m.state_dict().values() for m in models), strict=True))


def test_selection_of_bad_input(mlp):
    optimizer = adapted(mlp, "salora")
    with pytest.raises(ValueError, match="lr must be positive"):
        lb.SelectionWeights(mlp, optimizer, lr=0.0)


@pytest.mark.covers("O42", "R15")
def test_columns_and_gates_have_data_of_their_own(mlp, task):
    optimizer = adapted(mlp, "bilora", targets=["up", "down"])
    adapters = [layer.adapter("default") for layer in lb.adapted(mlp).values()]
    parts, seen = [[a[:16] for a in task], [a[16:] for a in task]], []
    for turn in range(4):
        before = [(a.left.detach().clone(), a.values.detach().clone()) for a in adapters]
        steps(mlp, optimizer, parts[turn % 2], 1)
        for a, (left, values) in zip(adapters, before, strict=True):
            assert torch.equal(a.left, left) is (turn % 2 == 1)
            assert torch.equal(a.values, values) is (turn % 2 == 0)

    def closure():
        part = parts[len(seen) % 2]
        seen.append(part)
        optimizer.zero_grad()
        loss = (mlp(part[0]) - part[1]).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert seen == parts
