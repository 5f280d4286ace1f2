"""Scales, learning rates, weight decay and the default start of plain LoRA: published formulas, and PEFT."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

import llm_bridge as lb
from lowrank_sp.rules import Plain

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
RANKS = (4, 16, 64)


def one_layer(outputs: int, inputs: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, outputs, bias=False)).double()


def adapted_layer(recipe: str, rank: int, outputs: int = 64, inputs: int = 512, **options) -> tuple[Any, Any]:
    model = lb.adapt(one_layer(outputs, inputs), recipe, rank=rank, alpha=2.0, dtype=torch.float64, **options)
    return model, lb.adapted(model)["0"].adapter("default")


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def peft_layer(model: nn.Module, **settings) -> tuple[Any, Any]:
    import peft

    plain: Any = copy.deepcopy(model)
    made: Any = peft.get_peft_model(plain, peft.LoraConfig(target_modules=["0"], **settings))
    return made, made.base_model.model[0]


# scales -----------------------------------------------------------------------------------------------------------


def size_of_updates(recipe: str, rank: int) -> tuple[float, float]:
    """The mean square of ``s B A x`` where B has entries of size one, and where B is a step on x from zero."""
    _, adapter = adapted_layer(recipe, rank)
    x, left = normal(400, 512, seed=1), normal(64, rank, seed=3)
    scale, right = adapter.scale, adapter.right.detach()
    drawn = scale * (x @ right) @ left.T
    stepped = scale**2 * (x @ right).square().sum(1)  # B = s v x^T A^T, applied to the same x; v of norm one
    return float(drawn.square().mean()), float(stepped.square().mean())


@pytest.mark.covers("P02", "T42")
def test_the_root_keeps_moments_as_the_rank_grows():
    root = np.array([size_of_updates("rslora", rank) for rank in RANKS])
    assert np.all(abs(root / root[0] - 1) < 0.35)
    plain = np.array([size_of_updates("lora", rank) for rank in RANKS])
    assert np.all(plain[1:] < 0.3 * plain[:-1])  # with alpha / r they fall as 1 / r and faster


@pytest.mark.covers("P02", "D75")
@pytest.mark.parametrize("rank", RANKS)
def test_scales_are_those_of_peft(rank):
    for recipe, root in (("lora", False), ("rslora", True)):
        _, layer = peft_layer(one_layer(5, 6), r=rank, lora_alpha=2, use_rslora=root)
        _, adapter = adapted_layer(recipe, rank)
        assert adapter.scale == pytest.approx(layer.scaling["default"], rel=1e-14)


@pytest.mark.covers("R01")
def test_one_rank_for_all_layers(mlp):
    lb.adapt(mlp, "lora", alpha=16.0, targets=["up", "down"])
    layers = lb.adapted(mlp).values()
    assert {layer.adapter("default").point().rank for layer in layers} == {8}
    assert {layer.adapter("default").scale for layer in layers} == {2.0}
    assert sum(p.numel() for p in mlp.parameters() if p.requires_grad) == 4 * 8 * (12 + 16)


# steps ------------------------------------------------------------------------------------------------------------


def losses_of(*models: nn.Module) -> list[torch.Tensor]:
    x, y = normal(20, 9, seed=4), normal(20, 7, seed=5)
    return [(model(x) - y).square().mean() for model in models]


@pytest.mark.covers("O31")
def test_two_rates_are_those_of_peft():
    """Ten steps from equal factors, with the optimizer that PEFT makes for LoRA+."""
    from peft.optimizers import create_loraplus_optimizer

    plain = one_layer(7, 9)
    theirs, layer = peft_layer(plain, r=3, lora_alpha=6)
    theirs.double()
    model = lb.adapt(plain, "lora+", rank=3, alpha=6.0, dtype=torch.float64)
    adapter = lb.adapted(model)["0"].adapter("default")
    with torch.no_grad():
        adapter.right.copy_(layer.lora_A.default.weight.T)
    opt = lb.optimizer(model, lr=1e-2)
    other = create_loraplus_optimizer(
        theirs, torch.optim.AdamW, lr=1e-2, loraplus_lr_ratio=16.0, weight_decay=0.0, eps=1e-8
    )
    for _ in range(10):
        for made, loss in zip((opt, other), losses_of(model, theirs), strict=True):
            made.zero_grad()
            loss.backward()
            made.step()
    torch.testing.assert_close(adapter.left, layer.lora_B.default.weight, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(adapter.right, layer.lora_A.default.weight.T, rtol=1e-6, atol=1e-9)
    assert (adapter.left.abs() > 0.3).any()  # sixteen times the usual way


@pytest.mark.covers("O30", "T41")
def test_the_weight_moves_by_both_gradients_and_their_product():
    """``dW = -eta s^2 (B B^T G + G A^T A) + eta^2 s^3 G A^T B^T G`` for plain descent of ``W + s B A``."""
    model, adapter = adapted_layer("lora", 3, 7, 9)
    with torch.no_grad():
        adapter.left.copy_(normal(7, 3, seed=6))
    b, a, s, eta = adapter.left.detach().clone(), adapter.right.detach().T.clone(), adapter.scale, 0.05
    full = one_layer(7, 9)
    with torch.no_grad():
        full[0].weight.add_(s * b @ a)
    (loss,) = losses_of(full)
    (g,) = torch.autograd.grad(loss, full[0].weight)
    opt = lb.optimizer(model, lr=eta, rule=Plain())
    losses_of(model)[0].backward()
    opt.step()
    moved = s * (adapter.left @ adapter.right.T - b @ a)
    expected = -eta * s**2 * (b @ b.T @ g + g @ a.T @ a) + eta**2 * s**3 * g @ a.T @ b.T @ g
    torch.testing.assert_close(moved.detach(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.covers("O37", "T40")
def test_with_a_fixed_orthonormal_factor_the_weight_takes_a_projected_step():
    model, adapter = adapted_layer("lora-fa", 3, 7, 9)
    with torch.no_grad():
        adapter.right.copy_(torch.linalg.qr(normal(9, 3, seed=7)).Q)
    full, eta, projector = one_layer(7, 9), 0.1, adapter.right @ adapter.right.T
    opt = lb.optimizer(model, lr=eta, rule=Plain())
    for _ in range(3):  # W <- W - eta s^2 G P, step after step
        loss, reference = losses_of(model, full)
        opt.zero_grad()
        loss.backward()
        opt.step()
        (g,) = torch.autograd.grad(reference, full[0].weight)
        with torch.no_grad():
            full[0].weight.sub_(eta * adapter.scale**2 * g @ projector)
    merged = lb.adapted(model)["0"].base.weight + adapter.update()
    torch.testing.assert_close(merged.detach(), full[0].weight.detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.covers("O51", "T60")
def test_decay_of_the_factors_shrinks_the_singular_values_of_the_update():
    """Plain descent with decay d ends at the proximal point of the nuclear norm: singular values less d / s."""
    model, adapter = adapted_layer("lora", 5, 7, 9)
    target, decay = normal(7, 9, seed=8), 1.16
    with torch.no_grad():
        adapter.left.copy_(normal(7, 5, seed=9))
        adapter.right.copy_(normal(9, 5, seed=10))
    opt = lb.optimizer(model, lr=0.1, weight_decay=decay, rule=Plain())
    for _ in range(3000):
        opt.zero_grad()
        (0.5 * (adapter.update() - target).square().sum()).backward()
        opt.step()
    u, s, vh = np.linalg.svd(target.numpy(), full_matrices=False)
    kept = np.maximum(s - decay / adapter.scale, 0.0)
    kept[5:] = 0
    assert 0 < np.count_nonzero(kept) < 5  # of the five components, some vanish
    assert np.allclose(adapter.update().detach().numpy(), (u * kept) @ vh, atol=1e-6)
    gram = [(f.T @ f).detach() for f in (adapter.left, adapter.right)]
    assert torch.allclose(*gram, atol=1e-6)


# the default start ------------------------------------------------------------------------------------------------


@pytest.mark.covers("I01")
def test_the_default_start_is_uniform_beside_a_zero():
    model, adapter = adapted_layer("lora", 16)
    right, bound = adapter.right.detach().numpy(), 512**-0.5
    assert adapter.left.count_nonzero() == 0
    assert adapter.update().count_nonzero() == 0
    assert scipy.stats.kstest(right.ravel(), scipy.stats.uniform(-bound, 2 * bound).cdf)[1] > 0.01
    correlation = np.corrcoef(right.T) - np.eye(16)
    assert abs(correlation).max() < 5 / 512**0.5
    assert torch.equal(model(normal(3, 512, seed=1)), one_layer(64, 512)(normal(3, 512, seed=1)))


@pytest.mark.covers("I01")
def test_the_default_start_has_the_distribution_of_peft():
    torch.manual_seed(0)
    _, layer = peft_layer(one_layer(64, 512), r=16)
    theirs, ours = layer.lora_A.default.weight.detach().numpy(), adapted_layer("lora", 16)[1].right.detach().numpy()
    assert not layer.lora_B.default.weight.any()
    assert scipy.stats.ks_2samp(theirs.ravel(), ours.ravel())[1] > 0.01


# directions that start at principal components ----------------------------------------------------------------------


def by_rows(weight: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
    return magnitude[:, None] * weight / np.linalg.norm(weight, axis=1, keepdims=True)


@pytest.mark.covers("P91", "I08")
def test_dude_normalizes_what_principal_components_and_residual_add_up_to():
    model, adapter = adapted_layer("dude", 3, 7, 9)
    weight = one_layer(7, 9)[0].weight.detach().numpy()
    u, s, vh = np.linalg.svd(weight)
    principal = (u[:, :3] * s[:3]) @ vh[:3]
    assert np.allclose(adapter.scale * adapter.point().dense().detach().numpy(), principal, atol=1e-6)
    assert np.allclose(adapter.magnitude.detach().numpy(), np.linalg.norm(weight, axis=1))
    with torch.no_grad():
        for k, p in enumerate([adapter.left, adapter.right, adapter.magnitude]):
            p.add_(0.3 * normal(*p.shape, seed=k))
    moved = weight - principal + adapter.scale * adapter.point().dense().detach().numpy()
    x = normal(5, 9, seed=11)
    expected = x.numpy() @ by_rows(moved, adapter.magnitude.detach().numpy()).T
    assert np.allclose(model(x).detach().numpy(), expected, atol=1e-6)


@pytest.mark.covers("P91", "I08")
def test_dude_is_dora_on_pissa_of_peft():
    plain, x = one_layer(7, 9).float(), normal(5, 9, seed=11).float()  # PEFT takes no doubles there
    theirs, layer = peft_layer(plain, r=3, lora_alpha=6, use_dora=True, init_lora_weights="pissa")
    model = lb.adapt(plain, "dude", rank=3, alpha=6.0)
    adapter = lb.adapted(model)["0"].adapter("default")
    pairs = [
        (adapter.left, layer.lora_B.default.weight),
        (adapter.right, layer.lora_A.default.weight.T),
        (adapter.magnitude, layer.lora_magnitude_vector.default.weight),
    ]
    assert torch.allclose(adapter.point().dense(), pairs[0][1] @ pairs[1][1].T, atol=1e-5)
    with torch.no_grad():
        for k, (ours, other) in enumerate(pairs):
            other.add_(0.3 * normal(*other.shape, seed=k))
            ours.copy_(other)
    assert torch.allclose(model(x), theirs(x), atol=1e-5)
