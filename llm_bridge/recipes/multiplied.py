"""Updates that rotate or reflect the input of a layer: the weight times a square matrix."""

from __future__ import annotations

from lowrank_sp.parameterizations import BlockRotation, Butterfly, EtherPlus, Householder

from ..multiplicative import Identity, Multiplied, MultipliedScaled, one
from ..recipe import register
from ..sizes import block_count, block_side, butterfly_side, even
from .basic import LORA

OFT = register(
    LORA.but(
        "oft",
        cite="qiu2023oft",
        covers=("P94", "P97"),
        form=BlockRotation,
        size=block_side,
        combine=Multiplied(),
        init=Identity(),
        scale=one,
        note="The rank is the side of a block; where it does not divide the inputs, the next divisor is.",
    )
)
BOFT = register(
    OFT.but(
        "boft",
        cite="liu2024boft",
        covers=("P95",),
        form=Butterfly.of(2),
        size=butterfly_side,
        note="Two butterfly factors, with blocks of the rank or the next side that fits; form=Butterfly.of(k) has k. "
        "Without the factors of the outputs that 'boft-scaled' has.",
    )
)
BOFT_SCALED = register(
    BOFT.but(
        "boft-scaled",
        covers=("P95",),
        combine=MultipliedScaled(),
        note="As 'boft', with the factor of every output that the published code trains.",
    )
)
HRA = register(
    OFT.but(
        "hra",
        cite="yuan2024hra",
        covers=("P96",),
        form=Householder,
        size=even,
        note="As many reflections as ranks, an even number; they start in pairs that cancel. Without the penalty on "
        "their orthogonality.",
    )
)
ETHER_PLUS = register(
    OFT.but(
        "ether+",
        cite="bini2024ether",
        covers=("P93",),
        form=EtherPlus,
        size=block_count,
        note="One side of the published pair, on the inputs; the rank is the number of blocks, or the next smaller "
        "divisor. Plain ETHER is a reflection, which is never the identity, so that it cannot start at the pretrained "
        "model: it is no recipe.",
    )
)
