"""Models whose head or embedding is tied or resized."""

from __future__ import annotations

import copy

import pytest
import torch

import llm_bridge as lb

from .test_checkpoint import output, shake


@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_resized_models(llama, tied, tmp_path):
    from transformers import LlamaForCausalLM

    model, tokens = llama
    config = copy.deepcopy(model.config)
    config.tie_word_embeddings = tied
    unresized = copy.deepcopy(config)
    model = LlamaForCausalLM(config).eval()
    model.resize_token_embeddings(57, mean_resizing=False)
    fresh = copy.deepcopy(model)
    lb.adapt(model, "lora", rank=2, also_train=["lm_head"])
    shake(model)
    lb.save(model, tmp_path)
    lb.load(fresh, tmp_path)
    assert torch.equal(output(fresh, tokens), output(model, tokens))
    assert (fresh.lm_head.weight is fresh.model.embed_tokens.weight) == tied
    small = LlamaForCausalLM(unresized)
    with pytest.raises(ValueError, match=r"embed_tokens.weight is 50x16 here and was 57x16"):
        lb.load(small, tmp_path)


def test_a_head_that_is_resized_while_it_trains(llama, tmp_path):
    """It saves and loads; what it was before is not known any more, which is said where that is needed."""
    model, tokens = llama
    fresh = copy.deepcopy(model)
    lb.adapt(model, "lora", rank=2, also_train=["lm_head"])
    for resized in (model, fresh):
        resized.resize_token_embeddings(57, mean_resizing=False)
    shake(model)
    lb.save(model, tmp_path)
    lb.load(fresh, tmp_path)
    after = output(model, tokens)
    assert torch.equal(output(fresh, tokens), after)
    lb.activate(model, "default")
    for needs in (lb.activate, lb.drop, lambda m, *_: lb.combine(m, ["default"], [1.0])):
        with pytest.raises(ValueError, match=r"embed_tokens.weight was 50x16 when 'default' came and is 57x16 now"):
            needs(model, *["default"] * (needs is lb.drop))
        assert torch.equal(output(model, tokens), after)


def test_tying_weights_again(llama):
    """As models of transformers do after they were loaded or resized."""
    model, tokens = llama
    with pytest.warns(UserWarning, match="shares its weight"):
        lb.adapt(model, "lora", rank=2, targets=["lm_head"])
    shake(model)
    before = output(model, tokens)
    model.tie_weights()
    assert torch.equal(output(model, tokens), before)
    assert model.lm_head.base.weight is model.model.embed_tokens.weight
    lb.merge(model)
    with pytest.raises(ValueError, match="its weight is merged"):
        model.tie_weights()


def test_an_adapted_embedding_of_a_tied_model(llama, tmp_path):
    model, tokens = llama
    fresh = copy.deepcopy(model)
    with pytest.warns(UserWarning, match="shares its weight"):
        lb.adapt(model, "lora", rank=2, targets=["embed_tokens", "q_proj"])
    shake(model)
    lb.save(model, tmp_path)
    lb.load(fresh, tmp_path)
    assert torch.equal(output(fresh, tokens), output(model, tokens))
