"""Factors together with a soft prompt and a bottleneck adapter, which are modules of the model and train with them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import llm_bridge as lb

from .test_recipes import train


class Hybrid(nn.Module):
    """An encoder layer behind a soft prompt, with a bottleneck after it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.prompt = nn.Embedding(2, 8)
        self.body = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.bottleneck = nn.Sequential(nn.Linear(8, 2), nn.ReLU(), nn.Linear(2, 8))
        nn.init.zeros_(self.bottleneck[2].weight)
        nn.init.zeros_(self.bottleneck[2].bias)

    def forward(self, x):
        prompt = self.prompt.weight.expand(len(x), -1, -1)
        hidden = self.body(torch.cat((prompt, x), 1))[:, 2:]
        return hidden + self.bottleneck(hidden)


@pytest.mark.covers("P15", "B10")
def test_prompts_and_bottlenecks_train_load_and_switch_with_the_factors(tmp_path):
    x = torch.randn(6, 3, 8, generator=torch.Generator().manual_seed(1))
    target = torch.randn(6, 3, 8, generator=torch.Generator().manual_seed(2))
    model = Hybrid()
    before = model(x)
    lb.adapt(model, "lora", rank=2, targets=["linear1", "linear2"], also_train=["prompt", "bottleneck"])
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(names) == 4 + 1 + 4
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = train(model, (x, target), 40)
    assert losses[-1] < 0.9 * losses[0]
    assert {name for name, p in model.named_parameters() if not torch.equal(p, start[name])} == set(names)
    after = model(x)
    with lb.disable(model):
        assert torch.equal(model(x), before)
    lb.save(model, tmp_path / "adapter")
    fresh = Hybrid()
    lb.load(fresh, tmp_path / "adapter")
    assert torch.equal(fresh(x), after)


@pytest.mark.covers("P15", "B10")
def test_several_factors_act_together():
    x = torch.randn(6, 3, 8, generator=torch.Generator().manual_seed(1))
    model = Hybrid()
    before, outputs = model.body.linear1(x), []
    for seed, name in enumerate("ab"):
        lb.adapt(model, "lora", rank=2, targets=["linear1"], name=name)
        adapter = lb.adapted(model)["body.linear1"].adapter(name)
        with torch.no_grad():
            adapter.left.normal_(generator=torch.Generator().manual_seed(seed))
        outputs.append(model.body.linear1(x) - before)
    lb.activate(model, "a", "b")
    assert torch.allclose(model.body.linear1(x), before + sum(outputs), atol=1e-6)
