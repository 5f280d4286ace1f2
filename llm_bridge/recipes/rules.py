"""LoRA with other update rules: the same matrices, reached along other paths."""

from __future__ import annotations

from lowrank_sp.rules import Adam, Horizontal, Orthogonality, Scaled, Unmagnified, chain

from ..recipe import register
from .basic import LORA, LORA_FA

PROJECTED_FA = register(
    LORA_FA.but(
        "lora-fa-projected",
        covers=("P03",),
        rule=chain(Scaled(damping=1e-6), Adam()),
        note="The gradient of B is divided by the Gram matrix of the fixed A: the step of W is that of full "
        "fine-tuning, projected.",
    )
)
LORA_PRO = register(
    LORA.but(
        "lora-pro",
        cite="wang2025lorapro",
        covers=("O32",),
        rule=chain(Horizontal(damping=1e-6), Adam()),
        note="The efficient mode: Adam acts on the equivalent gradients of the factors.",
    )
)
LORA_RITE = register(
    LORA.but(
        "lora-rite",
        cite="yen2025lorarite",
        covers=("O33",),
        rule=Unmagnified(),
        note="Without the clipping of unmagnified gradients over all layers.",
    )
)
ALTERNATING = register(
    LORA.but(
        "alternating",
        cite="ward2023altgd",
        covers=("O02",),
        blocks=(("left",), ("right",)),
        note="With a closure two backward passes a step, the second at the new B; without one, the factors take turns. "
        "Adam on each; for plain alternating descent replace the rule by Plain().",
    )
)
ORTHOGONAL = register(
    LORA.but(
        "lora-orthogonal",
        cite="shunfoundation",
        covers=("P10",),
        rule=chain(Adam(), Orthogonality(0.1)),
        note="Soft orthogonality of both factors, decoupled from Adam; the weight of the penalty is chosen here.",
    )
)
