"""What the tests of layers share: every way of combining, models of one layer, and the dense formulas."""

from typing import Any

import torch
from torch import nn

import llm_bridge as lb
from lowrank_sp.parameterizations import Hadamard

LORA = lb.recipe("lora")
VARIANTS = {
    "additive": LORA,
    "additive, not thin": LORA.but("a", form=Hadamard),
    "formed": LORA.but("b", form=Hadamard, combine=lb.Formed()),
    "subtracted start": lb.recipe("pissa"),
    "times base": lb.recipe("hira"),
    "magnitude": lb.recipe("dora"),
    "magnitude recomputed": lb.recipe("dora").but("c", combine=lb.MagnitudeDirection(recompute=True)),
    "magnitude, not thin": lb.recipe("dora").but("d", form=Hadamard),
    "magnitude, subtracted start": lb.recipe("dude").but("e", combine=lb.MagnitudeDirection(recompute=True)),
    "three factors": lb.recipe("moslora"),
}


class One(nn.Module):
    layer: Any

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


def move(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape, dtype=p.dtype, generator=generator))


def update_of(adapter):
    """``s F`` by the factors' own dense image."""
    total = adapter.point().dense()
    return adapter.scale * (total - adapter.start().dense() if adapter.shifted else total)


def formula(variant, weight, adapter):
    update = update_of(adapter)
    if variant == "times base":
        return weight * (1 + update)
    if variant.startswith("magnitude"):
        full = weight + update
        return adapter.magnitude[:, None] * full / full.norm(dim=1, keepdim=True).detach()
    return weight + update


def outputs_and_gradients(recipe, combine, layer, inputs, noise=None, rate=0.0):
    """Of one adapted layer in double precision, the draws of dropout being the same for every way to combine."""
    torch.manual_seed(0)
    model = One(layer()).double()
    made = lb.recipe(recipe).but("other", combine=combine)
    made = made.but("other", noise=noise or made.noise)
    lb.adapt(model, made, rank=2, targets=["layer"], dtype=torch.float64, seed=4, dropout=rate)
    move(model)
    torch.manual_seed(3)
    out = model(inputs())
    return out, *torch.autograd.grad(out.square().sum(), [p for p in model.parameters() if p.requires_grad])
