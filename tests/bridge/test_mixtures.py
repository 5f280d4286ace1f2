"""Mixtures with gates, losses and choices of their own: one input, one expert and one pair at a time."""

from __future__ import annotations

import copy
from contextlib import ExitStack, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import llm_bridge as lb
from llm_bridge.experts import (
    ByDepth,
    BySample,
    ByTask,
    ExpertDropout,
    GenericExperts,
    Hard,
    Limited,
    LowRankExperts,
    Soft,
    Supervised,
    TaskExperts,
    ThresholdExperts,
    Top,
)

from .test_experts import chosen, drawn, softmax


def inputs(*shape, seed=1):
    return torch.as_tensor(np.random.default_rng(seed).standard_normal(shape))


def one(name, form=None, **changes) -> tuple[nn.Module, Any]:
    """A linear layer with a mixture whose experts have moved, in double precision."""
    torch.manual_seed(0)
    made = lb.recipe(name)
    made = made.but(name, form=form or made.form, **changes) if form or changes else made
    model = lb.adapt(nn.Sequential(nn.Linear(4, 6)), made, rank=2, dtype=torch.float64).double()
    adapter = lb.adapted(model)["0"].adapter("default")
    with torch.no_grad():
        for p in adapter.parameters():
            p.copy_(torch.as_tensor(np.random.default_rng(3).standard_normal(p.shape)))
    return model, adapter


def update(model, x):
    """What the adapter adds."""
    return (model(x) - model[0].base(x)).detach()


# gates and forms ------------------------------------------------------------------------------------------------
@pytest.mark.covers("E04")
def test_experts_above_a_threshold_one_input_at_a_time():
    point = drawn(ThresholdExperts.of(5))
    x = inputs(7, 4).numpy()
    got = point.apply(torch.as_tensor(x)).numpy()
    for row, out in zip(x, got, strict=True):
        p = softmax(row @ point.router.numpy())
        level = 1 / (1 + np.exp(-(row @ point.threshold.numpy() + point.offset.item()))) / 5
        above = {e: p[e] - level for e in range(5) if p[e] > level}
        assert above
        shares = {e: value / sum(above.values()) for e, value in above.items()}
        expected = sum(w * point.left[e].numpy() @ point.right[e].numpy().T @ row for e, w in shares.items())
        assert np.allclose(out, expected)
    assert ThresholdExperts.of(5).parameter_count((6, 4), 2) == 5 * 2 * 10 + 6 * 4 + 1


@pytest.mark.covers("E04")
def test_a_threshold_learns():
    arrays = tuple(a.clone().requires_grad_() for a in drawn(ThresholdExperts.of(4)).arrays())
    x = inputs(3, 4)
    assert torch.autograd.gradcheck(lambda *a: ThresholdExperts.of(4)(*a).apply(x), arrays)
    ThresholdExperts.of(4)(*arrays).apply(x).square().sum().backward()
    assert all(a.grad is not None and a.grad.norm() > 0 for a in arrays)


def test_equal_probabilities_at_the_highest_threshold_give_numbers():
    form = ThresholdExperts.of(2)
    point = drawn(form, (6, 4))
    same = form(point.left, point.right, 0 * point.router, 0 * point.threshold, point.offset * 0 + 1e4)
    assert torch.isfinite(same.apply(inputs(3, 4))).all()


@pytest.mark.covers("E12")
def test_a_common_path_beside_the_experts():
    point = drawn(GenericExperts)
    x = inputs(5, 4).numpy()
    pairs = [b.numpy() @ a.numpy().T for b, a in zip(point.left, point.right, strict=True)]
    for row, out in zip(x, point.apply(torch.as_tensor(x)).numpy(), strict=True):
        expected = pairs[0] @ row + sum(w * f @ row for w, f in zip(chosen(point, row), pairs[1:], strict=True))
        assert np.allclose(out, expected)
    assert GenericExperts.parameter_count((6, 4), 2) == 5 * 2 * 10 + 4 * 4


@pytest.mark.covers("E13")
def test_one_expert_for_a_token_and_hard_gates():
    form: Any = lb.recipe("llava-mole").form
    assert form.gate == Top(1)
    p = inputs(9, 5).softmax(-1).requires_grad_()
    weights = Hard()(p)
    assert torch.equal(weights.detach(), nn.functional.one_hot(p.argmax(-1), 5).double())
    cotangent = inputs(9, 5, seed=2)
    (gradient,) = torch.autograd.grad(weights, p, cotangent)
    assert torch.allclose(gradient, cotangent * weights.detach())


