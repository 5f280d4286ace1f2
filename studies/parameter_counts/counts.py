"""Trainable numbers of a method in a model: counted from the shapes of its form, shared arrays once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod
from typing import Any

import lowrank_sp as lr
from llm_bridge.nonlinear import Aurora
from lowrank_sp.parameterizations import DeLoRA
from lowrank_sp.spaces import FIXED

__all__ = ["BENCHMARK", "count", "lokr_near", "router"]

Sites = Iterable[tuple[str, tuple[int, int]]]


def count(form: Any, sites: Sites, size: int, shared: tuple[str, ...] = ()) -> int:
    """Sum over the sites; arrays in ``shared`` count once for a type of layer, fixed arrays not at all."""
    total, seen = 0, set()
    for kind, shape in sites:
        here = form.for_shape(shape)
        for name, space, core in zip(here.names, here.spaces, here.shapes(shape, size), strict=True):
            if space is FIXED or (kind, name) in seen:
                continue
            total += prod(core)
            if name in shared:
                seen.add((kind, name))
    return total


def magnitudes(sites: Sites) -> int:
    """One for each output: DoRA."""
    return sum(out for _, (out, _) in sites)


def router(sites: Sites, experts: int) -> int:
    """One linear map from inputs to experts at every site."""
    return sum(into * experts for _, (_, into) in sites)


def experts(sites: Sites, number: int) -> int:
    """LoRAMoE with experts of rank one, and their routers."""
    return number * count(lr.BurerMonteiro, sites, 1) + router(sites, number)


BENCHMARK: dict[str, Callable[[Any], int]] = {
    "LoRA": lambda sites: count(lr.BurerMonteiro, sites, 8),
    "DoRA": lambda sites: count(lr.BurerMonteiro, sites, 8) + magnitudes(sites),
    "DeLoRA": lambda sites: count(DeLoRA, sites, 8),
    "AdaLoRA": lambda sites: count(lr.DiagonalCore, sites, 8),
    "AdaLoRA, at its start": lambda sites: count(lr.DiagonalCore, sites, 12),
    "HiRA": lambda sites: count(lr.BurerMonteiro, sites, 8),
    "RaSA": lambda sites: count(lr.RaSA.of(1, 32), sites, 8, ("left_pool", "right_pool")),
    "DenseLoRA": lambda sites: count(lr.Core, sites, 192, ("left", "right")),
    "RandLoRA": lambda sites: count(lr.RandLoRA, sites, 32),
    "RandLoRA, U = 1024": lambda sites: count(lr.RandLoRA.of(1024), sites, 32),
    "MELoRA": lambda sites: count(lr.BlockDiagonal, sites, 8),
    "LoRAMoE, 8 experts": lambda sites: experts(sites, 8),
    "LoRAMoE, 6 experts": lambda sites: experts(sites, 6),
    "MoSLoRA": lambda sites: count(lr.Core, sites, 8),
    "AURORA": lambda sites: count(Aurora, sites, 8),
    "LoHa": lambda sites: count(lr.Hadamard, sites, 4),
    "LoRAN": lambda sites: count(lr.Sinter, sites, 8),
}


def lokr_near(sites: Sites, printed: float, limits: list[int], sizes: list[int]) -> dict[str, Any]:
    """The setting of LoKr, rank on either factor, whose count in millions is nearest to the printed one."""
    found = [
        (abs(count(form.of(limit), sites, size) / 1e6 - printed), f"{form.__name__}, k = {limit}, r = {size}")
        for form in (lr.LoKr, lr.LoKrSmall)
        for limit in limits
        for size in sizes
        if _fits(form.of(limit), sites, size)
    ]
    gap, setting = min(found)
    return {"gap": gap, "setting": setting}


def _fits(form: Any, sites: Sites, size: int) -> bool:
    try:
        return all(form.shapes(shape, size) for shape in {shape for _, shape in sites})
    except ValueError:
        return False
