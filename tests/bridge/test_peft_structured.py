"""Rotations, normalized directions and vector banks against PEFT: equal outputs at equal factors, both ways."""

from __future__ import annotations

import copy

import pytest
import torch

import llm_bridge as lb
from llm_bridge.bank import VectorBank
from llm_bridge.recipe import everywhere
from llm_bridge.sizes import block_side
from lowrank_sp.parameterizations import Butterfly

from .conftest import Mlp
from .test_peft import output, same, shake

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting boft_n_butterfly_factor to 1:UserWarning"),  # without a compiler
    pytest.mark.filterwarnings("ignore:Failed to load the CUDA extension:UserWarning"),
    pytest.mark.filterwarnings("ignore:The symmetric initialization can NOT be performed:UserWarning"),
]
X = torch.randn(5, 12, generator=torch.Generator().manual_seed(3))
TARGETS = ["up", "down"]
FROM_PEFT = {
    "oft": ("OFTConfig", {"oft_block_size": 4, "use_cayley_neumann": False}),
    "boft": ("BOFTConfig", {"boft_block_size": 4}),
    "hra": ("HRAConfig", {"r": 4}),
    "hra-odd": ("HRAConfig", {"r": 3}),
    "delora": ("DeloraConfig", {"r": 3}),
    "vb-lora": ("VBLoRAConfig", {"r": 2, "num_vectors": 10, "vector_length": 4}),
    "randlora": ("RandLoraConfig", {"r": 5, "randlora_alpha": 7, "save_projection": True}),
    "miss": ("MissConfig", {"r": 5}),
}


def base() -> Mlp:
    torch.manual_seed(0)
    return Mlp().eval()


@pytest.mark.parametrize("name", FROM_PEFT)
def test_what_peft_wrote_computes_the_same_here(name, tmp_path):
    import peft

    made, settings = FROM_PEFT[name]
    model = base()
    theirs = peft.get_peft_model(copy.deepcopy(model), getattr(peft, made)(target_modules=TARGETS, **settings)).eval()
    shake(p for p in theirs.parameters() if p.requires_grad)
    theirs.save_pretrained(tmp_path)
    expected, fresh = output(theirs, X), copy.deepcopy(model)
    assert not same(expected, output(model, X))
    lb.load_peft(model, tmp_path)
    assert same(output(model, X), expected)
    lb.save_peft(model, tmp_path / "again")
    back = peft.PeftModel.from_pretrained(fresh, str(tmp_path / "again")).eval()
    assert same(output(back, X), expected)
    lb.merge(model)
    assert same(output(model, X), expected)


OWN = {
    "oft": lb.recipe("oft"),
    "boft": lb.recipe("boft").but("boft-one", form=Butterfly.of(1), size=block_side),
    "boft-scaled": lb.recipe("boft-scaled").but("boft-one", form=Butterfly.of(1), size=block_side),
    "hra": lb.recipe("hra"),
    "randlora": lb.recipe("randlora"),
    "miss": lb.recipe("miss"),
    "vb-lora": lb.recipe("vb-lora").but(
        "bank",
        form=VectorBank.of(10, 4),
        shares=(("bank", everywhere),),
        init=lb.starts.ByArray((("bank", lb.starts.Normal()),)),
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_what_we_write_computes_the_same_in_peft(name, tmp_path):
    import peft

    model = base()
    fresh = copy.deepcopy(model)
    lb.adapt(model, OWN[name], rank=4, targets=TARGETS)
    shake(p for p in model.parameters() if p.requires_grad)
    expected = output(model, X)
    assert not same(expected, output(fresh, X))
    lb.save_peft(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(fresh), str(tmp_path)).eval()
    assert same(output(theirs, X), expected)
    lb.load_peft(fresh, tmp_path)
    assert same(output(fresh, X), expected)


def test_what_cannot_be_written_is_refused(tmp_path):
    for name, message in {"delora": "PEFT has no method for DeLoRA", "ether+": "PEFT has no method"}.items():
        model = lb.adapt(base(), name, rank=2)
        with pytest.raises(ValueError, match=message):
            lb.save_peft(model, tmp_path)
    model = lb.adapt(base(), "hra", rank=2, rank_pattern={"0.up": 4})
    with pytest.raises(ValueError, match=r"HRA of PEFT has one size for all layers, got \[2, 4\]"):
        lb.save_peft(model, tmp_path)


@pytest.mark.parametrize("name", ["randlora", "miss"])
def test_square_layers(name, tmp_path):
    """There a sum of scaled bases and its transpose have the same sizes."""
    import peft

    made, settings = FROM_PEFT[name]
    model = torch.nn.Sequential(torch.nn.Linear(12, 12))
    theirs = peft.get_peft_model(copy.deepcopy(model), getattr(peft, made)(target_modules=["0"], **settings)).eval()
    shake(p for p in theirs.parameters() if p.requires_grad)
    theirs.save_pretrained(tmp_path)
    lb.load_peft(model, tmp_path)
    assert same(output(model, X), output(theirs, X))


def test_bases_that_do_not_fit_all_layers_are_refused(tmp_path):
    model = lb.adapt(base(), "randlora", rank=2)
    with pytest.raises(ValueError, match="fits layers with one shorter side only, and head has others"):
        lb.save_peft(model, tmp_path)


def test_a_truncated_series_is_refused(tmp_path):
    import peft

    config = peft.OFTConfig(target_modules=TARGETS, oft_block_size=4)
    peft.get_peft_model(base(), config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="use_cayley_neumann"):
        lb.load_peft(base(), tmp_path)
