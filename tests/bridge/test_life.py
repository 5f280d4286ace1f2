"""Several adapters on one model: activation, disabling, mixed batches, merging, dropping."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import llm_bridge as lb


def shake(model: nn.Module, name: str, seed: int = 0) -> None:
    """Random factors, so that the update is not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in lb.adapted(model).values():
            for p in layer.adapter(name).parameters() if name in layer.names() else ():
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))


def two_adapters(model: nn.Module, first: str = "lora", second: str = "moslora") -> nn.Module:
    lb.adapt(model, first, rank=2, name="a")
    lb.adapt(model, second, rank=3, targets=["up", "head"], name="b")
    shake(model, "a", 1)
    shake(model, "b", 2)
    return model


def test_several_additive_adapters_add_up(mlp, task):
    x = task[0]
    two_adapters(mlp)
    layer, plain = mlp.layers[0]["up"], mlp.layers[0]["up"].base(x)
    lb.activate(mlp, "a")
    a = layer(x) - plain
    lb.activate(mlp, "b")
    b = layer(x) - plain
    lb.activate(mlp, "a", "b")
    assert torch.allclose(layer(x) - plain, a + b, atol=1e-6)


def test_adapters_that_do_not_add_up_are_refused(mlp):
    two_adapters(mlp, "lora", "dora")
    with pytest.raises(ValueError, match="do not add up"):
        lb.activate(mlp, "a", "b")
    with pytest.raises(ValueError, match="no adapter 'c'; it has 'a', 'b'"):
        lb.activate(mlp, "c")


@pytest.mark.parametrize("second", ["moslora", "dora", "hira", "pissa"])
def test_a_mixed_batch_is_each_sample_through_its_own(mlp, task, second):
    x = task[0][:6]
    two_adapters(mlp, "lora", second)
    names = ["a", None, "b", "b", "a", None]
    with lb.route(mlp, names):
        mixed = mlp(x)
    for i, name in enumerate(names):
        lb.activate(mlp, *([] if name is None else [name]))
        assert torch.allclose(mlp(x[i : i + 1])[0], mixed[i], atol=1e-6)


def test_a_mixed_batch_of_another_size_is_refused(mlp, task):
    two_adapters(mlp)
    with lb.route(mlp, ["a", "b"]), pytest.raises(ValueError, match="32 samples, but 2 adapters"):
        mlp(task[0])
    mlp(task[0])


def test_merging_needs_to_be_undone_first(mlp):
    two_adapters(mlp)
    lb.merge(mlp)
    for forbidden in (lambda: lb.merge(mlp), lambda: lb.activate(mlp, "a"), lambda: lb.drop(mlp, "a")):
        with pytest.raises(ValueError, match="unmerge"):
            forbidden()
    lb.unmerge(mlp)
    with pytest.raises(ValueError, match="no adapter is merged"):
        lb.unmerge(mlp)


def test_merging_refuses_what_is_not_finite(mlp, task):
    lb.adapt(mlp, "lora", rank=2)
    with torch.no_grad():
        mlp.head.adapter("default").left.fill_(float("nan"))
    weight = mlp.head.base.weight
    with pytest.raises(ValueError, match="head is not finite; nothing was changed"):
        lb.merge(mlp)
    assert mlp.head.base.weight is weight
    assert not mlp.head.merged


def test_merging_takes_finite_weights_whose_sum_is_not(mlp):
    with torch.no_grad():
        mlp.head.weight.fill_(3e38)
    lb.adapt(mlp, "lora", rank=2)
    assert lb.merge(mlp).worst == 0.0
    assert mlp.head.merged


def test_merging_in_half_precision_reports_what_it_lost(mlp, task):
    mlp.to(torch.bfloat16)
    original = copy.deepcopy(mlp.state_dict())
    lb.adapt(mlp, "lora", rank=2)
    shake(mlp, "default")
    report = lb.merge(mlp)
    assert 1e-4 < report.worst < 0.1
    assert "merged 5 layers" in str(report)
    lb.unmerge(mlp)
    lb.unload(mlp)
    assert all(torch.equal(original[k], v) for k, v in mlp.state_dict().items())


