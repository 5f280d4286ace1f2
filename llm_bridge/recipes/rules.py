"""LoRA with other update rules: the same matrices, reached along other paths."""

from __future__ import annotations

from lowrank_sp.parameterizations import DiagonalCore
from lowrank_sp.rules import Adam, Horizontal, Orthogonality, Scaled, Unmagnified, chain

from ..recipe import register
from ..starts import Gaussian, ZeroLeft
from .basic import LORA, LORA_FA
from .structured import SVFIT

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
SALORA = register(
    LORA.but(
        "salora",
        cite="hu2023salora",
        covers=("P22",),
        form=DiagonalCore,
        init=ZeroLeft(),
        rule=chain(Adam(), Orthogonality(0.1)),
        note="Form and penalty; the gates are those of the policy HardConcreteGates(model, optimizer, budget).",
    )
)
INCRELORA = register(
    LORA.but(
        "increlora",
        cite="zhang2023increlora",
        covers=("P21",),
        form=DiagonalCore,
        init=Gaussian(0.02),
        rule=chain(Adam(), Orthogonality(0.1)),
        note="Form and penalty; components come one by one with the policy Growing(model, optimizer, budget, steps).",
    )
)
BILORA = register(
    LORA.but(
        "bilora",
        cite="qiang2024bilora",
        covers=("O42", "R15"),
        form=DiagonalCore,
        init=ZeroLeft(),
        rule=chain(Adam(), Orthogonality(0.1)),
        blocks=(("left", "right"), ("values",)),
        note="Reconstructed, to first order: columns and gates take turns, and the closure (or the loop, without one) "
        "gives each its own half of the data in turn; the gates' gradient does not see how the columns would respond.",
    )
)
LORA_DASH = register(
    SVFIT.but(
        "lora-dash",
        cite="si2024loradash",
        covers=("I20",),
        note="The directions alone: TaskDirections(model, after=100) puts them beside another adapter that has trained "
        "for a while, and takes those that it has changed most.",
    )
)