@pytest.mark.covers("E05")
def test_numbers_of_experts_along_the_depth(llama):
    pattern = lb.experts_by_depth(llama[0], (2, 4), targets=["q_proj", "down_proj"])
    assert sorted(pattern.items()) == [
        ("model.layers.0.mlp.down_proj", 2),
        ("model.layers.0.self_attn.q_proj", 2),
        ("model.layers.1.mlp.down_proj", 4),
        ("model.layers.1.self_attn.q_proj", 4),
    ]
    model = lb.adapt(llama[0], "mola", targets=["q_proj", "down_proj"], rank_pattern=pattern)
    for path, layer in lb.adapted(model).items():
        adapter: Any = layer.adapter("default")
        assert (len(adapter.left), adapter.left.shape[-1], adapter.scale) == (pattern[path], 8, 1.0)
        assert adapter.form.gate == Top(2)
    model(llama[1])


def test_a_diamond_of_experts():
    blocks = nn.Sequential(*[nn.Linear(4, 4) for _ in range(9)])
    counts = list(lb.experts_by_depth(blocks, (2, 8, 2)).values())
    assert counts == [2, 2, 2, 8, 8, 8, 2, 2, 2]
    with pytest.raises(ValueError, match="counts must be positive integers"):
        lb.experts_by_depth(blocks, (2, 0))
    with pytest.raises(ValueError, match="9 numbered blocks, too few for 10 counts"):
        lb.experts_by_depth(blocks, (2,) * 10)
    with pytest.raises(ValueError, match="each and active must be positive"):
        ByDepth(0)
    assert not lb.recipe("mola").mergeable


# choices for whole samples, labels and limits -------------------------------------------------------------------
@pytest.mark.covers("E03")
def test_all_tokens_of_a_sample_have_one_expert():
    model, adapter = one("moa")
    x = inputs(3, 5, 4)
    pairs = [b @ a.mT for b, a in zip(adapter.left, adapter.right, strict=True)]
    picked = [(s.mean(0) @ adapter.router).argmax().item() for s in x]
    assert len(set(picked)) > 1
    assert torch.allclose(update(model, x), torch.stack([s @ pairs[e].mT for s, e in zip(x, picked, strict=True)]))
    labels = torch.tensor([2, 0, 2])
    with lb.labelled(model, labels):
        assert torch.allclose(
            update(model, x), torch.stack([s @ pairs[e].mT for s, e in zip(x, labels.tolist(), strict=True)])
        )
        with pytest.raises(ValueError, match="5 inputs, which are not those of 3 samples"):
            model(x[0])


@pytest.mark.covers("E03")
def test_samples_of_a_convolution_choose_by_their_patches():
    torch.manual_seed(0)
    model = lb.adapt(nn.Sequential(nn.Conv2d(2, 3, 2)), "moa", rank=2, targets=["0"])
    adapter: Any = lb.adapted(model)["0"].adapter("default")
    with torch.no_grad():
        adapter.left.copy_(torch.randn_like(adapter.left))
        x = torch.randn(4, 2, 3, 4)
        patches = nn.functional.unfold(x, 2).mT
        picked = (patches.mean(1) @ adapter.router).argmax(-1)
        matrices = adapter.left @ adapter.right.mT
        expected = torch.stack([matrices[e] @ p.mT for e, p in zip(picked, patches, strict=True)]).view(4, 3, 2, 3)
        assert torch.allclose(update(model, x), expected, atol=1e-5)


@pytest.mark.covers("E11")
def test_a_pair_for_all_and_one_for_the_task():
    model, adapter = one("mtlora", TaskExperts.of(3))
    x = inputs(3, 5, 4)
    pairs = [b @ a.mT for b, a in zip(adapter.left, adapter.right, strict=True)]
    assert len(pairs) == 4
    assert torch.allclose(update(model, x), x @ pairs[0].mT)
    labels = torch.tensor([1, 0, 2])
    with lb.labelled(model, labels):
        expected = [s @ (pairs[0] + pairs[1 + t]).mT for s, t in zip(x, labels.tolist(), strict=True)]
        assert torch.allclose(update(model, x), torch.stack(expected))
        model(x).square().sum().backward()
    assert all((g.norm() > 0) for g in adapter.left.grad)
    assert TaskExperts.of(3).parameter_count((6, 4), 2) == 4 * 2 * 10
    with pytest.raises(TypeError, match="depends on the task of every sample"):
        lb.merge(model)


@pytest.mark.covers("E10")
def test_experts_take_so_many_tokens_in_training_and_all_of_them_later():
    model, adapter = one("sira", LowRankExperts.of(3, Top(1)), combine=Limited(0.5))
    x = inputs(2, 9, 4)
    pairs = [b @ a.mT for b, a in zip(adapter.left, adapter.right, strict=True)]
    rows = x.flatten(0, 1)
    p = (rows @ adapter.router).softmax(-1)
    taken, expected, free = [0, 0, 0], [], []
    for row, q in zip(rows, p, strict=True):
        e = int(q.argmax())
        taken[e] += 1
        free.append(q[e] * pairs[e] @ row)
        expected.append(free[-1] * (taken[e] <= 0.5 * 18 / 3))
    assert max(taken) > 3
    assert update(model, x[:1, :1]).any()  # a single token is not too many
    assert torch.allclose(update(model, x), torch.stack(expected).view(2, 9, 6))
    model.eval()
    assert torch.allclose(update(model, x), torch.stack(free).view(2, 9, 6))
    with pytest.raises(ValueError, match="capacity must be positive"):
        Limited(0.0)


