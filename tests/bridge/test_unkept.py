"""Which outputs nothing keeps for backward, and DoRA that computes those of some layers again."""

from typing import Any

import pytest
import torch
from torch import nn

import llm_bridge as lb
from studies.overhead.models import clone, llama, tokens
from studies.overhead.step import Step

LEAVES = ("q_proj", "k_proj", "o_proj", "down_proj")


@pytest.fixture
def model():
    return llama(size="tiny")


def dora(recompute: Any) -> lb.Recipe:
    return lb.recipe("dora").but("d", combine=lb.MagnitudeDirection(recompute=recompute))


def run(model):
    batch = tokens(model, (2, 8))
    return lambda: model(**batch, use_cache=False)


def bytes_kept(model, recompute) -> int:
    adapted = lb.adapt(clone(model), dora(recompute), rank=2)
    return Step(adapted, tokens(model, (2, 64))).saved()


def test_what_is_found_is_what_saves_memory(model):
    found = lb.unkept(model, run(model))
    assert {path.rsplit(".", 1)[-1] for path in found} == set(LEAVES)
    everything = bytes_kept(model, False)
    for leaf, width in {**dict.fromkeys(LEAVES, 128), "v_proj": 128, "gate_proj": 352, "up_proj": 352}.items():
        outputs = 2 * 2 * 64 * 4 * width  # of two blocks, for 2 x 64 tokens in single precision
        share = (everything - bytes_kept(model, (leaf,))) / outputs
        assert share > 0.9 if leaf in LEAVES else share < 0.1


def test_nothing_of_the_model_changes(model):
    model.train()
    before = {name: (p.clone(), p.requires_grad) for name, p in model.named_parameters()}
    lb.unkept(model, run(model))
    assert all(module.training for module in model.modules())
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name][0])
        assert p.requires_grad == before[name][1]
        assert p.grad is None
    assert not any(m._forward_hooks for m in model.modules())


def test_inputs_of_layers_count_as_kept():
    chain = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    assert lb.unkept(chain, lambda: chain(torch.ones(2, 4))) == ("1",)


def test_a_run_of_nothing_is_refused(model):
    with pytest.raises(ValueError, match="run called none of the layers"):
        lb.unkept(model, lambda: None)


def gradients(model, recompute) -> dict[str, torch.Tensor]:
    adapted = lb.adapt(clone(model).double(), dora(recompute), rank=2, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in adapted.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, dtype=p.dtype, generator=generator))
    adapted(**tokens(adapted, (2, 8)), use_cache=False).loss.backward()
    return {name: p.grad for name, p in adapted.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("recompute", [LEAVES, ("q_proj",), True])
def test_gradients_are_those_of_the_kept_outputs(model, recompute):
    expected, found = gradients(model, False), gradients(model, recompute)
    assert expected.keys() == found.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, atol=1e-9, rtol=1e-7)


def test_the_layers_know_it_also_after_a_file(model, tmp_path):
    made = dora(["o_proj", r".*layers\.0.*q_proj"])
    lb.adapt(model, made, rank=2)
    lb.save(model, tmp_path)
    other: Any = llama(size="tiny")
    lb.load(other, tmp_path, recipe=made)
    for loaded in (model, other):
        combines: dict[str, Any] = {p: layer.adapter("default").combine for p, layer in lb.adapted(loaded).items()}
        again = {path for path, combine in combines.items() if combine.recompute}
        ends = "0.self_attn.o_proj", "1.self_attn.o_proj", "0.self_attn.q_proj"
        assert again == {f"model.layers.{end}" for end in ends}


def test_names_that_fit_no_layer_are_refused(model):
    with pytest.raises(ValueError, match=r"recompute holds 'q_porj'.*such as model\.layers\.0"):
        lb.adapt(model, dora(("o_proj", "q_porj")), rank=2)
    assert not lb.adapted(model)


@pytest.mark.parametrize("names", ["q_proj", (1,), ("q_proj", None)])
def test_names_are_a_tuple_of_strings(names):
    with pytest.raises(TypeError, match="recompute must be a bool or a tuple of names"):
        lb.MagnitudeDirection(recompute=names)
