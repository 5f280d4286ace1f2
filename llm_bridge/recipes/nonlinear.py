"""Updates that bend activations: no matrix is equal to them, so that they cannot be merged."""

from __future__ import annotations

from ..nonlinear import Aurora, LoDA, LoDAPlus
from ..recipe import register
from .basic import LORA

LODA = register(
    LORA.but(
        "loda",
        cite="liu2023loda",
        covers=("P100",),
        form=LoDA,
        note="Slopes of 0.8, those of the published code; without its normalization by the number of outputs.",
    )
)
LODA_PLUS = register(
    LODA.but("loda+", covers=("P101",), form=LoDAPlus, note="As 'loda'. The inner network acts on the r channels.")
)
AURORA = register(
    LORA.but(
        "aurora",
        cite="dong2025aurora",
        covers=("P102",),
        form=Aurora,
        note="With the matrix between the two tanh that the survey's formula leaves out; five intervals, order three.",
    )
)
