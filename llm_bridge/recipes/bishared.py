"""Bi-Share LoRA with the two other transforms of its shared pairs: gates and Kronecker products."""

from __future__ import annotations

from math import gcd
from typing import Any

from lowrank_sp.parameterizations import BSLoRAGate, BSLoRAKronecker

from ..recipe import Recipe, by_block, everywhere, register
from ..sites import find_sites
from ..starts import ByArray, Constant, Fan
from .shared import BSLORA

__all__ = ["bslora_gate_of", "bslora_kronecker_of"]

_OF_MODEL = tuple(
    (f"{side}_{scope}", key)
    for scope, key in (("layer", by_block), ("model", everywhere))
    for side in ("left", "right")
)

_GAIN = 3**-0.5  # as large as those of LoRA
_OPEN = ByArray(
    (
        ("left", Fan(-2, _GAIN)),
        ("right", Constant(0.0)),
        *(
            (f"{name}_{scope}", draw)
            for scope in ("layer", "model")
            for name, draw in (
                ("rows", Fan(-1, _GAIN)),
                ("cols", Constant(0.0)),
                ("tall", Constant(1.0)),
                ("wide", Constant(1.0)),
                ("left", Fan(-2, _GAIN)),
                ("right", Fan(-2, _GAIN)),
            )
        ),
    )
)

BSLORA_GATE = register(
    BSLORA.but(
        "bslora-gate",
        covers=("P64",),
        form=BSLoRAGate,
        init=_OPEN,
        note="Gates of width one, as published, let a shared pair add a matrix of rank one. Those between the pair and "
        "the layer's own gates start at one, because small ones would close it. Shared among layers of one shape; "
        "bslora_gate_of(model) has one pair for all shapes.",
    )
)
BSLORA_KRONECKER = register(
    BSLORA.but(
        "bslora-kronecker",
        covers=("P64",),
        form=BSLoRAKronecker,
        note="Shared factors of half the sides, among layers of one shape; bslora_kronecker_of(model) has one pair for "
        "all shapes.",
    )
)


def bslora_gate_of(model: Any) -> Recipe:
    """The recipe ``"bslora-gate"`` with shared factors of the largest sides in a model, for layers of any shape."""
    rows, cols = (max(site.shape[k] for site in find_sites(model)) for k in (0, 1))
    return BSLORA_GATE.but(
        f"bslora-gate-{rows}-{cols}",
        covers=BSLORA_GATE.covers,
        form=BSLoRAGate.of(rows, cols),
        shares=_OF_MODEL,
        note=BSLORA_GATE.note,
    )


def bslora_kronecker_of(model: Any) -> Recipe:
    """The recipe ``"bslora-kronecker"`` with shared factors of the greatest common divisors of all sides."""
    rows, cols = (gcd(*(site.shape[k] for site in find_sites(model))) for k in (0, 1))
    return BSLORA_KRONECKER.but(
        f"bslora-kronecker-{rows}-{cols}",
        covers=BSLORA_KRONECKER.covers,
        form=BSLoRAKronecker.of(rows, cols),
        shares=_OF_MODEL,
        note=BSLORA_KRONECKER.note,
    )
