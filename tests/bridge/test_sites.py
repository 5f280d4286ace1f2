"""Which layers get an adapter, and what happens to names that match nothing."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import llm_bridge as lb


def paths(model, *args, **kwargs) -> list[str]:
    return [site.name for site in lb.find_sites(model, *args, **kwargs)]


def test_all_linear_leaves_the_head_of_a_language_model_alone(llama):
    model, _ = llama
    found = paths(model)
    assert len(found) == 14
    assert "lm_head" not in found


def test_all_linear_leaves_a_classification_head_alone(minilm):
    from transformers import BertForSequenceClassification

    model, _ = minilm
    whole = BertForSequenceClassification(model.config)
    assert "classifier" not in paths(whole)
    assert "bert.encoder.layer.0.attention.self.query" in paths(whole)


@pytest.mark.parametrize(
    "targets, count",
    [
        (["up"], 2),
        (["layers.1.down", "head"], 2),
        (r"layers\.\d+\.(up|down)", 4),
        ("down", 2),
        (lambda name, module: isinstance(module, nn.Linear) and module.out_features == 16, 2),
    ],
)
def test_targets(mlp, targets, count):
    assert len(paths(mlp, targets)) == count


def test_exclude_and_layers(mlp):
    left = ["layers.0.down", "layers.1.up", "layers.1.down"]
    assert paths(mlp, "all-linear", exclude=["head", "layers.0.up"]) == left
    assert paths(mlp, "all-linear", layers=[1]) == ["layers.1.up", "layers.1.down"]
    assert paths(mlp, "all-linear", exclude="layers.0") == ["layers.1.up", "layers.1.down", "head"]
    assert paths(mlp, "all-linear", exclude=lambda name, module: name == "layers") == ["head"]


def test_one_wrong_name_among_good_ones_is_an_error(mlp):
    before = str(mlp)
    with pytest.raises(ValueError, match="'upp', which matches no module; did you mean up"):
        lb.adapt(mlp, "lora", targets=["upp", "down"])
    with pytest.raises(ValueError, match="layers of this model end with down, head, up"):
        lb.adapt(mlp, "lora", targets=["q_proj"])
    with pytest.raises(ValueError, match="exclude holds 'nothing'"):
        lb.adapt(mlp, "lora", exclude=["nothing"])
    with pytest.raises(ValueError, match="no layer is left"):
        lb.adapt(mlp, "lora", targets=["head"], layers=[1])
    with pytest.raises(ValueError, match="layers holds 7, and the blocks of the model are 0 to 1"):
        lb.adapt(mlp, "lora", targets=["up"], layers=[1, 7])
    assert str(mlp) == before


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"targets": "up("}, ValueError, r"'up\(' is neither a name nor a regular expression: missing \)"),
        (
            {"targets": r"layers\.[01]\.u"},
            ValueError,
            "a regular expression must match a whole path, such as layers.0.up",
        ),
        ({"targets": None}, TypeError, "targets must be 'all-linear', names or a function, got None"),
        ({"exclude": 3}, TypeError, "exclude must be 'all-linear', names or a function, got 3"),
        ({"layers": 1}, TypeError, r"layers must be positions of blocks, such as \[0, 1\] or range\(4\), got 1"),
        ({"rank_pattern": {r"0\.up.*": 4}}, ValueError, "matches none of the chosen layers, such as layers.0.up"),
        ({"dtype": torch.int8}, TypeError, "dtype must be a floating-point type of torch, got torch.int8"),
        ({"dtype": "float32"}, TypeError, "dtype must be a floating-point type of torch, got 'float32'"),
        ({"seed": -1}, ValueError, "seed must be a natural number, got -1"),
        ({"variant": "PiSSA"}, ValueError, "did you mean pissa"),
        ({"variant": None}, TypeError, "a recipe or the name of one, got None"),
    ],
)
def test_arguments_that_mean_nothing(mlp, options, error, message):
    with pytest.raises(error, match=message):
        lb.adapt(mlp, **{"rank": 2} | options)
    assert not lb.adapted(mlp)


def test_layers_of_a_model_without_blocks():
    with pytest.raises(ValueError, match="layers chooses blocks of a ModuleList, and the model has none"):
        lb.adapt(nn.Sequential(nn.Linear(3, 3)), "lora", rank=1, layers=[0])


def test_a_layer_that_no_adapter_can_meet():
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Conv2d(4, 4, 3, groups=2))
    with pytest.raises(TypeError, match="1 is a LayerNorm"):
        lb.adapt(model, "lora", rank=1, targets=["0", "1"])
    with pytest.raises(TypeError, match="2 is a Conv2d"):
        lb.adapt(model, "lora", rank=1, targets=["2"])


@pytest.mark.parametrize("rank, error", [(0, ValueError), (13, ValueError), (1.5, TypeError), (True, TypeError)])
def test_bad_ranks_leave_the_model_as_it_was(mlp, rank, error):
    with pytest.raises(error, match="rank must"):
        lb.adapt(mlp, "lora", rank=rank)
    assert not lb.adapted(mlp)
    assert all(p.requires_grad for p in mlp.parameters())


@pytest.mark.parametrize("recipe", ["lora", "pissa", "goat"])
@pytest.mark.parametrize("alpha", [0, -2.0, float("nan"), float("inf"), True, "8"])
def test_bad_alphas_leave_the_model_as_it_was(mlp, recipe, alpha):
    with pytest.raises(ValueError, match=r"alpha must be a positive number, got .* for layers"):
        lb.adapt(mlp, recipe, rank=2, alpha=alpha)
    with pytest.raises(ValueError, match=r"alpha must be a positive number, got .* for layers\.0\.down"):
        lb.adapt(mlp, recipe, rank=2, alpha_pattern={"down": alpha})
    assert not lb.adapted(mlp)
    assert all(p.requires_grad for p in mlp.parameters())


def test_ranks_and_alphas_by_pattern(mlp):
    lb.adapt(mlp, "lora", rank=2, alpha=8, rank_pattern={"layers.1.up": 3}, alpha_pattern={"down": 1.0})
    assert mlp.layers[1]["up"].adapter("default").left.shape == (16, 3)
    assert mlp.layers[0]["up"].adapter("default").scale == 4.0
    assert mlp.layers[0]["down"].adapter("default").scale == 0.5
    with pytest.raises(ValueError, match="rank_pattern holds 'sideways'"):
        lb.adapt(mlp, "lora", rank=2, rank_pattern={"sideways": 3}, name="other")


@pytest.mark.parametrize("name", ["", "a.b", "-x", "a b", 3, "x" * 65])
def test_names_that_are_not_legal(mlp, name):
    with pytest.raises(ValueError, match="name must be"):
        lb.adapt(mlp, "lora", rank=2, name=name)


@pytest.mark.parametrize("name", ["keys", "training", "t", "base", "requires_grad_", "adapter_default", "0"])
def test_any_legal_name_is_safe(mlp, task, name):
    lb.adapt(mlp, "lora", rank=2)
    lb.adapt(mlp, "lora", rank=2, name=name)
    lb.activate(mlp, "default")
    assert all(p.requires_grad == ("adapters.adapter_default." in path) for path, p in mlp.named_parameters())


def test_also_train(mlp):
    lb.adapt(mlp, "lora", rank=2, targets=["up"], also_train=["head", "layers.0.down.bias"])
    trained = {path for path, p in mlp.named_parameters() if p.requires_grad and "adapter" not in path}
    assert trained == {"head.weight", "head.bias", "layers.0.down.bias"}
    with pytest.raises(ValueError, match="also_train holds 'foot'"):
        lb.adapt(mlp, "lora", rank=2, also_train=["foot"], name="other")


def test_tied_weights_are_reported(llama):
    model, ids = llama
    with pytest.warns(UserWarning, match=r"embed_tokens shares its weight with lm_head\.weight"):
        lb.adapt(model, "lora", rank=2, targets=["embed_tokens"])
    before = model(ids).logits
    with torch.no_grad():
        model.model.embed_tokens.adapter("default").left += 0.1
    after = model(ids).logits
    lb.merge(model)
    assert torch.allclose(model(ids).logits, after, atol=1e-5)
    assert not torch.allclose(before, after)
    lb.unmerge(model)
    assert model.model.embed_tokens.base.weight is model.lm_head.weight


def test_a_model_without_tied_weights_is_quiet(mlp):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lb.adapt(mlp, "lora", rank=2)
