"""Starts of structured forms against decompositions by LAPACK and brute force, and vector banks written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch

import llm_bridge as lb
from llm_bridge.bank import VectorBank
from llm_bridge.starts import ByArray, Constant, Fan, Normal

LORA = lb.recipe("lora")


def adapter(model, recipe, rank=3, **options):
    lb.adapt(model, recipe, rank=rank, targets=["0.up"], **options)
    layer = model.layers[0]["up"]
    return layer.adapter("default"), layer.base.weight.detach().double().numpy()


@pytest.mark.covers("I10", "I11", "P31", "P35")
@pytest.mark.parametrize(("name", "power"), [("svfit", 0), ("lora-xs", 1), ("nested-nora", 0)])
def test_fixed_frames_are_singular_vectors(mlp, name, power):
    own, weight = adapter(mlp, name)
    u, s, vt = np.linalg.svd(weight)
    expected = u[:, :3] * s[:3] ** power
    assert np.allclose(abs(own.left.numpy()), abs(expected), atol=1e-5)
    assert np.allclose(abs(own.right.numpy()), abs(vt[:3].T), atol=1e-5)
    assert not own.update().any()
    assert not own.left.requires_grad


@pytest.mark.covers("P31")
def test_a_changed_singular_value_changes_only_that(mlp):
    own, weight = adapter(mlp, "svft")
    with torch.no_grad():
        own.values[1] += 0.25
    changed = np.linalg.svd(weight + own.update().detach().numpy(), compute_uv=False)
    expected = np.linalg.svd(weight, compute_uv=False)
    expected[1] += 0.25
    assert np.allclose(np.sort(changed), np.sort(expected), atol=1e-5)
    assert own.values.numel() == 12


@pytest.mark.covers("P32", "I11")
def test_triangular_frame(mlp):
    own, weight = adapter(mlp, "loldu", rank=12)
    triple: Any = scipy.linalg.lu(weight)
    p, lower, upper = triple
    assert np.allclose(own.left.numpy(), p @ lower, atol=1e-5)
    rebuilt = own.left.numpy() @ np.diag(np.diag(upper)) @ own.right.numpy().T
    assert np.allclose(rebuilt, weight, atol=1e-5)


@pytest.mark.covers("P33", "I11")
def test_weight_core(mlp):
    own, weight = adapter(mlp, "lamda", alpha=6.0)
    u, s, vt = np.linalg.svd(weight)
    assert np.allclose(own.scale * own.start().dense().numpy(), (u[:, :3] * s[:3]) @ vt[:3], atol=1e-5)
    assert {n for n, p in own.named_parameters() if p.requires_grad} == {"left", "core"}


@pytest.mark.covers("I24", "P92")
def test_directions_with_the_norms_of_the_columns(mlp):
    own, weight = adapter(mlp, "delora")
    assert np.allclose(own.norms.numpy(), np.linalg.norm(weight, axis=0), atol=1e-6)
    assert own.strength.item() == 8.0
    assert not own.update().abs().max() > 1e-6


@pytest.mark.covers("P51", "P52", "P105")
def test_supports_hold_the_largest_entries(mlp, task):
    own, weight = adapter(mlp, "shira-magnitude", rank=2)
    count = 2 * (16 + 12)
    assert np.array_equal(own.places.numpy(), np.sort(np.argsort(-abs(weight), axis=None)[:count]))
    lb.unload(mlp)

    def loss():
        ((mlp(task[0]) - task[1]) ** 2).mean().backward()

    mlp.requires_grad_(True)
    loss()
    gradient = mlp.layers[0]["up"].weight.grad.numpy().copy()
    expected = np.sort(np.argsort(-abs(gradient), axis=None)[:count])
    mlp.zero_grad()
    own, _ = adapter(mlp, "rosa", rank=2, calibration=loss)
    assert np.array_equal(own.places.numpy(), expected)
    lb.unload(mlp)
    own, _ = adapter(mlp, "lost", rank=2)
    u, s, vt = np.linalg.svd(weight)
    rest = np.linalg.norm(weight - (u[:, :2] * s[:2]) @ vt[:2], axis=0)
    assert set(own.columns.tolist()) == set(np.argsort(-rest)[:2].tolist())


@pytest.mark.covers("I14", "I26", "I27")
def test_every_array_by_its_own_rule(mlp):
    made = LORA.but("own", init=ByArray((("left", Constant(0.0)), ("right", Normal(0.5)))))
    own, _ = adapter(mlp, made, rank=12)
    assert not own.left.any()
    assert 0.4 < own.right.std() < 0.6
    drawn = Fan(-1, 2.0)((50, 16), np.random.default_rng(0))
    assert drawn.std() == pytest.approx(0.5, rel=0.1)
    with pytest.raises(TypeError, match="BurerMonteiro has no core; it has left, right"):
        lb.adapt(mlp, LORA.but("bad", init=ByArray((("core", Normal()),))), rank=2, name="bad")


# vector banks ------------------------------------------------------------------------------------------------


@pytest.mark.covers("P65")
def test_pieces_are_mixtures_of_the_largest():
    generator = torch.Generator().manual_seed(0)
    form = VectorBank.of(5, 3, 2)
    sizes = form.shapes((6, 9), 2)
    assert sizes == ((2, 2, 5), (3, 2, 5), (5, 3))
    point = form(*[torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes])
    left = np.zeros((6, 2))
    logits, bank = point.left_logits.numpy(), point.bank.numpy()
    for piece in range(2):
        for column in range(2):
            top = np.argsort(-logits[piece, column])[:2]
            weights = np.exp(logits[piece, column, top])
            left[3 * piece : 3 * piece + 3, column] = weights / weights.sum() @ bank[top]
    assert np.allclose(point.product()[0].numpy(), left)
    dense, x = point.dense(), torch.randn(4, 9, generator=generator, dtype=torch.float64)
    assert torch.allclose(point.apply(x), x @ dense.T)
    assert torch.allclose(point.entries(torch.tensor([1, 5]), torch.tensor([0, 8])), dense[[1, 5], [0, 8]])
    assert VectorBank.for_shape((4096, 1024)).settings == (90, 256, 2)


def test_banks_that_do_not_fit_are_refused():
    for arguments, message in {(0, 3): "count must be a positive", (2, 3, 4): "a mixture of 4 needs"}.items():
        with pytest.raises(ValueError, match=message):
            VectorBank.of(*arguments)
    with pytest.raises(ValueError, match="vectors of length 4 do not divide"):
        VectorBank.of(5, 4).shapes((8, 9), 2)
    point = VectorBank.of(5, 3).random((6, 9), 2, np.random.default_rng(0))
    with pytest.raises(TypeError, match="VectorBank5x3top2 has no metric of its own"):
        point.whiten(point)
