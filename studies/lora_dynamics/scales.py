"""Sizes that the sources misprint: of a start, of ranks, of an adapter; and what can be merged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

import llm_bridge as lb
from llm_bridge import starts
from llm_bridge.nonlinear import Aurora
from lowrank_sp import BurerMonteiro
from studies.parameter_counts.counts import count
from studies.parameter_counts.models import MODELS

__all__ = ["allocation", "counts", "start_size"]

Cell = Mapping[str, Any]


def start_size(cell: Cell) -> dict[str, Any]:
    """Entries of what LoRA-GA's start adds to the outputs, for more and more outputs: exponents in their number.

    ``corrected`` is the start of the bridge, with the fourth root of the outputs; ``printed`` has the m-th root of m.
    """
    inputs, rank = cell["inputs"], cell["rank"]
    found: dict[str, list[float]] = {"corrected": [], "printed": []}
    for outputs in cell["outputs"]:
        rng = np.random.default_rng([cell["seed"], outputs])
        g = torch.as_tensor(rng.standard_normal((outputs, inputs)))
        point = starts.SplitFrame()(
            starts.StartSite(BurerMonteiro, (outputs, inputs), rank, 1.0, rng, lambda g=g: g, g)
        )
        added = point.apply(torch.as_tensor(rng.standard_normal((200, inputs)))).square().mean().sqrt()
        found["corrected"].append(float(added))
        found["printed"].append(float(added) * (inputs ** (1 / inputs) / outputs**0.25) ** 2)
    return {f"{name}_exponent": _slope(cell["outputs"], values) for name, values in found.items()}


def _slope(x: Any, y: Any) -> float:
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


class Alike(nn.Module):
    """The mean of layers that share weight and input, so that all have the same importance."""

    def __init__(self, side: int, layers: int):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(side, side, bias=False) for _ in range(layers)])
        for layer in self.layers:
            layer.load_state_dict(self.layers[0].state_dict())

    def forward(self, x: Any) -> Any:
        return torch.stack([layer(x) for layer in self.layers]).mean(0).square().mean()


def allocation(cell: Cell) -> dict[str, Any]:
    """Ranks of GoRA for layers of equal shape and importance: of the bridge, and of equations (52)-(53) literally."""
    torch.manual_seed(cell["seed"])
    side, layers, rank = cell["side"], cell["layers"], cell["rank"]
    ranks = lb.ranks_by_importance(Alike(side, layers), [torch.randn(8, side)], rank, progress=False)
    width = 2 * cell["printed_side"]
    return {"ranks": list(ranks.values()), "printed": round(layers * width * rank / layers / width**0.5)}


def counts(cell: Cell) -> dict[str, Any]:
    """AURORA on Llama-3.1-8B in millions, with weights of splines as printed; recipes that cannot be merged."""
    sites = MODELS["Llama-3.1-8B"].sites()
    whole, rank = count(Aurora, sites, cell["rank"]), cell["rank"]
    splines = Aurora.shapes(sites[0][1], rank)[-1]
    bent = [name for name, made in lb.recipes().items() if not made.mergeable]
    return {
        "aurora": whole / 1e6,
        "aurora_printed": (whole - len(sites) * (splines[0] * splines[1] - rank)) / 1e6,
        "unmergeable": len(bent),
    }
