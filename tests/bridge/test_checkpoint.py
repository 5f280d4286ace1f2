"""Saving and loading: every recipe, and files that are refused with the model untouched."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import dataclass

import pytest
import torch
from safetensors import safe_open
from torch import nn

import llm_bridge as lb
from llm_bridge import files
from llm_bridge.checkpoint import DOCUMENT, TENSORS
from lowrank_sp.parameterizations import BlockGrid, Kronecker, LowRankPlusSparse

from .conftest import Mlp

X = torch.randn(5, 12, generator=torch.Generator().manual_seed(3))


def shake(model: nn.Module, seed: int = 0) -> None:
    """Move everything that trains, in proportion to its size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                size = float(p.abs().mean()) or 1.0
                p.add_(0.3 * size * torch.randn(p.shape, generator=generator).to(p))


def output(model: nn.Module, x: torch.Tensor = X) -> torch.Tensor:
    with torch.no_grad():
        out = model.eval()(x)
    return getattr(out, "logits", out)


def trained(model: nn.Module, recipe="lora", **settings) -> nn.Module:
    lb.adapt(model, recipe, **{"rank": 3, "targets": ["up", "down"], "also_train": ["head"]} | settings)
    shake(model)
    return model


def calibration(model: nn.Module) -> dict:
    """One pass with gradients, for recipes that look at data."""
    return {"calibration": lambda: model(X).square().mean()}


@pytest.mark.parametrize("name", lb.recipes())
def test_every_recipe_comes_back_exactly(mlp, name, tmp_path):
    fresh = copy.deepcopy(mlp)
    trained(mlp, name, **(calibration(mlp) if lb.recipe(name).init.needs else {}))
    lb.save(mlp, tmp_path)
    lb.load(fresh, tmp_path)
    assert torch.equal(output(fresh), output(mlp))
    here, there = lb.adapted(fresh), lb.adapted(mlp)
    for path, layer in there.items():
        ours, theirs = here[path].adapter("default").state_dict(), layer.adapter("default").state_dict()
        assert equal(ours, theirs)
    trains = {n for n, p in mlp.named_parameters() if p.requires_grad}
    assert {n for n, p in fresh.named_parameters() if p.requires_grad} == trains


@pytest.mark.parametrize("form", [BlockGrid.of(2, 4), Kronecker.of(4, 2), LowRankPlusSparse])
def test_forms_with_settings_and_recipes_of_ones_own(mlp, form, tmp_path):
    fresh = copy.deepcopy(mlp)
    mine = lb.recipe("lora").but("mine", form=form)
    trained(mlp, mine, rank=2)
    lb.save(mlp, tmp_path)
    before = copy.deepcopy(fresh.state_dict())
    with pytest.raises(ValueError, match="recipe 'mine', which this version does not have; pass recipe="):
        lb.load(fresh, tmp_path)
    with pytest.raises(ValueError, match=f"has the form {form.__name__}.* makes BurerMonteiro"):
        lb.load(fresh, tmp_path, recipe=lb.recipe("lora"))
    assert equal(before, fresh.state_dict())
    lb.load(fresh, tmp_path, recipe=mine)
    assert torch.equal(output(fresh), output(mlp))


@dataclass(frozen=True)
class Gate(lb.Additive):
    """A way of combining with a number of its own."""

    def extras(self, weight):
        return {"gate": torch.ones(())}

    def meet(self, weight, update, extras):
        return weight + extras["gate"] * update


def test_another_way_of_combining_is_another_recipe(mlp, tmp_path):
    mine = lb.recipe("lora").but("lora", combine=Gate())
    trained(mlp, mine)
    lb.save(mlp, tmp_path)
    fresh = Mlp()
    fresh.load_state_dict(lb.unload(copy.deepcopy(mlp)).state_dict())
    with pytest.raises(ValueError, match=r"recipe 'lora' is not the one .*combine Gate there, Additive here"):
        lb.load(fresh, tmp_path, strict_base=False)
    lb.load(fresh, tmp_path, recipe=mine)
    gate = lb.adapted(fresh)["layers.0.up"].adapter("default").gate
    assert torch.equal(gate, lb.adapted(mlp)["layers.0.up"].adapter("default").gate)


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_named_adapters_are_saved_one_by_one(mlp, tmp_path):
    fresh = copy.deepcopy(mlp)
    trained(mlp, name="one", rank_pattern={"0.up": 2}, alpha=6.0, dropout=0.25, seed=7)
    one = output(mlp)
    trained(mlp, "dora", name="two", targets=["head"], also_train=["layers.0.up.bias"])
    two = output(mlp)
    lb.save(mlp, tmp_path / "1", name="one", metadata={"steps": 20, "loss": [1.0, 0.5]})
    lb.save(mlp, tmp_path / "2", name="two")
    lb.load(fresh, tmp_path / "2")
    assert torch.equal(output(fresh), two)
    lb.load(fresh, tmp_path / "1", name="first")
    assert torch.equal(output(fresh), one)
    assert list(lb.setups(fresh)) == ["two", "first"]
    setup, saved = lb.setups(fresh)["first"], lb.setups(mlp)["one"]
    for field in ("recipe", "ranks", "alphas", "dropout", "seed", "also_train"):
        assert getattr(setup, field) == getattr(saved, field)
    assert lb.adapted(fresh)["layers.0.up"].adapter("first").noise == lb.InputDropout(0.25)
    assert lb.describe(tmp_path / "1")["metadata"] == {"steps": 20, "loss": [1.0, 0.5]}
    lb.activate(fresh, "two")
    assert torch.equal(output(fresh), two)
    lb.activate(fresh)
    lb.activate(mlp)
    assert torch.equal(output(fresh), output(mlp))


