"""Policies of ranks against PEFT's allocator, their formulas, resumed runs and bad input."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.stats import uniform
from torch import nn

import llm_bridge as lb
from llm_bridge.trainer import trained_state

from .conftest import Mlp


def steps(model, optimizer, task, count, start=0):
    for _ in range(start, start + count):
        optimizer.zero_grad()
        loss = (model(task[0]) - task[1]).square().mean()
        loss.backward()
        optimizer.step()
    return loss.item()


def adapted(model, recipe="adalora", rank=4, lr=1e-2, **options):
    lb.adapt(model, recipe, rank=rank, **options)
    return lb.optimizer(model, lr=lr)


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
    policy.finish()
    gates = torch.cat([a.values.detach() for a in policy.adapters.values()])
    assert torch.equal(gates, policy.gates().detach())
    assert sum(policy.ranks().values()) == int(gates.count_nonzero())


@pytest.mark.parametrize("wrong", [{"budget": 0.0}, {"budget": 0.5, "open": 1.0}, {"budget": 0.5, "low": 0.1}])
def test_gates_that_make_no_sense(wrong, mlp):
    optimizer = adapted(mlp, "salora")
    with pytest.raises(ValueError, match=r"budget must lie|needs lr > 0"):
        lb.HardConcreteGates(mlp, optimizer, **wrong)


# DyLoRA ---------------------------------------------------------------------------------------------------------


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
    columns = [a.clone() for a in policy._arrays()]

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
    assert all(torch.equal(a, b) for a, b in zip(columns, policy._arrays(), strict=True))
    for _ in range(40):
        steps(mlp, optimizer, train, 1)
        with policy.held_out():
            steps(mlp, optimizer, held, 1)
    assert all(w.sum().item() == pytest.approx(1.0) for w in policy.weights().values())
    ranks = policy.chosen_ranks()
    assert all(1 <= r < 4 for r in ranks.values())
    assert policy.chosen_ranks(0.0) == dict.fromkeys(ranks, 4)
    assert policy.chosen_ranks(2.0) == dict.fromkeys(ranks, 1)


def test_selection_of_bad_input(mlp):
    optimizer = adapted(mlp, "salora")
    with pytest.raises(ValueError, match="lr must be positive"):
        lb.SelectionWeights(mlp, optimizer, lr=0.0)


@pytest.mark.covers("O42")
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


# all of them ----------------------------------------------------------------------------------------------------

MAKE = {
    "adalora": lambda m, o: lb.adalora(m, o, lb.Budget(2, 12, 2, 2)),
    "mao": lambda m, o: lb.dynamic_components(m, o, lb.Budget(2, 12, 2, 2)),
    "increlora": lambda m, o: lb.Growing(m, o, 15, 12, every=2, layers=2, warmup=2),
    "salora": lambda m, o: lb.HardConcreteGates(m, o, 0.5),
    "lora": lb.NestedRanks,
    "autolora": lb.SelectionWeights,
}


@pytest.mark.parametrize("name", MAKE)
def test_a_resumed_run_is_the_same_to_the_bit(name, mlp, task):
    base = copy.deepcopy(mlp)
    recipe = {"mao": "adalora", "autolora": "salora"}.get(name, name)

    def begin(model):
        optimizer = adapted(model, recipe)
        return optimizer, MAKE[name](model, optimizer)

    whole, _ = begin(mlp)
    steps(mlp, whole, task, 6)
    kept = copy.deepcopy((trained_state(mlp), whole.state_dict()))
    steps(mlp, whole, task, 6)
    model = copy.deepcopy(base)
    again, policy = begin(model)
    model.load_state_dict(kept[0], strict=False)
    again.load_state_dict(kept[1])
    assert policy.steps == 6
    steps(model, again, task, 6)
    matched = zip(mlp.state_dict().items(), model.state_dict().items(), strict=True)
    assert all(k == l and torch.equal(a, b) for (k, a), (l, b) in matched)


def test_a_trainer_needs_nothing_but_the_optimizer(llama, tmp_path):
    from .test_trainer import trainer

    model = lb.adapt(copy.deepcopy(llama[0]), "adalora", rank=3, targets=["q_proj", "up_proj"])
    optimizer = lb.optimizer(model, lr=1e-2)
    policy = lb.adalora(model, optimizer, lb.Budget(1, 8, 2, 2))
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    trainer(model, tmp_path, optimizers=(optimizer, schedule)).train()
    assert policy.steps == 8
    assert sum(policy.ranks().values()) == 4


def test_two_companions_share_an_optimizer(mlp, task):
    optimizer = adapted(mlp, "adalora")
    policy = lb.adalora(mlp, optimizer, lb.Budget(2, 12, 2, 2))
    restarts = lb.Restarts(mlp, optimizer, lb.chain_of_lora(4))
    steps(mlp, optimizer, task, 9)
    assert set(optimizer.state_dict()["companions"]) == {"Pruning", "Restarts"}
    assert policy.steps == restarts.steps == 9


def test_models_without_the_layers_have_no_policy():
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ValueError, match="no adapter 'default'"):
        lb.adalora(model, torch.optim.SGD(model.parameters(), 0.1), lb.Budget(1, 10))
