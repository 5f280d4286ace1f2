"""Quantizers against brute force and published levels; LoftQ against the alternation with full decompositions."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import llm_bridge as lb
from llm_bridge.quantizers import NormalFloat, Uniform

# The sixteen levels as the authors of NF4 publish them.
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip


def test_levels_are_the_published_ones():
    assert np.allclose(NormalFloat().levels(), NF4, atol=1e-6)
    assert np.allclose(Uniform(3).levels(), np.array([-3, -2, -1, 0, 1, 2, 3]) / 3)


@pytest.mark.parametrize("quantizer", [NormalFloat(4, 7), NormalFloat(2, 16), Uniform(3, 5), Uniform(8, 64)])
def test_rounding_is_to_the_nearest_level_of_the_block(quantizer):
    weight = torch.randn(6, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight[:2] = 0
    flat, levels = weight.numpy().ravel(), quantizer.levels().numpy()
    expected = np.concatenate(
        [
            [scale * levels[np.argmin(abs(scale * levels - x))] for x in block]
            for start in range(0, flat.size, quantizer.block)
            for block in [flat[start : start + quantizer.block]]
            for scale in [abs(block).max()]
        ]
    )
    assert np.allclose(quantizer(weight).numpy().ravel(), expected)
    assert torch.allclose(quantizer(quantizer(weight)), quantizer(weight), atol=1e-12)


def test_more_bits_are_closer():
    weight = torch.randn(40, 40, generator=torch.Generator().manual_seed(0))
    for family in (NormalFloat, Uniform):
        errors = [(weight - family(bits)(weight)).norm().item() for bits in range(2, 9)]
        assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("wrong", [{"bits": 1}, {"bits": 9}, {"block": 0}])
def test_quantizers_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match=r"bits must lie between 2 and 8|block must be positive"):
        NormalFloat(**wrong)


@pytest.mark.covers("I23", "A02")
@pytest.mark.parametrize("recipe", ["lora", "moslora", "rslora"])
@pytest.mark.parametrize("iterations", [1, 4])
def test_factors_and_base_are_those_of_the_alternation(recipe, iterations, mlp):
    from peft.utils.loftq_utils import _low_rank_decomposition

    weights = {p: mlp.get_submodule(p).weight.detach().clone() for p in ("layers.0.up", "layers.1.down")}
    report = lb.loftq(mlp, recipe, rank=3, quantizer=NormalFloat(2, 8), iterations=iterations, alpha=6)
    for path, weight in weights.items():
        residual = weight
        for _ in range(iterations):
            base = NormalFloat(2, 8)(residual)
            parts = _low_rank_decomposition(weight - base, 3)
            product = parts["L"] @ parts["R"]
            residual = weight - product
        layer = lb.adapted(mlp)[path]
        assert torch.allclose(layer.base.weight, base, atol=1e-6)
        assert torch.allclose(layer.adapter("default").update(), product, atol=1e-5)
        assert report.adapted[path] == pytest.approx(
            ((weight - base - product).norm() / weight.norm()).item(), rel=1e-4
        )
        assert report.adapted[path] < report.quantized[path]
    assert str(report).count("\n") == len(report.adapted)


def test_the_adapted_model_is_closer_and_trains(mlp, task, tmp_path):
    whole, plain = mlp(task[0]), copy.deepcopy(mlp)
    for layer in plain.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data = NormalFloat(2, 8)(layer.weight.data)
    lb.loftq(mlp, rank=4, quantizer=NormalFloat(2, 8))
    assert (mlp(task[0]) - whole).norm() < 0.7 * (plain(task[0]) - whole).norm()
    optimizer = lb.optimizer(mlp, lr=1e-2)
    before = (mlp(task[0]) - task[1]).square().mean().item()
    for _ in range(10):
        optimizer.zero_grad()
        (mlp(task[0]) - task[1]).square().mean().backward()
        optimizer.step()
    assert (mlp(task[0]) - task[1]).square().mean().item() < before
    expected = mlp(task[0])
    lb.save(mlp, tmp_path)
    lb.load(lb.unload(mlp), tmp_path)  # on the quantized base
    assert torch.allclose(mlp(task[0]), expected, atol=1e-6)
    with pytest.raises(ValueError, match="base"):
        lb.load(plain, tmp_path)


@pytest.mark.parametrize("recipe", ["dora", "pissa", "vera", "lora-fa", "aurora"])
def test_recipes_that_cannot_start_there(recipe, mlp):
    before = copy.deepcopy(mlp.state_dict())
    with pytest.raises(ValueError, match="cannot start at a given product"):
        lb.loftq(mlp, recipe, rank=2)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), mlp.state_dict().values(), strict=True))


def test_bad_input_leaves_the_weights(mlp):
    before = copy.deepcopy(mlp.state_dict())
    with pytest.raises(ValueError, match="iterations must be a positive integer"):
        lb.loftq(mlp, iterations=0)
    with pytest.raises(ValueError, match="rank must lie between"):
        lb.loftq(mlp, rank=99)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), mlp.state_dict().values(), strict=True))


@pytest.mark.parametrize("recipe", ["krona", "localized", "fourierft", "lokr", "mora", "qa-lora", "lost"])
def test_forms_that_do_not_hold_every_product(recipe, mlp):
    with pytest.raises(ValueError, match=r"its form does not hold every matrix of rank 2 at layers\.0\."):
        lb.loftq(mlp, recipe, rank=2, targets=["up", "down"])
    assert not lb.setups(mlp)
