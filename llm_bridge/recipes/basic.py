"""LoRA itself, its scales and learning rates, and the variants that change one part of it."""

from __future__ import annotations

from lowrank_sp.parameterizations import Core, PoLAR
from lowrank_sp.rules import Adam, Canonical, Landing, PerFactor, Refactored, RefactoredScalar, Scaled, chain, translate

from ..combines import MagnitudeDirection, TimesBase
from ..noise import RankDropout
from ..recipe import Recipe, over_root_rank, register
from ..starts import OrthonormalIdentity, Principal, ZeroLeft

LORA = register(Recipe("lora", covers=("P01",)))
RSLORA = register(LORA.but("rslora", cite="kalajdzievski2023rslora", covers=("P02",), scale=over_root_rank))
LORA_FA = register(LORA.but("lora-fa", cite="zhang2023lorafa", covers=("P03",), trains=("left",)))
LORA_PLUS = register(
    LORA.but("lora+", cite="hayou2024loraplus", covers=("O31",), rule=chain(Adam(), PerFactor((16.0, 1.0))))
)
DORA = register(LORA.but("dora", cite="liu2024dora", covers=("P90",), combine=MagnitudeDirection()))
PISSA = register(LORA.but("pissa", cite="meng2024pissa", covers=("I04",), init=Principal()))
DUDE = register(DORA.but("dude", cite="han2025dude", covers=("P91", "I08"), init=Principal()))
HIRA = register(LORA.but("hira", cite="huang2025hira", covers=("P47",), combine=TimesBase()))
MOSLORA = register(
    LORA.but(
        "moslora",
        cite="wu2024moslora",
        covers=("P29", "E08"),
        form=Core,
        init=ZeroLeft(),
        note="The mixer starts at the identity; the survey describes it in prose only.",
    )
)
POLAR = register(
    LORA.but(
        "polar",
        cite="lion2025polar",
        covers=("P24", "O12"),
        form=PoLAR,
        rule=chain(Landing(), Adam()),
        move=translate,
    )
)
STELLA = register(
    POLAR.but(
        "stella",
        cite="li2025stella",
        covers=("P25", "O13"),
        init=OrthonormalIdentity(),
        rule=chain(Canonical(), Adam()),
        move=LORA.move,
        note="One learning rate for all layers; the source divides steps by the root of rows over model width. Adam's "
        "first moments are carried to the new tangent space.",
    )
)
RIEMANNIAN = register(
    LORA.but("riemannian", cite="zhang2024riemannian", covers=("O06",), rule=chain(Scaled(damping=1e-2), Adam()))
)
REFLORA = register(LORA.but("reflora", cite="zhang2025reflora", covers=("O07",), rule=chain(Refactored(), Adam())))
REFLORA_S = register(REFLORA.but("reflora-s", covers=("O08",), rule=chain(RefactoredScalar(), Adam())))
DROPLORA = register(LORA.but("lora-drop", cite="shunfoundation", covers=("P09",), noise=RankDropout))
