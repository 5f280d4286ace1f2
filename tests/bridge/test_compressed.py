"""Optimizers with compressed moments against transcriptions in NumPy, and what they save."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import llm_bridge as lb

B1, B2, EPS = 0.9, 0.999, 1e-8


def weight(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64))


def gradients(shape, count):
    """Different ones in every step, with singular values that nothing can mix up."""
    rng = np.random.default_rng(5)
    for _ in range(count):
        u, v = (np.linalg.qr(rng.standard_normal((k, min(shape))))[0] for k in shape)
        yield (u * 0.6 ** np.arange(min(shape))) @ v.T


def transcribed(w, grads, columns_of, lr, alpha, decay, every):
    """The published loop, on a matrix whose first side is the shorter one."""
    first: Any = None
    second: Any = None
    columns: Any = None
    for t, g in enumerate(grads):
        if t % every == 0:
            new = columns_of(g, t)
            if first is not None:
                first = new.T @ columns @ first
            columns = new
        r = columns.T @ g
        first = (1 - B1) * r + (0 if first is None else B1 * first)
        second = (1 - B2) * r**2 + (0 if second is None else B2 * second)
        n = (first / (1 - B1 ** (t + 1))) / (np.sqrt(second / (1 - B2 ** (t + 1))) + EPS)
        w = (1 - lr * decay) * w - lr * alpha * columns @ n
    return w


@pytest.mark.covers("O36", "B12")
@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_galore_is_its_published_loop(shape):
    p, grads = weight(shape), list(gradients(shape, 9))
    wide = shape[0] > shape[1]
    turned = [g.T if wide else g for g in grads]
    start = p.detach().numpy().copy()
    expected = transcribed(
        start.T if wide else start, turned, lambda g, t: np.linalg.svd(g)[0][:, :3], 0.02, 0.25, 0.1, every=4
    )
    optimizer = lb.galore([p], lr=0.02, rank=3, every=4, weight_decay=0.1)
    for g in grads:
        p.grad = torch.as_tensor(g)
        optimizer.step()
    assert np.allclose(p.detach().numpy(), expected.T if wide else expected, atol=1e-6)


@pytest.mark.covers("O35", "B12")
def test_random_compression_is_adam_between_two_products_with_gaussians():
    p, grads = weight((6, 9)), list(gradients((6, 9), 7))

    def columns(g, t):
        return np.random.default_rng([3, 0, t + 1]).standard_normal((6, 2)) / 2**0.5

    expected = transcribed(p.detach().numpy().copy(), grads, columns, 0.02, 1.0, 0.0, every=3)
    optimizer = lb.random_compression([p], lr=0.02, rank=2, every=3, seed=3)
    for g in grads:
        p.grad = torch.as_tensor(g)
        optimizer.step()
    assert np.allclose(p.detach().numpy(), expected, atol=1e-10)
    mean = np.mean([c @ c.T for c in (columns(None, t) for t in range(4000))], axis=0)
    assert np.allclose(mean, np.eye(6), atol=0.1)


@pytest.mark.covers("S22", "O36")
def test_gradients_of_few_samples_lose_nothing():
    """The gradient of a linear layer has at most the rank of its batch, so as many columns hold all of it."""
    torch.manual_seed(0)
    layer, x = nn.Linear(12, 10, bias=False).double(), torch.randn(3, 12, dtype=torch.float64)
    layer(x).square().sum().backward()
    given: Any = layer.weight.grad
    g = given.clone()
    assert torch.linalg.matrix_rank(g) == 3
    optimizer = lb.galore(layer.parameters(), rank=3)
    optimizer.step()
    columns = optimizer.state[layer.weight]["columns"]
    torch.testing.assert_close(columns @ (columns.mT @ g), g)
    kept = sum(a.numel() for a in optimizer.state[layer.weight].values() if isinstance(a, torch.Tensor))
    assert kept == 3 * 10 + 2 * 3 * 12 < 2 * 10 * 12


@pytest.mark.parametrize("make", [lb.galore, lb.random_compression])
def test_whole_weights_train_and_runs_resume(make, mlp, task):
    def run(model, optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            loss = (model(task[0]) - task[1]).square().mean()
            loss.backward()
            optimizer.step()
        return loss.item()

    first = (mlp(task[0]) - task[1]).square().mean().item()
    optimizer = make(mlp.parameters(), lr=2e-2, rank=4, every=7)
    run(mlp, optimizer, 20)
    other = copy.deepcopy(mlp)
    resumed = make(other.parameters(), lr=2e-2, rank=4, every=7)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert run(mlp, optimizer, 20) < 0.8 * first
    run(other, resumed, 20)
    assert all(torch.equal(a, b) for a, b in zip(mlp.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_moments_of_weights_in_half_precision_stay_precise(dtype):
    first, second = (nn.Parameter(weight((6, 9)).detach().to(dtype)) for _ in range(2))
    grads = [torch.as_tensor(1e-5 * g) for g in gradients((6, 9), 6)]  # whose squares are zero in float16
    optimizer, resumed = (lb.galore([p], lr=0.02, rank=3, every=2) for p in (first, second))
    for i, g in enumerate(grads):
        first.grad = g.to(dtype)
        optimizer.step()
        if i == 2:
            saved = copy.deepcopy(optimizer.state_dict())
            resumed.load_state_dict(saved)
            second.data.copy_(first.data)
        if i > 2:
            second.grad = g.to(dtype)
            resumed.step()
    assert torch.equal(first, second)
    assert all(a.dtype == torch.float32 for a in resumed.state[second].values() if isinstance(a, torch.Tensor))
    assert not any(torch.equal(saved["state"][0][key], resumed.state[second][key]) for key in ("first", "second"))


def test_what_is_no_large_matrix_gets_adamw(mlp, task):
    plain = copy.deepcopy(mlp)
    ours, theirs = lb.galore(mlp.parameters(), lr=1e-2, rank=99, weight_decay=0.1), None
    theirs = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        for model, optimizer in ((mlp, ours), (plain, theirs)):
            optimizer.zero_grad()
            optimizer_loss = (model(task[0]) - task[1]).square().mean()
            optimizer_loss.backward()
            assert optimizer.step(lambda loss=optimizer_loss: loss) is optimizer_loss
    for a, b in zip(mlp.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_groups_may_have_ranks_of_their_own(mlp, task):
    block = list(mlp.layers[0].parameters())
    rest = [*mlp.layers[1].parameters(), *mlp.head.parameters()]
    optimizer = lb.galore([{"params": block, "rank": None}, {"params": rest}], rank=2)
    (mlp(task[0]) - task[1]).square().mean().backward()
    optimizer.step()
    assert optimizer.state[mlp.layers[0]["up"].weight]["first"].shape == (12, 16)
    assert optimizer.state[mlp.layers[1]["up"].weight]["first"].shape == (2, 16)
    with pytest.raises(ValueError, match="rank must be positive, got 0"):
        lb.galore([{"params": block, "rank": 0}])


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"every": 0}, {"lr": 0.0}, {"alpha": -1.0}])
def test_numbers_out_of_range(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be positive"):
        lb.galore([weight((4, 4))], **wrong)
