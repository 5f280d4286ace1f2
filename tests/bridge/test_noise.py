"""Noise in training: what it does to an update, and that evaluation and merging never see it."""

from typing import Any

import pytest
import torch
from torch import nn

import llm_bridge as lb

LORA = lb.recipe("lora")
RANK = LORA.but("rank noise", noise=lb.RankDropout)
MODULE = LORA.but("module noise", noise=lb.ModuleDropout)


def adapted(recipe, dropout, rank=4) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5)).double()
    lb.adapt(model, recipe, rank=rank, dropout=dropout, targets=["0"], dtype=torch.float64)
    adapter = lb.adapted(model)["0"].adapter("default")
    with torch.no_grad():
        adapter.left.normal_()
    return model.train(), adapter, torch.randn(7, 6, dtype=torch.float64)


@pytest.mark.covers("P09")
@pytest.mark.parametrize("combine", [lb.Additive(), lb.Formed(), lb.TimesBase(), lb.MagnitudeDirection(recompute=True)])
def test_rank_dropout_removes_the_same_components_for_all_tokens(combine):
    model, adapter, x = adapted(RANK.but("r", combine=combine), 0.5)
    base = model[0].base
    left, right = adapter.point().product()
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        out = model(x)
        keep = None
        for pattern in range(16):
            bits = torch.tensor([(pattern >> k) & 1 for k in range(4)], dtype=torch.float64)
            weight = combine.meet(base.weight, 2 * (left * bits) @ right.mT, {"magnitude": base.weight.norm(dim=1)})
            if isinstance(combine, lb.MagnitudeDirection):
                # The norm is that of the update without noise, as the magnitude was trained with.
                ratio = base.weight.norm(dim=1) / (base.weight + left @ right.mT).norm(dim=1)
                weight = ratio[:, None] * (base.weight + 2 * (left * bits) @ right.mT)
            if torch.allclose(out, x @ weight.mT + base.bias):
                keep = pattern
        assert keep is not None
        seen.add(keep)
    assert len(seen) > 5


def test_module_dropout_takes_all_or_nothing():
    model, _, x = adapted(MODULE, 0.25)
    model.requires_grad_(False)
    base = model[0].base(x)
    model.eval()
    update = model(x) - base
    model.train()
    torch.manual_seed(0)
    gates = []
    for _ in range(400):
        change = model(x) - base
        gate = float((change * update).sum() / update.square().sum())
        torch.testing.assert_close(change, gate * update)
        gates.append(gate)
    assert {round(g, 6) for g in gates} == {0.0, round(1 / 0.75, 6)}
    assert abs(sum(gates) / 400 - 1) < 0.15


@pytest.mark.parametrize("recipe", [LORA, RANK, MODULE])
def test_no_noise_in_evaluation_nor_in_the_merged_weight(recipe):
    model, _, x = adapted(recipe, 0.5)
    with_noise = [model(x) for _ in range(20)]
    assert any(not torch.equal(with_noise[0], other) for other in with_noise)
    model.eval()
    quiet = model(x)
    assert torch.equal(model(x), quiet)
    lb.merge(model.train())
    torch.testing.assert_close(model(x), quiet)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_rates_outside_the_unit_interval_are_refused(rate):
    with pytest.raises(ValueError, match="dropout must lie in"):
        adapted(LORA, rate)


def test_query_key_and_value_share_a_mask():
    torch.manual_seed(0)
    model: Any = nn.ModuleDict({name: nn.Linear(40, 40) for name in ("q", "k", "v", "o")})
    lb.adapt(model, dropout=0.5, rank=40, targets=["q", "k", "v", "o"])
    model.train()
    with torch.no_grad():
        for layer in lb.adapted(model).values():
            adapter = layer.adapter("default")
            for factor in (adapter.left, adapter.right):
                factor.copy_(torch.eye(40))
    x = torch.randn(9, 40)
    masks = [model[name](x) - model[name].base(x) for name in ("q", "k", "v")]
    zeros = [mask.abs() < 1e-5 for mask in masks]
    assert torch.equal(zeros[0], zeros[1])
    assert torch.equal(zeros[0], zeros[2])
    other = (model["o"](x.clone()) - model["o"].base(x)).abs() < 1e-5
    assert not torch.equal(zeros[0], other)
