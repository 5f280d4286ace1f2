"""torch.compile: one graph for an adapted block, none again in later steps, and the same numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import llm_bridge as lb

ADDITIVE = sorted(name for name, made in lb.recipes().items() if made.combine.additive)


class Block(nn.Module):
    """The gated MLP of a Llama."""

    def __init__(self, width=16, hidden=24):
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


def adapted(name):
    torch.manual_seed(0)
    block, x = Block(), torch.randn(2, 5, 16)

    def loss():
        return block(x).square().sum()

    calibration = {None: None, "inputs": [x], "gradients": loss}[lb.recipe(name).init.needs]
    return lb.adapt(block, name, rank=4, calibration=calibration), x


@pytest.mark.parametrize("name", ADDITIVE)
def test_an_adapted_block_is_one_graph(name):
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    plain, x = adapted(name)
    block = copy.deepcopy(plain)
    counter = CompileCounter()
    compiled = torch.compile(block, fullgraph=True, backend=counter)
    opts = lb.optimizer(plain, lr=1e-2), lb.optimizer(compiled, lr=1e-2)
    losses = []
    for _ in range(3):
        for net, opt in zip((plain, compiled), opts, strict=True):
            opt.zero_grad()
            loss = net(x).square().mean()
            loss.backward()
            opt.step()
            losses.append(loss.item())
    assert counter.frame_count == 1
    assert losses[::2] == pytest.approx(losses[1::2], rel=1e-3)  # Adam enlarges rounding
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["lora", "polar", "moslora"])
def test_forward_and_backward_are_traced_together(name):
    torch._dynamo.reset()
    plain, x = adapted(name)
    compiled = torch.compile(copy.deepcopy(plain), fullgraph=True, backend="aot_eager")
    for net in (plain, compiled):
        net(x).square().mean().backward()
    pairs = zip(plain.parameters(), compiled.parameters(), strict=True)
    assert all(torch.allclose(a.grad, b.grad, atol=1e-6) for a, b in pairs if a.requires_grad)