@pytest.mark.covers("E10")
def test_scores_of_the_router_drop_out():
    torch.manual_seed(0)
    scores = torch.ones(2000, 4)
    seen = ExpertDropout(0.5).scores(scores, True)
    assert set(seen.unique().tolist()) == {0.0, 2.0}
    assert abs((seen == 0).float().mean() - 0.5) < 0.05
    assert torch.equal(ExpertDropout(0.5).scores(scores, False), scores)
    model, _ = one("sira")
    x = inputs(2, 9, 4)
    noisy = copy.deepcopy(model)
    lb.adapted(noisy)["0"].adapter("default").noise = ExpertDropout(0.9)
    assert not torch.allclose(noisy(x), model(x))
    assert torch.equal(noisy.eval()(x), model.eval()(x))


@pytest.mark.covers("E03", "E10", "E11")
@pytest.mark.parametrize("name", ["moa", "sira", "mtlora"])
def test_gradients_are_those_of_differences_and_of_checkpoints(name):
    model, adapter = one(name)
    x = inputs(2, 3, 4)
    names = [n for n, _ in adapter.named_parameters()]

    def run(*arrays):
        values = {f"0.adapters.adapter_default.{n}": a for n, a in zip(names, arrays, strict=True)}
        return torch.func.functional_call(model, values, (x,))

    arrays = [p.detach().clone().requires_grad_() for p in adapter.parameters()]
    if name == "moa":  # straight through: not the derivative of a choice
        adapter.form = LowRankExperts.of(4, Soft(), Supervised())
    assert torch.autograd.gradcheck(run, arrays)
    found = []
    for call in (model, lambda x: checkpoint(model, x, use_reentrant=False)):
        model.zero_grad()
        with lb.labelled(model, torch.tensor([1, 0])) if name == "mtlora" else nullcontext():
            call(x).square().sum().backward()
        found.append([p.grad for p in adapter.parameters()])
    assert all(torch.allclose(a, b) and a.norm() > 0 for a, b in zip(*found, strict=True))


def test_choices_for_experts_that_they_do_not_know():
    for name, combine in (("lora", BySample()), ("moe-lora", ByTask()), ("adamole", Limited())):
        made = lb.recipe(name).but("other", combine=combine)
        model = lb.adapt(nn.Sequential(nn.Linear(4, 6)), made, rank=2)
        with pytest.raises(TypeError, match="weighs the experts of"):
            model(torch.ones(2, 4))


def test_labels_that_do_not_fit():
    model, _ = one("moa")
    cases = [
        (torch.ones(3), TypeError, "integer tensor"),
        (torch.ones(3, 2).long(), TypeError, "integer tensor"),
        (torch.tensor([0, 4]), ValueError, "between 0 and 3"),
        (torch.tensor([-1]), ValueError, "between 0 and 3"),
        (torch.tensor([], dtype=torch.long), ValueError, "between 0 and 3"),
    ]
    for labels, error, message in cases:
        with pytest.raises(error, match=message), lb.labelled(model, labels):
            pass
    assert "labels" not in vars(lb.adapted(model)["0"].adapter("default"))
    plain = lb.adapt(nn.Sequential(nn.Linear(4, 6)), "moe-lora", rank=2)
    with pytest.raises(ValueError, match="no active adapter of the model looks at labels"), lb.labelled(plain, labels):
        pass


MOVING = [
    "moelora",
    "loramoe",
    "moa",
    "adamole",
    "mola",
    "multilora",
    "sira",
    "mtlora",
    "mlore",
    "llava-mole",
    "adamix",
]


@pytest.mark.parametrize("name", [*MOVING, "adamix"])
def test_every_expert_and_every_router_moves(name, mlp, task):
    lb.adapt(mlp, name, rank=2, rank_pattern={"down": 4} if name == "mola" else None)
    before = {n: p.detach().clone() for n, p in mlp.named_parameters() if p.requires_grad}
    opt = lb.optimizer(mlp, lr=1e-2)
    told = name in ("loramoe", "moa", "mtlora")
    routed = name not in ("multilora", "mtlora", "adamix")
    for _ in range(30):
        opt.zero_grad()
        with ExitStack() as stack:
            if told:
                stack.enter_context(lb.labelled(mlp, torch.arange(32) % (4 if name == "moa" else 2)))
            balance = stack.enter_context(lb.balancing(mlp)) if routed else None
            loss = ((mlp(task[0]) - task[1]) ** 2).mean()
            (loss if balance is None else loss + 0.1 * balance.total()).backward()
        opt.step()
    for path, p in mlp.named_parameters():
        if p.requires_grad:
            each = (p.detach() - before[path]).flatten(1).norm(dim=1) if p.ndim == 3 else p.detach() - before[path]
            assert (each != 0).all(), path
