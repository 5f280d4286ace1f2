"""The optimizer on stacked adapters against the rules of the core in NumPy, one layer at a time."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import llm_bridge as lb
import lowrank_sp as lr
from llm_bridge.starts import Gaussian, OrthonormalIdentity, Start
from lowrank_sp import definite, matrix_functions
from lowrank_sp.parameterizations import BurerMonteiro, DiagonalCore, PoLAR
from lowrank_sp.rules import RULES, Adam, Orthogonality, PerFactor, Plain, Shrinkage, chain, translate
from lowrank_sp.spaces import FLAT

RATE, DECAY = 1e-2, 0.1


class Apart(nn.Module):
    """Five layers of two shapes, each with a loss of its own: gradients of one do not depend on the others."""

    def __init__(self):
        super().__init__()
        self.lines = nn.ModuleList(nn.Linear(*shape, bias=False) for shape in [(7, 9)] * 3 + [(9, 6)] * 2)

    def forward(self, inputs):
        return sum(line(x).sub(y).square().mean() for line, (x, y) in zip(self.lines, inputs, strict=True))


@dataclasses.dataclass(frozen=True)
class Anywhere(Start):
    """Every array off zero."""

    moves = True

    def __call__(self, site):
        point = site.form.random(site.shape, site.rank, site.rng)
        pairs = zip(point.arrays(), point.spaces, strict=True)
        return site.form(*[torch.as_tensor(0.5 * a if space is FLAT else a) for a, space in pairs])


@pytest.fixture
def apart():
    torch.manual_seed(0)
    return Apart().double()


@pytest.fixture
def inputs(apart):
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return [(normal(16, line.in_features), normal(16, line.out_features)) for line in apart.lines]


def adapters(model):
    return [layer.adapter("default") for layer in lb.adapted(model).values()]


def in_numpy(point):
    return point.map(lambda a: a.detach().numpy().copy())


def gradients(adapter):
    arrays = zip(adapter.point().names, adapter.point().arrays(), strict=True)
    return adapter.form(*[a.grad.numpy().copy() if name in adapter.trains else np.zeros(a.shape) for name, a in arrays])


def shrunk(point, amount, wrt):
    """Decoupled weight decay of the flat arrays that move."""
    arrays = enumerate(zip(point.arrays(), point.spaces, strict=True))
    return type(point)(*[a * (1 - amount) if s is FLAT and i in wrt else a for i, (a, s) in arrays])


def compare(model, inputs, recipe, steps=20, rates=None, tol=1e-6):
    """Train with the optimizer; beside it, every layer alone by the rule in NumPy, on the same gradients."""
    lb.adapt(model, recipe, rank=2, dtype=torch.float64)
    opt = lb.optimizer(model, lr=RATE, weight_decay=DECAY)
    scheduler = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: (rates or [1.0] * steps)[min(step, steps - 1)])
    alone = [in_numpy(adapter.point()) for adapter in adapters(model)]
    states = [recipe.rule.init(point) for point in alone]
    for step in range(steps):
        rate = RATE * (1.0 if rates is None else rates[step])
        opt.zero_grad()
        loss = model(inputs)
        loss.backward()
        for i, adapter in enumerate(adapters(model)):
            point, gradient = alone[i], gradients(adapter)
            direction, state = recipe.rule.update(gradient, states[i], point, loss.item())
            wrt = tuple(k for k, name in enumerate(point.names) if name in adapter.trains)
            alone[i] = recipe.move(shrunk(point, rate * DECAY, wrt), direction, rate, wrt)
            states[i] = recipe.rule.carry(state, point, alone[i])
        opt.step(lambda loss=loss: loss)
        scheduler.step()
    for adapter, expected in zip(adapters(model), alone, strict=True):
        for name, a, b in zip(expected.names, adapter.point().arrays(), expected.arrays(), strict=True):
            if name in adapter.trains:
                assert np.allclose(a.detach().numpy(), b, rtol=0, atol=tol), name
    return opt


def first_form(rule):
    return next(form for form in (BurerMonteiro, PoLAR, DiagonalCore) if issubclass(form, rule.needs))


def made(rule, form=None, **changes):
    return lb.recipe("lora").but("test", rule=rule, form=form or first_form(rule), init=Anywhere(), **changes)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_site_by_site(name, apart, inputs):
    rule = RULES[name]
    opt = compare(apart, inputs, made(rule))
    assert [len(bucket.adapters) for bucket in opt.buckets] == ([] if rule == Adam() else [3, 2])


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if issubclass(PoLAR, rule.needs)])
def test_every_rule_on_orthonormal_factors(name, apart, inputs):
    compare(apart, inputs, made(RULES[name], PoLAR))


@pytest.mark.parametrize("name", ["landing", "landing-scaled", "adam", "canonical"])
def test_orthonormal_factors_that_move_in_straight_lines(name, apart, inputs):
    compare(apart, inputs, made(RULES[name], PoLAR, move=translate))


@pytest.mark.parametrize(
    "recipe",
    [
        made(chain(Adam(), PerFactor((16.0, 1.0)))),
        made(chain(Adam(), Orthogonality(0.1)), DiagonalCore),
        made(Adam(), DiagonalCore, move=Shrinkage(0.1)),
        made(Adam(), trains=("left",)),
        made(RULES["scaled+adam"], trains=("left",)),
    ],
    ids=["lora+", "adalora", "sora", "lora-fa", "lora-fa-projected"],
)
def test_compositions_of_recipes(recipe, apart, inputs):
    compare(apart, inputs, recipe)


@pytest.mark.parametrize("rule", [Adam(), RULES["refactored+adam"]], ids=["adamw", "bucket"])
def test_schedules(rule, apart, inputs):
    compare(apart, inputs, made(rule), rates=[1 / (1 + step) for step in range(20)])


@pytest.mark.parametrize("name", ["lora", "reflora", "lora-pro", "lora-rite", "riemannian", "stella", "polar"])
def test_recipes_from_their_own_start(name, apart, inputs):
    """From a zero factor, where Gram matrices are singular."""
    compare(apart, inputs, lb.recipe(name))


@pytest.mark.parametrize("name", ["reflora", "reflora-s", "lora-pro", "lora-rite", "stella", "polar"])
def test_recipes_by_the_routes_of_a_device(name, apart, inputs, monkeypatch):
    """Tensors of the host count as those of an accelerator, where products replace factorizations that wait."""
    for module in (definite, matrix_functions):
        monkeypatch.setattr(module, "is_remote", lambda a: isinstance(a, torch.Tensor))
    compare(apart, inputs, lb.recipe(name))


@pytest.mark.covers("O02")
def test_turns_with_a_closure_are_alternating_descent(apart):
    """``1/2 ||W - A||^2`` as the loss of a layer: two evaluations a step, the second at the new left factor."""
    lb.adapt(apart, made(Plain(), blocks=(("left",), ("right",))), rank=2, dtype=torch.float64)
    target = torch.randn(9, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    problem = lr.MatrixFactorization(target.numpy())
    starts = [in_numpy(adapter.point()) for adapter in adapters(apart)[:3]]
    opt = lb.optimizer(apart, lr=0.05)
    evaluations = []

    def closure():
        opt.zero_grad()
        loss = 0.5 * torch.stack([(a.point().dense() - target).square().sum() for a in adapters(apart)[:3]]).sum()
        loss.backward()
        evaluations.append(loss.item())
        return loss

    for _ in range(20):
        opt.step(closure)
    assert len(evaluations) == 40
    for adapter, start in zip(adapters(apart)[:3], starts, strict=True):
        expected = lr.solve(problem, start, lr.AltGD(step_size=0.05), max_iter=20, tol=0).point
        assert np.allclose(adapter.point().dense().detach().numpy(), expected.dense(), atol=1e-10)


def test_turns_without_a_closure_move_one_factor_a_step(apart, inputs):
    lb.adapt(apart, "alternating", rank=2, dtype=torch.float64)
    opt = lb.optimizer(apart, lr=RATE)
    moved = []
    for _ in range(4):
        before = in_numpy(adapters(apart)[0].point())
        opt.zero_grad()
        apart(inputs).backward()
        opt.step()
        after = in_numpy(adapters(apart)[0].point())
        moved.append([not np.array_equal(a, b) for a, b in zip(before.arrays(), after.arrays(), strict=True)])
    assert moved == [[True, False], [False, True]] * 2


@pytest.mark.covers("O13", "P25")
def test_orthonormal_factors_stay_so_under_retraction(apart, inputs):
    lb.adapt(apart, "stella", rank=2, dtype=torch.float64)
    opt = lb.optimizer(apart, lr=RATE, weight_decay=DECAY)
    for _ in range(20):
        opt.zero_grad()
        apart(inputs).backward()
        opt.step()
    for adapter in adapters(apart):
        for u in (adapter.left, adapter.right):
            assert torch.allclose(u.T @ u, torch.eye(2, dtype=u.dtype), atol=1e-12)


@pytest.mark.covers("P20", "O40")
def test_the_penalty_of_adalora_makes_its_factors_orthonormal(apart, inputs):
    strong = lb.recipe("adalora").but("strong", rule=chain(Adam(), Orthogonality(5.0)), init=Gaussian(0.3))
    lb.adapt(apart, strong, rank=2, dtype=torch.float64)
    opt = lb.optimizer(apart, lr=RATE)
    for _ in range(300):
        opt.zero_grad()
        apart(inputs).backward()
        opt.step()
    for adapter in adapters(apart):
        assert (adapter.left.T @ adapter.left - torch.eye(2, dtype=torch.float64)).abs().max() < 0.1


@pytest.mark.covers("P23", "O38")
def test_gates_close_under_a_strong_penalty(apart, inputs):
    lb.adapt(apart, lb.recipe("sora").but("strong", move=Shrinkage(3.0)), rank=4, dtype=torch.float64)
    opt = lb.optimizer(apart, lr=RATE)
    for _ in range(100):
        opt.zero_grad()
        apart(inputs).backward()
        opt.step()
    assert all(torch.any(torch.eq(adapter.values, 0)) for adapter in adapters(apart))


@pytest.mark.covers("P06")
def test_heads_have_products_of_their_own(apart):
    sized = lb.recipe("per-head").but("three", form=lb.Heads(3))
    lb.adapt(apart, sized, rank=2, targets=["0"], dtype=torch.float64)
    adapter = adapters(apart)[0]
    assert sum(p.numel() for p in adapter.parameters()) == 2 * (9 + 3 * 7)  # r (out + heads in)
    with torch.no_grad():
        adapter.left.normal_()
    update = adapter.update()
    for head in range(3):
        block = adapter.scale * adapter.left[head, 0] @ adapter.right[head, 0].T
        assert torch.allclose(update[3 * head : 3 * head + 3], block)
    with pytest.raises(ValueError, match="heads of 4 rows do not divide the 9 rows"):
        lb.adapt(apart, sized.but("four", form=lb.Heads(4)), rank=2, targets=["1"], name="four")
    with pytest.raises(ValueError, match="the size of a head must be a positive integer, got 0"):
        lb.Heads(0)


@pytest.mark.covers("P06")
def test_the_size_of_a_head_comes_from_the_model(llama):
    model, ids = llama
    before = model(ids).logits
    lb.adapt(model, lb.per_head(model), rank=2, targets=["q_proj", "k_proj", "v_proj"])
    shapes = {path.rsplit(".")[-1]: layer.adapter("default").left.shape[0] for path, layer in lb.adapted(model).items()}
    assert shapes == {"q_proj": 4, "k_proj": 2, "v_proj": 2}
    assert torch.allclose(model(ids).logits, before, atol=1e-6)
    with pytest.raises(ValueError, match="the model has no configuration with head_dim"):
        lb.per_head(nn.Linear(3, 3))


@pytest.mark.covers("P04")
def test_one_right_factor_for_all_layers_of_a_type(llama):
    model, _ = llama
    lb.adapt(model, "tied-right", rank=2, targets=["q_proj", "up_proj"])
    layers = lb.adapted(model)
    rights = {path: id(layer.adapter("default").right) for path, layer in layers.items()}
    assert len(rights) == 4
    assert len(set(rights.values())) == 2
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert count == 2 * (2 * (16 + 24) + 2 * 16)  # r (sum of outs + one set of ins per type)


@pytest.mark.covers("P29", "E08", "P27", "I07")
def test_starts_with_a_core(apart, inputs):
    lb.adapt(apart, "moslora", rank=2, dtype=torch.float64)
    adapter = adapters(apart)[0]
    assert torch.equal(adapter.core.detach(), torch.eye(2, dtype=torch.float64))
    assert not adapter.left.any()
    lb.adapt(apart, lb.recipe("stella"), rank=2, name="stella", dtype=torch.float64)
    assert isinstance(lb.recipe("stella").init, OrthonormalIdentity)
