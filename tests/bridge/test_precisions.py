"""Every recipe on weights in half and in double precision, and with factors in half precision."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import llm_bridge as lb

from .test_recipes import EVERY, adapt, train

HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


def merged_as_computed(model, x, atol):
    with torch.no_grad():
        before = model.eval()(x)
        lb.merge(model)
        assert torch.allclose(model(x), before, atol=atol)


@EVERY
def test_learns_on_weights_in_bfloat16(name, mlp, task):
    x, y = (a.bfloat16() for a in task)
    mlp.bfloat16()
    before = mlp(x)
    adapt(mlp, name, (x, y))
    assert torch.allclose(mlp(x), before, atol=0.02)
    factors = {p.dtype for p in mlp.parameters() if p.requires_grad}
    assert factors == {torch.float32}
    losses = train(mlp, (x, y), 10)
    assert losses[-1] < losses[0]
    if lb.recipe(name).mergeable:
        merged_as_computed(mlp, x, 0.1)


@HALF
@pytest.mark.parametrize("name", ["lora", "dora", "polar", "oft", "boft-scaled", "hra"])
def test_a_model_of_half_precision_throughout_computes_and_merges(name, dtype, mlp, task):
    adapt(mlp, name, task)
    train(mlp, task, 3)
    mlp.to(dtype)
    merged_as_computed(mlp, task[0].to(dtype), 0.1)


@EVERY
def test_starts_at_weights_in_double_precision(name, mlp, task):
    x, y = (a.double() for a in task)
    mlp.double()
    before = mlp(x)
    adapt(mlp, name, (x, y))
    assert torch.allclose(mlp(x), before, atol=1e-5)


@pytest.mark.parametrize("name", ["lora", "polar", "reflora", "riemannian", "stella"])
def test_a_step_inside_autocast_is_the_step_outside(name, mlp, task):
    """Rules take their products in the precision of the factors, wherever the loop calls the optimizer."""
    adapt(mlp, name, task)
    twin, x, y = copy.deepcopy(mlp), *task
    for model, inside in ((mlp, False), (twin, True)):
        opt = lb.optimizer(model, lr=1e-2)
        for _ in range(3):
            opt.zero_grad()
            ((model(x) - y) ** 2).mean().backward()
            with torch.autocast("cpu", torch.bfloat16, enabled=inside):
                opt.step()
    assert all(torch.equal(a, b) for a, b in zip(mlp.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("name", ["lora", "pissa", "dora", "hira", "polar", "loha"])
@pytest.mark.parametrize("kind", ["attention", "gru"])
def test_weights_that_a_module_reads_itself_have_gradients_under_autocast(name, kind):
    """They are rebuilt inside of autocast, and backward runs outside."""
    torch.manual_seed(0)
    attention = nn.ModuleDict({"one": nn.MultiheadAttention(16, 2, batch_first=True)})
    model = attention if kind == "attention" else nn.ModuleDict({"one": nn.GRU(16, 16, batch_first=True)})
    lb.adapt(model, name, rank=2, targets=["q_proj" if kind == "attention" else "one"])
    for p in model.parameters():
        if p.requires_grad:  # away from where factors vanish
            p.data += 0.1 * torch.randn_like(p)
    x, grads = torch.randn(2, 3, 16), []
    for inside in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            out = model["one"](*[x] * (3 if kind == "attention" else 1))[0]
        out.float().square().sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.linalg.vector_norm(grads[0] - grads[1]) < 0.05 * torch.linalg.vector_norm(grads[0])
