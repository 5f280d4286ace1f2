"""Updates that bend activations: no matrix is equal to them, so that they cannot be merged."""

from __future__ import annotations

from ..combines import Splined
from ..hyperbolic import HypLoRA
from ..nonlinear import Aurora, LoDA, LoDAPlus
from ..recipe import register
from ..starts import ByArray, Constant, Fan
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
        combine=Splined(),
        note="With the matrix between the two tanh that the survey's formula leaves out; five intervals, order three.",
    )
)
HYPLORA = register(
    LORA.but(
        "hyplora",
        cite="yang2025hyplora",
        covers=("P57",),
        form=HypLoRA,
        init=ByArray(
            (("left", Constant(0.0)), ("right", Fan(-2)), ("curvature", Constant(1.0)), ("spread", Constant(1.0)))
        ),
        note="Reconstructed from the published method and its code, with one curvature where that uses two.",
    )
)
LOR2C = register(
    LORA.but(
        "lor2c",
        cite="zhao2025lor2c",
        covers=("P56",),
        note="Reconstructed: LoRA on the paths that open_paths(model, blocks) opens beside whole blocks, which cannot "
        "be merged. On a layer it is 'lora', merged as that. Without the sharing and merging of paths.",
    )
)
