"""Losses beside mixtures: contrasts, types, domains and even use, pair by pair and sample by sample."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import llm_bridge as lb
from llm_bridge.experts import Contrastive, Even, Hard, LowRankExperts, Soft, Supervised, Top, Typed

from .test_experts import chosen, drawn, softmax
from .test_mixtures import inputs, one


@pytest.mark.covers("E01")
def test_the_contrast_of_outputs_pair_by_pair():
    point = drawn(LowRankExperts.of(3, Top(2), Contrastive(0.5, tokens=4)))
    x = inputs(2, 4, 4)
    kept = x.flatten(0, 1)[::2].numpy()
    outputs = [
        (e, b.numpy() @ a.numpy().T @ row)
        for row in kept
        for e, (b, a) in enumerate(zip(point.left, point.right, strict=True))
        if chosen(point, row)[e] > 0
    ]
    outputs = [(e, v / np.linalg.norm(v)) for e, v in outputs]
    terms = []
    for i, (e, q) in enumerate(outputs):
        negatives = [np.exp(q @ k / 0.5) for f, k in outputs if f != e]
        for j, (f, k) in enumerate(outputs):
            if f == e and i != j:
                positive = np.exp(q @ k / 0.5)
                terms.append(-np.log(positive / (positive + sum(negatives))))
    assert np.isclose(point.balance(x).item(), np.mean(terms))


@pytest.mark.covers("E01")
def test_contrast_moves_experts_apart_and_is_finite_at_the_start():
    model = lb.adapt(nn.Sequential(nn.Linear(4, 6)), "moelora", rank=2)
    x = inputs(16, 4).float()
    with lb.balancing(model) as balance:
        model(x)
        balance.total().backward()
    arrays = list(lb.adapted(model)["0"].adapter("default").parameters())
    assert all(a.grad is None or torch.isfinite(a.grad).all() for a in arrays)
    model, adapter = one("moelora")
    losses = []
    opt = torch.optim.Adam(adapter.parameters(), lr=1e-2)
    for _ in range(20):
        opt.zero_grad()
        with lb.balancing(model) as balance:
            model(x.double())
            balance.total().backward()
        losses.append(balance.total().item())
        opt.step()
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.covers("E02", "T54")
def test_the_loss_of_types_moves_weights_to_experts_of_the_type():
    loss, labels = Typed(0.1), torch.tensor([0, 1, 1])
    matches = torch.tensor([0, 0, 1, 1]) == labels[:, None]

    def of(mass, delta):
        evened = torch.where(matches, 1 - delta, 1 + delta) * mass
        return ((evened - evened.mean()) ** 2).mean() / evened.mean()

    uniform = torch.full((3, 1, 4), 0.25, dtype=torch.float64, requires_grad=True)
    ours = loss(SimpleNamespace(weights=lambda x: uniform, count=4), inputs(3, 1, 2), labels)
    assert torch.isclose(ours, of(uniform[:, 0].float(), 0.1))
    (gradient,) = torch.autograd.grad(ours, uniform)
    assert (gradient[:, 0][matches] < 0).all()
    assert (gradient[:, 0][~matches] > 0).all()
    mass = uniform.detach()[:, 0].requires_grad_()
    (printed,) = torch.autograd.grad(of(mass, -0.1), mass)  # the signs of the source
    assert (printed[matches] > 0).all()
    assert (printed[~matches] < 0).all()


@pytest.mark.covers("E02")
def test_masses_of_types_are_those_of_samples():
    point = drawn(LowRankExperts.of(4, Top(2), Typed(0.2)))
    x, labels = inputs(3, 5, 4), torch.tensor([1, 0, 1])
    mass = np.array([sum(chosen(point, row) for row in sample) for sample in x.numpy()])
    own = np.array([[(e >= 2) == label for e in range(4)] for label in labels.tolist()])
    z = np.where(own, 0.8, 1.2) * mass
    assert np.isclose(point.balance(x, labels).item(), z.var() / z.mean())


def test_experts_used_evenly_where_all_act():
    point = drawn(LowRankExperts.of(3, Soft(), Even()))
    x = inputs(6, 4)
    mean = np.mean([softmax(row @ point.router.numpy()) for row in x.numpy()], 0)
    assert np.isclose(point.balance(x).item(), -np.log(3 * mean).mean())


def test_losses_of_bad_settings():
    for bad in (lambda: Contrastive(0.0), lambda: Contrastive(tokens=1), lambda: Typed(1.0), lambda: Typed(types=0)):
        with pytest.raises(ValueError, match="must"):
            bad()


@pytest.mark.covers("E03")
def test_routers_learn_domains_and_experts_learn_theirs():
    """Domains differ in their inputs and in what is asked for; afterwards nobody names them."""
    torch.manual_seed(0)
    domains = torch.arange(12) % 3
    x = torch.randn(12, 5, 8) + 2 * torch.eye(8)[domains][:, None]
    y = x @ torch.randn(3, 8, 4)[domains]
    model = lb.adapt(nn.Sequential(nn.Linear(8, 4)), "moa", rank=4)
    opt = lb.optimizer(model, lr=3e-2)
    for _ in range(150):
        opt.zero_grad()
        with lb.labelled(model, domains), lb.balancing(model) as balance:
            (((model(x) - y) ** 2).mean() + balance.total()).backward()
        opt.step()
    named = balance.total().item()
    with torch.no_grad():
        free = ((model(x) - y) ** 2).mean()
        with lb.labelled(model, domains):
            told = ((model(x) - y) ** 2).mean()
        with lb.labelled(model, (domains + 1) % 3):
            wrong = ((model(x) - y) ** 2).mean()
    assert named < 0.2
    assert torch.allclose(free, told)
    assert told < 0.2 * wrong


@pytest.mark.covers("E03")
def test_cross_entropy_of_domains():
    point = drawn(LowRankExperts.of(3, Hard(), Supervised()))
    x, labels = inputs(4, 5, 4), torch.tensor([0, 2, 1, 1])
    terms = [-np.log(softmax(s.mean(0) @ point.router.numpy())[k]) for s, k in zip(x.numpy(), labels, strict=True)]
    assert np.isclose(point.balance(x, labels).item(), np.mean(terms))
    with pytest.raises(ValueError, match="needs the label of every sample"):
        point.balance(x)


@pytest.mark.parametrize(("name", "array"), [("moelora", "left"), ("loramoe", "router"), ("moa", "router")])
def test_losses_beside_experts_reach_the_optimizer(name, array, mlp, task):
    lb.adapt(mlp, name, rank=2)
    with torch.no_grad():
        for p in mlp.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(p))))
    opt = lb.optimizer(mlp, lr=1e-2)
    before = {path: getattr(layer.adapter("default"), array).clone() for path, layer in lb.adapted(mlp).items()}
    looks = lb.labelled(mlp, torch.arange(32) % 2) if name != "moelora" else lb.balancing(mlp)
    with looks, lb.balancing(mlp) as balance:
        mlp(task[0])
        balance.total().backward()
    opt.step()
    for path, layer in lb.adapted(mlp).items():
        assert not torch.equal(getattr(layer.adapter("default"), array), before[path])
