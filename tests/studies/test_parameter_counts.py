"""The parameter-count study on its quick grid, and its models and forms against independent counts."""

from __future__ import annotations

import numpy as np
import pytest

from lowrank_sp.spaces import FIXED
from studies import load
from studies.parameter_counts import study
from studies.parameter_counts.counts import BENCHMARK
from studies.parameter_counts.formulas import FORMULAS, Case, trained
from studies.parameter_counts.models import MODELS


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    pytest.importorskip("torch")
    return [{**cell, **study.run(cell)} for cell in load("parameter_counts").config.cells(quick=True)]


@pytest.mark.covers("X08", "X09", "X10", "X18")
def test_every_claim_is_evaluated(rows):
    found = study.measures(rows)
    for claim in load("parameter_counts").config.claims:
        assert len(found[claim.measure]), claim.id
        assert np.isfinite(found[claim.measure]).all(), claim.id
    assert set(study.figures(rows)) == {"benchmark", "models"}
    assert all(table for table in study.tables(rows).values())


@pytest.mark.parametrize("name", [name for name, formula in FORMULAS.items() if not formula.stacked])
def test_counts_are_those_of_the_arrays_of_a_point(name):
    case = Case(12, 8, 2, 2, 5, 3)
    formula = FORMULAS[name]
    point = formula.form(case).random(case.shape, formula.size(case), np.random.default_rng(0))
    moving = [a.size for a, space in zip(point.arrays(), point.spaces, strict=True) if space is not FIXED]
    assert formula.counted(case) == case.layers * sum(moving)


@pytest.mark.slow
@pytest.mark.covers("X09")
def test_models_have_the_sizes_of_their_configurations():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    roberta = transformers.RobertaConfig(
        vocab_size=50265,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        max_position_embeddings=514,
        type_vocab_size=1,
    )
    vit = transformers.ViTConfig()
    llama = transformers.LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        intermediate_size=14336,
    )
    with torch.device("meta"):
        built = {
            "RoBERTa-large": transformers.RobertaModel(roberta, add_pooling_layer=False),
            "ViT-B/16": transformers.ViTModel(vit, add_pooling_layer=False),
            "Llama-3.1-8B": transformers.LlamaForCausalLM(llama),
        }
    for name, model in built.items():
        assert sum(p.numel() for p in model.parameters()) == MODELS[name].total, name
    linear = [m for n, m in built["Llama-3.1-8B"].named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]
    shapes = sorted((m.out_features, m.in_features) for m in linear)
    assert shapes == sorted(shape for _, shape in MODELS["Llama-3.1-8B"].sites())


@pytest.mark.covers("P28", "P63")
def test_shared_arrays_count_once_for_a_type():
    sites = [("q", (6, 4)), ("q", (6, 4)), ("v", (3, 4))]
    pools = BENCHMARK["RaSA"]([(kind, (80, 70)) for kind, _ in sites])
    own = 3 * (7 * (80 + 70) + 7 + 32)
    assert pools == own + 2 * 32 * (80 + 70)


def test_an_adapted_stack_counts_what_trains():
    pytest.importorskip("torch")
    case = Case(6, 5, 3, 2, 4, 3)
    assert trained("DoRA", case) == 3 * (2 * 11 + 5)
    assert trained("VeRA", case) == 3 * (5 + 2)
