"""Folders in PEFT's format that are refused, with the model untouched, and adapters that it cannot say."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import llm_bridge as lb
from llm_bridge.files import read_json, read_tensors, write_json, write_tensors
from lowrank_sp.parameterizations import Kronecker, VeRA

from .test_peft import LORA, shake


@pytest.fixture
def written(mlp, tmp_path):
    """A folder that we wrote, and a fresh base."""
    fresh = copy.deepcopy(mlp)
    lb.adapt(mlp, "lora", rank=3, targets=["up"], also_train=["head"])
    shake(p for p in mlp.parameters() if p.requires_grad)
    lb.save_peft(mlp, tmp_path)
    return tmp_path, fresh


def refused(model: nn.Module, path, match: str, **settings) -> None:
    """Loading fails with this message and changes nothing."""
    before, names = copy.deepcopy(model.state_dict()), list(lb.setups(model))
    with pytest.raises(ValueError, match=match):
        lb.load_peft(model, path, **settings)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert list(lb.setups(model)) == names


def reconfigured(path, **changes) -> None:
    config = read_json(path / "adapter_config.json")
    write_json(path / "adapter_config.json", config | changes)


SETTINGS = {
    "method": ({"peft_type": "XLORA"}, "peft_type='XLORA'; supported: LORA, "),
    "rank": ({"r": 5}, r"the settings give layers\.0\.up the rank 5, and its tensors have 3"),
    "residual": ({"init_lora_weights": "pissa_niter_4"}, "relative to a changed base weight"),
    "magnitude": ({"use_dora": True}, "use_dora=True and the tensors of .* do not go together"),
    "bias": ({"lora_bias": True}, "sets lora_bias=True, which may change what the adapter computes"),
    "tokens": ({"trainable_token_indices": [1, 2]}, "sets trainable_token_indices"),
    "future": ({"use_magic": 3}, r"use_magic=3, .*ignore=\['use_magic'\]"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_mean_something_else_are_refused(written, case):
    path, fresh = written
    changes, match = SETTINGS[case]
    reconfigured(path, **changes)
    refused(fresh, path, match)


def test_settings_that_are_off_or_ignored(written):
    path, fresh = written
    reconfigured(path, use_magic=False, more_magic=None, layers={}, inference_mode=True)
    lb.load_peft(copy.deepcopy(fresh), path)
    reconfigured(path, use_magic=3)
    with pytest.warns(UserWarning, match="use_magic=3 .* is ignored"):
        lb.load_peft(fresh, path, ignore=["use_magic"])


KEY = "base_model.model.layers.0.up.lora_A.weight"
TENSORS = {
    "missing": (lambda t: t.pop(KEY), r"the adapter of layers\.0\.up has no lora_A\.weight; it has lora_B\.weight"),
    "unknown": (lambda t: t.update({"base_model.model.tail.weight": torch.ones(2)}), "unknown tensors, such as tail"),
    "token": (lambda t: t.update({f"{KEY}.token_adapter.delta": torch.ones(2)}), "unknown tensors"),
    "shape": (lambda t: t.update({KEY: t[KEY][:, :5]}), r"right of layers\.0\.up has the shape \(5, 3\) in the file"),
    "head": (lambda t: t.update({"base_model.model.head.bias": torch.ones(9)}), r"head.bias .* shape \(9,\)"),
    "nan": (lambda t: t[KEY].fill_(float("nan")), "NaN or infinity"),
    "layer": (lambda t: t.update({KEY.replace("0", "7"): t[KEY]}), r"has adapters for layers\.7\.up, which"),
    "none": (lambda t: [t.pop(key) for key in list(t) if "lora" in key], "there are no tensors of LORA in the file"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit_are_refused(written, case):
    path, fresh = written
    change, match = TENSORS[case]
    tensors = read_tensors(path / "adapter_model.safetensors")
    change(tensors)
    write_tensors(path / "adapter_model.safetensors", tensors, {})
    refused(fresh, path, match)


def test_files_that_are_missing_or_broken(written):
    path, fresh = written
    file = path / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-4])
    refused(fresh, path, "truncated, corrupt or no safetensors file")
    file.rename(path / "adapter_model.bin")
    refused(fresh, path, "a pickle, which can execute anything")
    (path / "adapter_model.bin").unlink()
    refused(fresh, path, "no file adapter_model.safetensors")
    (path / "adapter_config.json").write_text('{"peft_type"')
    refused(fresh, path, "no JSON file")
    (path / "adapter_config.json").write_text("[]")
    refused(fresh, path, "peft_type=None")
    (path / "adapter_config.json").unlink()
    refused(fresh, path, "no file adapter_config.json")


def test_names_recipes_and_merged_models(written):
    path, fresh = written
    refused(fresh, path, "name must be", name="a.b")
    refused(fresh, path, "recipe 'moslora' has the arrays", recipe=lb.recipe("moslora"))
    lb.load_peft(fresh, path, recipe=lb.recipe("reflora"))
    assert lb.setups(fresh)["default"].recipe.name == "reflora"
    refused(fresh, path, "has an adapter 'default' already")
    lb.merge(fresh)
    refused(fresh, path, "unmerge", name="b")
    with pytest.raises(ValueError, match="unmerge"):
        lb.save_peft(fresh, path)


def test_what_peft_cannot_say_is_not_written(mlp, tmp_path):
    lb.adapt(mlp, "polar", rank=2, name="polar")
    shake(p for p in mlp.parameters() if p.requires_grad)
    with pytest.raises(ValueError, match="no method for PoLAR with Additive; export_lora"):
        lb.save_peft(mlp, tmp_path, name="polar")
    with pytest.raises(ValueError, match="no adapter 'b'"):
        lb.save_peft(mlp, tmp_path, name="b")
    grid = LORA.but("grid", form=Kronecker.of(1, 3))
    lb.adapt(mlp, grid, rank=1, targets=["0.up"], name="grid")
    with pytest.raises(ValueError, match="no decompose_factor of PEFT"):
        lb.save_peft(mlp, tmp_path, name="grid")
    lb.adapt(mlp, LORA.but("vera", form=VeRA), rank=2, name="vera")
    with pytest.raises(ValueError, match="do not share their fixed matrices"):
        lb.save_peft(mlp, tmp_path, name="vera")
    assert not list(tmp_path.iterdir())


def test_target_modules_select_exactly_the_layers(mlp, tmp_path):
    lb.adapt(mlp, "lora", rank=2, targets=["up"])
    lb.save_peft(mlp, tmp_path)
    assert read_json(tmp_path / "adapter_config.json")["target_modules"] == ["up"]
    lb.unload(mlp)
    lb.adapt(mlp, "lora", rank=2, targets=["layers.0.up", "layers.1.down"])
    lb.save_peft(mlp, tmp_path)
    assert read_json(tmp_path / "adapter_config.json")["target_modules"] == ["layers.0.up", "layers.1.down"]
    nested = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.ModuleDict({"a": nn.Linear(3, 3)})})
    lb.adapt(nested, "lora", rank=2, targets=lambda name, module: name == "a")
    lb.save_peft(nested, tmp_path)
    assert read_json(tmp_path / "adapter_config.json")["target_modules"] == "a"


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # PEFT's, about tied weights and its age
@pytest.mark.parametrize("saved", [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"]])
def test_a_tied_weight_that_peft_trained_apart(llama, saved, tmp_path):
    """PEFT unties what it copies; one parameter cannot hold both, and two parameters can."""
    import peft

    model, tokens = llama
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=saved)
    theirs = peft.get_peft_model(copy.deepcopy(model), config).eval()
    shake(p for p in theirs.parameters() if p.requires_grad)
    theirs.save_pretrained(tmp_path)
    refused(model, tmp_path, r"was trained apart from lm_head|was trained apart from model.embed_tokens")
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    lb.load_peft(model, tmp_path)
    assert torch.allclose(model(tokens).logits, theirs(tokens).logits, atol=1e-6)


def test_models_that_peft_has_wrapped(mlp):
    import peft

    theirs = peft.get_peft_model(mlp, peft.LoraConfig(r=2, target_modules=["up"]))
    for wrapped in (theirs, mlp):
        with pytest.raises(TypeError, match=r"layers\.0\.up is a layer of PEFT.*merge_and_unload.*load_peft"):
            lb.adapt(wrapped, "lora", rank=2)
    lb.adapt(theirs.merge_and_unload(), "lora", rank=2)
