"""HypLoRA against the hyperboloid of geoopt, its limits, and its behaviour in a model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import llm_bridge as lb
from llm_bridge.hyperbolic import FARTHEST, HypLoRA


def drawn(m=5, n=4, rank=3, curvature=1.0, spread=1.0, seed=0):
    rng = np.random.default_rng(seed)
    left, right = (torch.as_tensor(rng.standard_normal(shape)) for shape in ((m, rank), (n, rank)))
    return HypLoRA(left, right, torch.tensor([curvature]).double(), torch.tensor([spread]).double())


def inputs(*shape, scale=1.0, seed=1):
    return scale * torch.as_tensor(np.random.default_rng(seed).standard_normal(shape))


@pytest.mark.covers("P57")
@pytest.mark.parametrize("curvature", [-1.0, 0.0, 2.0])
def test_maps_are_those_of_geoopt(curvature):
    lorentz = pytest.importorskip("geoopt").manifolds.Lorentz
    point, x = drawn(curvature=curvature, spread=0.7), inputs(6, 4, scale=2.0)
    k = F.softplus(point.curvature)
    tangent = F.pad(x / (0.7 * 4**0.5), (1, 0))
    there = lorentz(k=k).expmap0(tangent)
    assert torch.allclose(-(there[:, 0] ** 2) + there[:, 1:].square().sum(1), -k)
    space = there[:, 1:] @ point.right @ point.left.mT
    time = (space.square().sum(1, keepdim=True) + k).sqrt()
    back = lorentz(k=k).logmap0(torch.cat((time, space), 1))
    assert torch.allclose(back[:, 0], torch.zeros(6).double(), atol=1e-9)
    assert torch.allclose(point.apply(x), back[:, 1:])


@pytest.mark.covers("P57")
def test_without_curvature_it_is_lora():
    point, x = drawn(curvature=1e10), inputs(6, 4)
    assert torch.allclose(point.apply(x), x @ point.right @ point.left.mT / 2)


@pytest.mark.covers("P57")
def test_rotations_commute_with_the_maps():
    q = torch.linalg.qr(inputs(4, 4, seed=2)).Q
    point = HypLoRA(q, torch.eye(4).double(), torch.zeros(1).double(), torch.ones(1).double())
    x = inputs(6, 4, scale=3.0)
    assert torch.allclose(point.apply(x), x @ q.mT / 2)


def test_counts_the_products_of_lora_and_gram_matrices():
    """Also of stacked rows; the lengths of outputs take nothing of their size."""
    point, x = drawn(m=40, n=48, rank=2), inputs(3, 5, 48)
    torch.testing.assert_close(point.apply(x)[1], point.apply(x[1]))
    assert point.apply(x[:0]).shape == (0, 5, 40)
    arrays = [a.requires_grad_() for a in point.arrays()]
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(HypLoRA(*arrays).apply(x).sum(), arrays)
    thin, gram = 2 * 15 * 2 * (3 * 40 + 2 * 48), 3 * (2 * 2 * 2 * 40 + 2 * 15 * 2 * 2)
    assert counter.get_total_flops() == thin + gram


def test_large_inputs_stay_finite():
    point = drawn()
    point = HypLoRA(*[a.float().requires_grad_() for a in point.arrays()])
    x = torch.full((1, 4), 1e4 * FARTHEST)
    out = point.apply(x)
    out.sum().backward()
    assert out.isfinite().all()
    assert all(a.grad is not None and a.grad.isfinite().all() for a in point.arrays())


def test_half_precision_holds_what_is_stretched():
    point, x = drawn(), inputs(6, 4, scale=20.0)
    half = HypLoRA(*[a.half() for a in point.arrays()]).apply(x.half())
    assert half.dtype == torch.float16
    assert torch.allclose(half.double(), point.apply(x), rtol=2e-2, atol=2e-2)
    single = HypLoRA(*[a.float() for a in point.arrays()])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = single.apply(x.float())
    assert torch.equal(out, single.apply(x.float()))


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0])
def test_gradients_are_those_of_differences(scale):
    point = drawn()
    x = inputs(3, 4, scale=scale)
    arrays = tuple(a.clone().requires_grad_() for a in point.arrays())
    assert torch.autograd.gradcheck(lambda *a: HypLoRA(*a).apply(x), arrays)


@pytest.mark.covers("P57")
def test_counts_two_more_than_lora():
    assert HypLoRA.parameter_count((4096, 4096), 8) == 2 * 4096 * 8 + 2


def test_cannot_be_merged_and_says_why(mlp):
    lb.adapt(mlp, "hyplora", rank=2)
    assert not lb.recipe("hyplora").mergeable
    with pytest.raises(TypeError, match="nonlinear function of the activations"):
        lb.merge(mlp)


def test_saves_and_loads(mlp, task, tmp_path):
    lb.adapt(mlp, "hyplora", rank=2)
    with torch.no_grad():
        for p in mlp.parameters():
            if p.requires_grad:
                p.add_(0.1)
    after = mlp(task[0])
    lb.save(mlp, tmp_path / "adapter")
    lb.unload(mlp)
    lb.load(mlp, tmp_path / "adapter")
    assert torch.equal(mlp(task[0]), after)
