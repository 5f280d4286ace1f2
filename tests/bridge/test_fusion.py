"""Parallel LoRAs and banks of trained ones: scaled sums, averages of random experts, gates over frozen adapters."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from torch import nn

import llm_bridge as lb
from llm_bridge.experts import AveragedPairs, OutputExperts, ScaledPairs
from lowrank_sp.parameterizations import Hadamard

from .test_checkpoint import X, output, shake, trained
from .test_experts import drawn
from .test_mixtures import inputs, one, update


# parallel ---------------------------------------------------------------------------------------------------------
@pytest.mark.covers("E09")
def test_a_sum_with_scales():
    point = drawn(ScaledPairs.of(3))
    terms = zip(point.scales, point.left, point.right, strict=True)
    expected = np.sum([s.item() * b.numpy() @ a.numpy().T for s, b, a in terms], 0)
    assert np.allclose(point.dense().numpy(), expected)
    assert np.allclose(point.apply(inputs(5, 4)).numpy(), inputs(5, 4).numpy() @ expected.T)
    rows, cols = torch.tensor([0, 5]), torch.tensor([3, 1])
    assert np.allclose(point.entries(rows, cols).numpy(), expected[[0, 5], [3, 1]])
    assert ScaledPairs.of(3).parameter_count((6, 4), 2) == 3 * 2 * 10 + 3
    assert (point.rank, ScaledPairs.of(2).parameter_count((6, 4), 1)) == (4, 22)


@pytest.mark.covers("E09")
def test_only_scales_vanish_at_the_start():
    model = lb.adapt(nn.Sequential(nn.Linear(8, 6)), "multilora", rank=2)
    adapter: Any = lb.adapted(model)["0"].adapter("default")
    assert adapter.scales.count_nonzero() == 0
    assert adapter.left.count_nonzero() == adapter.left.numel()
    model(torch.ones(2, 8)).square().sum().backward()
    assert all(g != 0 for g in adapter.scales.grad)


@pytest.mark.covers("E19")
def test_random_pairs_until_they_are_averaged():
    model, adapter = one("adamix", AveragedPairs.of(3))
    x = inputs(7, 4)
    pairs = {(i, j): x @ (b @ a.mT).mT for i, b in enumerate(adapter.left) for j, a in enumerate(adapter.right)}
    torch.manual_seed(0)
    seen = set()
    for _ in range(80):
        got = update(model, x)
        seen |= {next(key for key, value in pairs.items() if torch.allclose(got, value))}
    assert len(seen) == 9
    mean = adapter.left.sum(0) @ adapter.right.sum(0).mT / 9
    model.eval()
    assert torch.allclose(update(model, x), x @ mean.mT)
    before = model[0].base(x)
    lb.merge(model)
    assert torch.allclose(model(x), before + x @ mean.mT)
    assert AveragedPairs.of(3).parameter_count((6, 4), 2) == 3 * 2 * 10


@pytest.mark.covers("E19")
def test_consistency_of_two_passes():
    a, b = inputs(5, 4), inputs(5, 4, seed=2)
    p, q = softmax(a.numpy(), -1), softmax(b.numpy(), -1)
    expected = (rel_entr(p, q).sum(-1) + rel_entr(q, p).sum(-1)).mean() / 2
    assert np.isclose(lb.consistency(a, b).item(), expected)
    assert lb.consistency(a, a).item() == 0


# banks ------------------------------------------------------------------------------------------------------------
def several(model):
    """Three trained adapters of other ranks, scales, starts and layers, and their updates by path."""
    trained(model, "lora", name="a", alpha=5.0, also_train=[])
    trained(model, "pissa", name="b", rank=2, targets=["up", "head"], also_train=[])
    trained(model, "rslora", name="c", rank=4, targets=["down"], also_train=[])
    layers = lb.adapted(model).items()
    return {path: {n: layer.adapter(n).update().detach() for n in layer.names()} for path, layer in layers}


@pytest.mark.covers("E17")
def test_a_bank_starts_with_equal_weights_and_learns_them(mlp, task):
    updates = several(mlp)
    lb.fuse(mlp, ["a", "b", "c"])
    moved = lb.unload(copy.deepcopy(mlp))
    with torch.no_grad():
        for path, own in updates.items():
            moved.get_submodule(path).weight += sum(own.values()) / 3
    assert torch.allclose(output(mlp), output(moved), atol=1e-5)
    frozen = {p: t.clone() for p, t in mlp.state_dict().items() if not p.endswith("fused.router")}
    trains = [p for p in mlp.parameters() if p.requires_grad]
    assert [n for n, p in mlp.named_parameters() if p.requires_grad and not n.endswith("fused.router")] == []
    assert sum(p.numel() for p in trains) == 3 * (12 * 3 + 16 * 2)
    opt, losses = lb.optimizer(mlp, lr=3e-2), []
    for _ in range(40):
        opt.zero_grad()
        loss = ((mlp(task[0]) - task[1]) ** 2).mean()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.equal(mlp.state_dict()[p], t) for p, t in frozen.items())


@pytest.mark.covers("E17")
@pytest.mark.parametrize("made", [lb.gated_fusion, lb.mole])
def test_a_bank_saves_and_loads(made, mlp, tmp_path):
    fresh = copy.deepcopy(mlp)
    several(mlp)
    lb.fuse(mlp, ["a", "b"], made(2), name="bank")
    shake(mlp)
    lb.save(mlp, tmp_path, name="bank")
    with pytest.raises(ValueError, match="pass recipe="):
        lb.load(fresh, tmp_path)
    assert torch.equal(output(lb.load(fresh, tmp_path, recipe=made(2))), output(mlp))
    with lb.balancing(mlp) as balance:
        mlp(X)
        balance.total().backward()
    routers = [p for n, p in mlp.named_parameters() if n.endswith("bank.router")]
    assert all(p.grad is not None and p.grad.norm() > 0 for p in routers)


@pytest.mark.covers("E18")
def test_experts_weighed_by_what_they_return():
    form = OutputExperts.of(3)
    point = drawn(form)
    x = inputs(7, 4).numpy()
    for row, out in zip(x, point.apply(torch.as_tensor(x)).numpy(), strict=True):
        outputs = [b.numpy() @ a.numpy().T @ row for b, a in zip(point.left, point.right, strict=True)]
        scores = sum(o / np.linalg.norm(o) @ r.numpy() for o, r in zip(outputs, point.router, strict=True))
        assert np.allclose(out, sum(w * o for w, o in zip(softmax(scores), outputs, strict=True)))
    assert form.parameter_count((6, 4), 2) == 3 * 2 * 10 + 9 * 6
    still = form(0 * point.left, point.right, point.router)
    assert torch.equal(still.apply(torch.as_tensor(x)), torch.zeros(7, 6).double())


@pytest.mark.covers("E17", "E18")
@pytest.mark.parametrize("made", [lb.gated_fusion, lb.mole])
def test_routers_learn_which_adapter_is_for_which_input(made):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6))
    for name in ("a", "b"):
        shake(lb.adapt(model, "lora", rank=2, name=name), seed=ord(name))
    x = torch.randn(40, 8) + 3 * torch.eye(8)[torch.arange(40) % 2]
    with lb.route(model, ["a", "b"] * 20):
        wanted = model(x).detach()
    lb.fuse(model, ["a", "b"], made(2))
    opt = lb.optimizer(model, lr=3e-2)
    for _ in range(200):
        opt.zero_grad()
        loss = ((model(x) - wanted) ** 2).mean()
        loss.backward()
        opt.step()
    weights = lb.adapted(model)["0"].adapter("fused").point().weights(x)
    assert (weights[::2, 0] > 0.5).float().mean() > 0.9
    assert (weights[1::2, 1] > 0.5).float().mean() > 0.9


def test_what_cannot_be_fused_changes_nothing(mlp):
    several(mlp)
    trained(mlp, "dora", name="d", also_train=[])
    trained(mlp, "lora", name="head")
    trained(mlp, lb.recipe("lora").but("loha", form=Hadamard), rank=2, name="loha", also_train=[])
    before, names = copy.deepcopy(mlp.state_dict()), list(lb.setups(mlp))
    cases = [
        ((["a", "z"],), ValueError, "no adapter 'z'"),
        ((["a", "a"],), ValueError, "list of different adapters"),
        (("a",), ValueError, "list of different adapters"),
        ((["a", "d"],), TypeError, "adds no thin product"),
        ((["a", "loha"],), TypeError, "adds no thin product"),
        ((["a", "head"],), ValueError, "also trains parameters of the model"),
        ((["a", "b"], lb.mole(3)), ValueError, "recipe 'mole-3' is not for 2 adapters"),
        ((["a", "b"], lb.recipe("lora")), ValueError, "recipe 'lora' is not for 2 adapters"),
        ((["a", "b"], None, "c"), ValueError, "has an adapter 'c' already"),
    ]
    for arguments, error, message in cases:
        with pytest.raises(error, match=message):
            lb.fuse(mlp, *arguments)
    assert all(torch.equal(before[k], v) for k, v in mlp.state_dict().items())
    assert list(lb.setups(mlp)) == names