@pytest.mark.covers("A07")
def test_unloading_a_merged_model_keeps_the_update(mlp, task):
    lb.adapt(mlp, "lora", rank=2)
    shake(mlp, "default")
    after = mlp(task[0])
    lb.merge(mlp)
    lb.unload(mlp)
    assert torch.allclose(mlp(task[0]), after, atol=1e-5)
    assert type(mlp.head) is nn.Linear


def test_dropping_restores_layers_without_adapters(mlp, task):
    before = mlp(task[0])
    two_adapters(mlp)
    lb.drop(mlp, "a")
    assert type(mlp.layers[0]["down"]) is nn.Linear
    lb.drop(mlp, "b")
    assert not lb.adapted(mlp)
    assert torch.equal(mlp(task[0]), before)


def test_dropping_the_only_adapter_restores_what_it_trained_in_full(mlp, task):
    before = mlp(task[0])
    lb.adapt(mlp, "lora", rank=2, targets=["up"], also_train=["head"])
    shake(mlp, "default")
    with torch.no_grad():
        mlp.head.weight += 1.0
    lb.drop(mlp, "default")
    assert torch.equal(mlp(task[0]), before)


def test_merging_nothing_is_an_error(mlp):
    lb.adapt(mlp, "lora", rank=2)
    lb.activate(mlp)
    with pytest.raises(ValueError, match="no adapter is active; activate one"):
        lb.merge(mlp)


def test_what_trains_in_full_belongs_to_its_adapter(mlp, task):
    original = mlp.head.weight.detach().clone()
    lb.adapt(mlp, "lora", rank=2, targets=["up"], also_train=["head"], name="a")
    with torch.no_grad():
        mlp.head.weight += 1.0
    lb.adapt(mlp, "lora", rank=2, targets=["up"], name="b")
    assert torch.equal(mlp.head.weight, original)
    lb.activate(mlp, "a")
    assert torch.equal(mlp.head.weight, original + 1.0)
    with lb.disable(mlp):
        assert torch.equal(mlp.head.weight, original)
    assert torch.equal(mlp.head.weight, original + 1.0)
    with pytest.raises(ValueError, match="also trains parameters"), lb.route(mlp, ["a"] * 32):
        pass


def test_disabling_survives_an_error(mlp, task):
    lb.adapt(mlp, "lora", rank=2)
    with pytest.raises(RuntimeError), lb.disable(mlp):
        raise RuntimeError
    assert mlp.head.active == ("default",)
    assert mlp.head.adapter("default").left.requires_grad


def test_the_summary_says_which_layers_did_not_move(mlp, task):
    lb.adapt(mlp, "lora", rank=2)
    assert len(lb.summary(mlp).unmoved) == 5
    with torch.no_grad():
        mlp.head.adapter("default").left += 0.1
    found = lb.summary(mlp)
    assert len(found.unmoved) == 4
    assert "4 of 5 adapters have not moved" in str(found)
    update = mlp.head.adapter("default").update().detach().numpy()
    site = next(s for s in found.sites if s.path == "head")
    values = np.linalg.svd(update, compute_uv=False)
    assert site.norm == pytest.approx(np.linalg.norm(update), rel=1e-5)
    assert site.stable_rank == pytest.approx((values**2).sum() / values[0] ** 2, rel=1e-5)


def test_copies_and_state_dicts_work(mlp, task):
    lb.adapt(mlp, "dora", rank=2)
    shake(mlp, "default")
    twin = copy.deepcopy(mlp)
    assert torch.equal(twin(task[0]), mlp(task[0]))
    lb.drop(twin, "default")
    assert lb.adapted(mlp)


def test_a_model_inside_of_another_has_the_adapters(mlp, task):
    """What wraps a model changes all paths, so that files of it would fit nothing."""
    lb.adapt(mlp, "lora", rank=2)
    compiled, whole = torch.compile(mlp, backend="eager"), nn.ModuleDict({"part": mlp})
    for needs in (lb.summary, lb.unload, lambda m: lb.save(m, "nowhere"), lambda m: lb.adapt(m, "lora", name="b")):
        with pytest.raises(ValueError, match=r"the adapters are in model\._orig_mod; pass that"):
            needs(compiled)
        with pytest.raises(ValueError, match=r"the adapters are in model\.part; pass that"):
            needs(whole)
    assert list(lb.setups(mlp)) == ["default"]