def test_a_loaded_adapter_trains_on_as_the_saved_one(mlp, task, tmp_path):
    fresh = copy.deepcopy(mlp)
    trained(mlp, "pissa")
    lb.save(mlp, tmp_path)
    lb.load(fresh, tmp_path)
    for model in (mlp, fresh):
        optimizer = lb.optimizer(model, lr=1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            (model(task[0]) - task[1]).square().mean().backward()
            optimizer.step()
    assert torch.equal(output(mlp), output(fresh))


# the base model ------------------------------------------------------------------------------------------------


def refused(model: nn.Module, path, match: str, **settings) -> None:
    """Loading fails with this message and changes nothing, not even what trains."""
    before = copy.deepcopy(model.state_dict())
    trains, names = [p.requires_grad for p in model.parameters()], list(lb.setups(model))
    with pytest.raises(ValueError, match=match):
        lb.load(model, path, **settings)
    assert equal(before, model.state_dict())
    assert [p.requires_grad for p in model.parameters()] == trains
    assert list(lb.setups(model)) == names


@pytest.fixture
def saved(mlp, tmp_path):
    """A saved adapter, its model, and a fresh base."""
    fresh = copy.deepcopy(mlp)
    lb.save(trained(mlp), tmp_path)
    return tmp_path, mlp, fresh


def test_another_base_model_is_refused_unless_that_is_wanted(saved):
    path, _, fresh = saved
    with torch.no_grad():
        fresh.layers[0]["up"].weight.mul_(1.0001)
    refused(fresh, path, r"another base model: 1 adapted layers hold other values, such as layers.0.up.*strict_base")
    lb.load(fresh, path, strict_base=False)
    assert lb.adapted(fresh)


def test_other_parameters_are_another_base_model(saved):
    path, _, fresh = saved
    fresh.more = nn.Linear(2, 2)
    refused(fresh, path, "that one lacked 2 parameters, such as more.bias")
    del fresh.more
    fresh.layers[1]["up"].bias = None
    refused(fresh, path, "this model lacks 1 parameters, such as layers.1.up.bias")


def test_the_same_model_in_another_precision_is_a_warning(saved):
    path, model, fresh = saved
    fresh.bfloat16()
    with pytest.warns(UserWarning, match=r"in another precision: 10 parameters differ, .*float32 there, bfloat16 here"):
        lb.load(fresh, path)
    assert torch.allclose(fresh(X.bfloat16()).float(), output(model), atol=0.1)
    with torch.no_grad():
        lb.unload(fresh)
        fresh.layers[0]["up"].weight.mul_(1.05)
    refused(fresh, path, "hold other values")


def test_layers_that_do_not_exist_and_other_shapes(saved):
    path, _, fresh = saved
    refused(nn.Sequential(nn.Linear(12, 12)), path, r"layers.0.down, .* which the model does not have")
    refused(Mlp(hidden=18), path, r"layers.0.up has the shape \(18, 12\), and the adapter is for \(16, 12\)")
    fresh.layers[0]["up"] = nn.LayerNorm(12)
    with pytest.raises(TypeError, match="LayerNorm, which no adapter can meet"):
        lb.load(fresh, path)


def test_a_name_that_is_taken_or_illegal(saved):
    path, model, fresh = saved
    refused(model, path, "has an adapter 'default' already")
    refused(fresh, path, "name must be", name="no.dots")
    lb.load(model, path, name="again")
    assert torch.equal(output(model), output(lb.load(fresh, path)))


def test_merged_models_are_refused(saved):
    path, model, _ = saved
    lb.merge(model)
    refused(model, path, "unmerge", name="more")
    with pytest.raises(ValueError, match="unmerge"):
        lb.save(model, path)
    with pytest.raises(ValueError, match="no adapter 'other'"):
        lb.save(model, path, name="other")


# the files -----------------------------------------------------------------------------------------------------


def rewritten(path, change, document=None) -> None:
    """The same file with other tensors."""
    file = path / TENSORS
    header, tensors = files.read_header(file), files.read_tensors(file)
    text = json.loads(header["description"])
    change(tensors, text)
    files.write_tensors(file, tensors, {"description": json.dumps(text)})
    files.write_json(path / DOCUMENT, text)


KEY = "site:layers.0.up:left"
DAMAGE = {
    "missing": (lambda t, d: t.pop(KEY), "lacks site:layers.0.up:left"),
    "unknown": (lambda t, d: t.update(more=torch.ones(1)), "has unknown more"),
    "shape": (lambda t, d: t.update({KEY: t[KEY][:, :2]}), r"has the shape \(16, 2\), expected \(16, 3\)"),
    "type": (lambda t, d: t.update({KEY: t[KEY].half()}), "is float16 16x3, and float32 16x3 was saved"),
    "values": (lambda t, d: t[KEY].mul_(2), "corrupt: its tensors are not those"),
    "newer": (lambda t, d: d.update(version=99), "version 99; .* up to version 1"),
    "format": (lambda t, d: d.update(format="other"), "format 'other'"),
    "future": (lambda t, d: d["recipe"].update(name="2031-lora"), "recipe '2031-lora', which this version"),
    "incomplete": (lambda t, d: d.pop("sites"), "lacks sites"),
    "nan": (lambda t, d: (t[KEY].fill_(float("nan")), d.update(checksum=files.checksum(t))), "NaN or infinity in site"),
    "parameter": (lambda t, d: d["also_train"].append("tail.weight"), "a trained tail.weight, which the model"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused(saved, damage):
    path, _, fresh = saved
    change, match = DAMAGE[damage]
    rewritten(path, change)
    refused(fresh, path, match)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_file_is_refused(saved, keep):
    path, _, fresh = saved
    whole = (path / TENSORS).read_bytes()
    (path / TENSORS).write_bytes(whole[:keep])
    refused(fresh, path, "truncated, corrupt or no safetensors file")


def test_missing_files_and_foreign_ones(saved, tmp_path_factory):
    path, _, fresh = saved
    (path / DOCUMENT).unlink()
    lb.load(copy.deepcopy(fresh), path)
    files.write_tensors(path / TENSORS, {"a": torch.ones(2)}, {})
    refused(fresh, path, "was not written by save")
    files.write_tensors(path / TENSORS, {"a": torch.ones(2)}, {"description": "{"})
    refused(fresh, path, "description .* is corrupt")
    files.write_tensors(path / TENSORS, {"a": torch.ones(2)}, {"description": "[]"})
    refused(fresh, path, "no JSON object")
    (path / TENSORS).unlink()
    refused(fresh, path, "there is no file adapter.safetensors")


def test_a_document_that_was_edited_does_not_count(saved):
    path, _, fresh = saved
    document = files.read_json(path / DOCUMENT)
    assert document == lb.describe(path)
    files.write_json(path / DOCUMENT, {**document, "seed": 5})
    with pytest.warns(UserWarning, match="differs from the description inside"):
        lb.load(fresh, path)
    assert lb.setups(fresh)["default"].seed == 0
    (path / DOCUMENT).write_text("{")
    with pytest.raises(ValueError, match="no JSON file"):
        lb.describe(path)


def test_a_crash_while_writing_leaves_the_old_files(saved, monkeypatch):
    path, model, fresh = saved
    before = output(model)
    shake(model, seed=9)

    def crash(*_):
        raise OSError("disk full")

    for step in (os.replace, os.fsync):
        monkeypatch.setattr(os, step.__name__, crash)
        with pytest.raises(OSError, match="disk full"):
            lb.save(model, path)
        monkeypatch.undo()
    assert sorted(p.name for p in path.iterdir()) == [DOCUMENT, TENSORS]
    assert torch.equal(output(lb.load(fresh, path)), before)


def test_nothing_but_tensors_and_text_is_written(saved):
    path, _, _ = saved
    with safe_open(path / TENSORS, "pt") as f:
        assert set(f.metadata()) == {"format", "description"}
        assert all(key.startswith(("site:", "parameter:")) for key in f.keys())  # noqa: SIM118


@pytest.mark.parametrize("metadata", [{"loss": float("nan")}, {"tensor": torch.ones(1)}])
def test_metadata_must_be_json(saved, metadata):
    path, model, fresh = saved
    with pytest.raises(ValueError, match="metadata must be what JSON can hold"):
        lb.save(model, path, metadata=metadata)
    lb.load(fresh, path)


def test_the_path_must_be_a_folder(mlp, tmp_path):
    trained(mlp)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="path must be a folder"):
        lb.save(mlp, tmp_path / "file")


def test_shared_arrays_are_saved_once_and_stay_shared(mlp, tmp_path):
    fresh = copy.deepcopy(mlp)
    trained(mlp, "tied-right")
    lb.save(mlp, tmp_path)
    with safe_open(tmp_path / TENSORS, "pt") as f:
        assert sum(key.endswith(":right") for key in f.keys()) == 2  # noqa: SIM118
    lb.load(fresh, tmp_path)
    layers = lb.adapted(fresh)
    ups = [layers[f"layers.{i}.up"].adapter("default").right for i in (0, 1)]
    assert ups[0] is ups[1]


def test_pretrained_model(minilm, tmp_path):
    model, batch = minilm
    fresh = copy.deepcopy(model)
    lb.adapt(model, "dora", rank=4, targets=["query", "value"])
    shake(model)
    lb.save(model, tmp_path)
    lb.load(fresh, tmp_path)
    with torch.no_grad():
        assert torch.equal(fresh(**batch).last_hidden_state, model(**batch).last_hidden_state)
