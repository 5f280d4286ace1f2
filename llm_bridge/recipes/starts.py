"""LoRA from other starting points: of the weight, of gradients, of activations, or of nothing."""

from __future__ import annotations

from lowrank_sp.parameterizations import Core, DiagonalCore
from lowrank_sp.parameterizations.frozen import FrozenCore
from lowrank_sp.rules import Adam, Orthogonality, chain

from ..recipe import register
from ..starts import (
    Compressed,
    ContextMinor,
    ContextPrincipal,
    ExplainedVariance,
    GradientFrame,
    GradientSpectrum,
    LeadingColumns,
    Minor,
    NonZero,
    Reversed,
    Sketch,
    SplitFrame,
    SubBlocks,
    Triplets,
)
from .basic import LORA, RSLORA

REVERSED = register(LORA.but("lora-reversed", cite="hayou2024impact", covers=("I02",), init=Reversed()))
NZLORA = register(
    LORA.but(
        "nzlora",
        cite="li2025nzlora",
        covers=("I03",),
        init=NonZero(),
        note="The random start is subtracted at the output; the source leaves it in.",
    )
)

# of the weight
MILORA = register(LORA.but("milora", cite="wang2025milora", covers=("I05",), init=Minor()))
OLORA = register(LORA.but("olora", cite="buyukakyuz2024olora", covers=("I06",), init=LeadingColumns()))
SORSA = register(
    LORA.but(
        "sorsa",
        cite="cao2024sorsa",
        covers=("P27", "I07", "O41"),
        form=DiagonalCore,
        init=Triplets(),
        rule=chain(Adam(), Orthogonality(0.1)),
        note="The weight of the penalty on orthonormality is not in the surveys; here 0.1, decoupled from Adam.",
    )
)
NORA_NYSTROM = register(
    LORA.but(
        "nora-nystrom",
        cite="li2024nystrom",
        covers=("I13",),
        init=Sketch(),
        note="Not the nested LoRA of the same name.",
    )
)
NLORA = register(
    LORA.but(
        "nlora",
        cite="guo2025nlora",
        covers=("P34", "I12"),
        form=Core,
        init=SubBlocks(),
        note="Reconstructed from the published method, with the pseudo-inverse in the middle.",
    )
)

# of gradients
LORA_GA = register(
    LORA.but("lora-ga", cite="wang2024loraga", covers=("I16",), init=SplitFrame(), note="Rank at most half a side.")
)
LORA_ONE = register(
    LORA.but(
        "lora-one",
        cite="zhang2025loraone",
        covers=("I17",),
        init=GradientSpectrum(),
        note="The source keeps the start as a first step of descent; here it is subtracted at the output.",
    )
)
LORA_SB = register(
    LORA.but(
        "lora-sb",
        cite="ponkshe2024lorasb",
        covers=("P05", "I18"),
        form=FrozenCore,
        init=GradientFrame(),
        note="The core starts at zero, that is, at the pretrained model.",
    )
)
GORA_INIT = register(
    RSLORA.but(
        "gora-init",
        cite="he2025gora",
        covers=("I19",),
        init=Compressed(),
        note="The start without the allocation of ranks; it is subtracted at the output.",
    )
)

# of activations
EVA = register(
    LORA.but(
        "eva", cite="paischer2024eva", covers=("I22",), init=ExplainedVariance(), note="Without redistributed ranks."
    )
)
CORDA = register(LORA.but("corda", cite="yang2024corda", covers=("I21",), init=ContextPrincipal()))
CORDA_KEEP = register(
    CORDA.but(
        "corda-preserving",
        init=ContextMinor(),
        note="Knowledge-preserved adaptation: calibrate on questions whose answers should not change.",
    )
)
